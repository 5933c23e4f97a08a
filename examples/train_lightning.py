"""Lightning: train on scikit-learn's digits with a Trainer, accumulated batches and a checkpoint.

    pip install -e ".[examples]" lightning
    python examples/train_lightning.py

trains a small network with a learning rate of 1, a thousand times the usual one of AdamW: it is
only an upper bound. The run is ended after five epochs, goes on from its checkpoint, and must reach
a test accuracy of 0.95. It takes six seconds on one CPU core and downloads nothing.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from momo_wrap import MoMoWrapper
from momo_wrap.integrations.lightning import MoMoCallback

MAX_LR = 1.0
EPOCHS = 10
ENOUGH = 0.95  # of test accuracy; that of guessing is 0.1


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        pixels, labels = batch
        loss = nn.functional.cross_entropy(self.network(pixels), labels)
        self.log("loss", loss)
        return loss

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pixels, labels = batch
        hits = (self.network(pixels).argmax(dim=1) == labels).float()
        self.log("test_accuracy", hits.mean())

    def configure_optimizers(self) -> Any:
        optimizer = MoMoWrapper(torch.optim.AdamW(self.parameters(), lr=MAX_LR, weight_decay=0.0))
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=EPOCHS)
        return [optimizer], [scheduler]


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    pixels, labels = load_digits(return_X_y=True)
    arrays = (torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    split = train_test_split(*arrays, test_size=360, stratify=labels, random_state=0)
    train_pixels, test_pixels, train_labels, test_labels = split
    train = DataLoader(TensorDataset(train_pixels, train_labels), batch_size=32, shuffle=True)
    return train, DataLoader(TensorDataset(test_pixels, test_labels), batch_size=360)


def trainer(folder: Path, epochs: int) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        accumulate_grad_batches=2,
        callbacks=[MoMoCallback(), LearningRateMonitor("epoch")],
        logger=CSVLogger(folder),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main() -> None:
    # Lightning's own, which no user can help.
    warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # faster than several for so small a network
    pl.seed_everything(0, verbose=False)
    train, test = loaders()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = trainer(folder, EPOCHS // 2)
        first.fit(Digits(), train)
        first.save_checkpoint(folder / "half.ckpt")
        second = trainer(folder, EPOCHS)
        module = Digits()
        second.fit(module, train, ckpt_path=folder / "half.ckpt")
        logged = {key: float(value) for key, value in second.callback_metrics.items()}
        (result,) = second.test(module, test, verbose=False)
    for key in ("lr-MoMoWrapper", "momo/theta", "momo/effective_lr", "loss"):
        print(f"{key:<18}{logged[key]:>8.4f} at the end")
    print(f"{'test accuracy':<18}{result['test_accuracy']:>8.4f}")
    assert result["test_accuracy"] > ENOUGH
    assert 0 < logged["momo/effective_lr"] < logged["lr-MoMoWrapper"]


if __name__ == "__main__":
    main()

"""Lightning: a callback passes the losses to the optimizer, and logs the step sizes.

    pip install -e ".[examples]" lightning
    python examples/train_lightning.py

trains on handwritten digits in a few seconds. The learning rate, a thousand times the usual one of
AdamW, is only an upper bound.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from momo_wrap import MoMoWrapper
from momo_wrap.integrations.lightning import MoMoCallback


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        pixels, labels = batch
        return nn.functional.cross_entropy(self.network(pixels), labels)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pixels, labels = batch
        self.log("accuracy", (self.network(pixels).argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = MoMoWrapper(torch.optim.AdamW(self.parameters(), lr=1.0))
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=10)]


pl.seed_everything(0)
pixels, digits = load_digits(return_X_y=True)
dataset = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits))
train, test = random_split(dataset, [1437, 360])

trainer = pl.Trainer(
    max_epochs=10,
    accelerator="cpu",
    accumulate_grad_batches=2,
    callbacks=[MoMoCallback()],
    logger=False,  # or one of Lightning's, which gets the step sizes
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(module := Digits(), DataLoader(train, batch_size=32, shuffle=True))
print({name: float(value) for name, value in trainer.callback_metrics.items()})
(result,) = trainer.test(module, DataLoader(test, batch_size=360))
assert result["accuracy"] > 0.95

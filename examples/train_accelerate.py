"""Hugging Face accelerate: train on scikit-learn's digits, accumulated and in bfloat16.

    pip install -e ".[examples]" accelerate
    python examples/train_accelerate.py

trains a small network with a learning rate of 1, a thousand times the usual one of AdamW: it is
only an upper bound. The state is saved and loaded half way, and the test accuracy must reach 0.95.
It takes five seconds on one CPU core and downloads nothing.
"""

from __future__ import annotations

import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from momo_wrap import MoMoWrapper
from momo_wrap.integrations import step_metrics
from momo_wrap.integrations.accelerate import backward

MAX_LR = 1.0
EPOCHS = 10
ENOUGH = 0.95  # of test accuracy; that of guessing is 0.1


def main() -> None:
    torch.set_num_threads(1)  # faster than several for so small a network
    set_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    arrays = (torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    split = train_test_split(*arrays, test_size=360, stratify=labels, random_state=0)
    train_pixels, test_pixels, train_labels, test_labels = split
    loader = DataLoader(TensorDataset(train_pixels, train_labels), batch_size=32, shuffle=True)

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision="bf16")
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=MAX_LR, weight_decay=0.0))
    steps = EPOCHS * len(loader) // 2
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

    for epoch in range(EPOCHS):
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), targets)
                backward(accelerator, loss, optimizer)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        metrics = {name: float(value) for name, value in step_metrics(optimizer).items()}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"epoch {epoch}  loss {float(loss.detach()):.4f}  {shown}")
        assert metrics["momo/effective_lr"] < MAX_LR
        if epoch == EPOCHS // 2:
            with tempfile.TemporaryDirectory() as folder:
                accelerator.save_state(folder)
                accelerator.load_state(folder)

    with torch.no_grad():
        predictions = model(test_pixels).argmax(dim=1)
    accuracy = float((predictions == test_labels).float().mean())
    print(f"test accuracy {accuracy:.4f}")
    assert accuracy > ENOUGH


if __name__ == "__main__":
    main()

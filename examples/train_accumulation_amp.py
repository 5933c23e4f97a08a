"""Accumulated gradients and a scaled loss: record each loss, then step.

    pip install -e ".[examples]"
    python examples/train_accumulation_amp.py

trains a small network on scikit-learn's handwritten digits. Each step takes the gradients of four
batches; the forward pass is in bfloat16 under autocast, and the loss is scaled, as training in
float16 needs it. Asserts that it learns. A few seconds on one CPU core.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from momo_wrap import MoMoWrapper

EPOCHS = 25
BATCHES_PER_STEP = 4


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(pixels, dtype=torch.float32, device=device) / 16
    targets = torch.tensor(labels, device=device)
    order = torch.randperm(len(targets), device=device)
    train, test = order[:1408], order[1408:]

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
    optimizer = MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=0.1), nonfinite="raise")
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)

    for _ in range(EPOCHS):
        for batches in train[torch.randperm(len(train), device=device)].split(64):
            optimizer.zero_grad()
            for batch in batches.split(64 // BATCHES_PER_STEP):
                with torch.autocast(device, dtype=torch.bfloat16):
                    loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
                scaler.scale(loss / BATCHES_PER_STEP).backward()
                optimizer.record_loss(loss)  # not divided, not scaled; the step takes the mean
            scaler.step(optimizer)
            scaler.update()

    with torch.no_grad():
        accuracy = (model(inputs[test]).argmax(dim=1) == targets[test]).float().mean()
    print(f"test accuracy {float(accuracy):.3f}")
    assert accuracy > 0.93


if __name__ == "__main__":
    main()

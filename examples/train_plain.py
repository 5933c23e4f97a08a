"""The plain training loop: wrap the optimizer, hand the loss to the step.

    pip install -e ".[examples]"
    python examples/train_plain.py

trains a small network on scikit-learn's handwritten digits with a learning rate a hundred times
the usual one, and asserts that it learns. A few seconds on one CPU core.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from momo_wrap import MoMoWrapper

EPOCHS = 15


def main() -> None:
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(targets))
    train, test = order[:1400], order[1400:]

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=0.1))
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=EPOCHS)

    for epoch in range(EPOCHS):
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
            loss.backward()
            optimizer.step(loss=loss)
        scheduler.step()
        assert optimizer.last_step is not None
        theta = float(optimizer.last_step.theta)
        print(f"epoch {epoch + 1:2}: loss {loss.item():.3f}, the last step's θ {theta:.3f}")

    with torch.no_grad():
        accuracy = (model(inputs[test]).argmax(dim=1) == targets[test]).float().mean()
    print(f"test accuracy {float(accuracy):.3f}")
    assert accuracy > 0.93


if __name__ == "__main__":
    main()

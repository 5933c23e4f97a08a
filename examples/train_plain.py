"""The plain training loop: wrap the optimizer, and pass the loss to its step.

    pip install -e ".[examples]"
    python examples/train_plain.py

trains on handwritten digits at a learning rate a hundred times the usual one, in a few seconds.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from momo_wrap import MoMoWrapper

EPOCHS = 15

torch.manual_seed(0)
pixels, digits = load_digits(return_X_y=True)
inputs, targets = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
train, test = torch.randperm(len(targets)).split([1400, 397])

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=0.1))
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=EPOCHS)

for epoch in range(EPOCHS):
    for batch in train[torch.randperm(len(train))].split(64):
        loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
    (lr,) = optimizer.effective_lrs()
    print(f"epoch {epoch + 1:2}: loss {loss.item():.3f}, effective learning rate {float(lr):.4f}")
    scheduler.step()

accuracy = float((model(inputs[test]).argmax(dim=1) == targets[test]).float().mean())
print(f"test accuracy {accuracy:.3f}")
assert accuracy > 0.93

"""Accumulated gradients and a scaled loss: record each loss, then step.

    pip install -e ".[examples]"
    python examples/train_accumulation_amp.py

trains on handwritten digits in a few seconds. Each step takes the gradients of four batches; the
forward pass is in bfloat16, and the loss is scaled, as training in float16 needs it.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from momo_wrap import MoMoWrapper

BATCHES_PER_STEP = 4

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
pixels, digits = load_digits(return_X_y=True)
inputs = torch.tensor(pixels / 16, dtype=torch.float32, device=device)
targets = torch.tensor(digits, device=device)
train, test = torch.randperm(len(targets), device=device).split([1408, 389])

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
optimizer = MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=0.1))
scaler = torch.amp.GradScaler(device, init_scale=2.0**10)

for _ in range(25):
    for batches in train[torch.randperm(len(train), device=device)].split(64):
        optimizer.zero_grad()
        for batch in batches.split(64 // BATCHES_PER_STEP):
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
            scaler.scale(loss / BATCHES_PER_STEP).backward()
            optimizer.record_loss(loss)  # not divided, not scaled; the step takes the mean
        scaler.step(optimizer)
        scaler.update()

accuracy = float((model(inputs[test]).argmax(dim=1) == targets[test]).float().mean())
print(f"test accuracy {accuracy:.3f}")
assert accuracy > 0.93

"""Hugging Face accelerate: accumulated gradients in bfloat16, at a learning rate of 1.

    pip install -e ".[examples]" accelerate
    python examples/train_accelerate.py

trains on handwritten digits in a few seconds. The learning rate, a thousand times the usual one of
AdamW, is only an upper bound.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from momo_wrap import MoMoWrapper
from momo_wrap.integrations import step_metrics
from momo_wrap.integrations.accelerate import backward

set_seed(0)
pixels, digits = load_digits(return_X_y=True)
dataset = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits))
train, test = random_split(dataset, [1437, 360])

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision="bf16")
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=1.0))
loader = DataLoader(train, batch_size=32, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

for epoch in range(10):
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(inputs), targets)
            backward(accelerator, loss, optimizer)  # in place of accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    shown = [f"{name} {float(value):.4f}" for name, value in step_metrics(optimizer).items()]
    print(f"epoch {epoch + 1:2}: loss {loss.item():.4f}, {', '.join(shown)}")

inputs, targets = test[:]
accuracy = float((model(inputs).argmax(dim=1) == targets).float().mean())
print(f"test accuracy {accuracy:.3f}")
assert accuracy > 0.95

"""Methods whose parameters average the iterate that steps, far above their best lr, in 60 s.

A perceptron on handwritten digits, a tenth of whose training labels are wrong.
"""

from collections.abc import Callable
from typing import Any

import torch
from schedulefree import AdamWScheduleFree, SGDScheduleFree
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Optimizer

from momo_wrap import MoMo, MoMoWrapper, TrustedMoMo
from momo_wrap.research import NGN, HeavyBall, SPSMax

SEEDS = 2
LRS = (0.1, 1.0, 10.0, 100.0, 1000.0)

METHODS: dict[str, Callable[[Any, float], Optimizer]] = {
    "SGDScheduleFree": lambda p, lr: SGDScheduleFree(p, lr=lr),
    "SGDScheduleFree + MoMo": lambda p, lr: MoMoWrapper(SGDScheduleFree(p, lr=lr), MoMo()),
    "SGDScheduleFree + TrustedMoMo": lambda p, lr: MoMoWrapper(
        SGDScheduleFree(p, lr=lr), TrustedMoMo()
    ),
    "AdamWScheduleFree + MoMo": lambda p, lr: MoMoWrapper(AdamWScheduleFree(p, lr=lr), MoMo()),
    "SGD-M + MoMo": lambda p, lr: MoMoWrapper(
        torch.optim.SGD(p, lr=lr, momentum=0.9, dampening=0.9), MoMo()
    ),
    "HeavyBall + MoMo (IAMS)": lambda p, lr: MoMoWrapper(HeavyBall(p, lr), MoMo()),
    "HeavyBall + NGN (NGN-M)": lambda p, lr: MoMoWrapper(HeavyBall(p, lr), NGN()),
    "HeavyBall + SPSMax (MomSPS_max)": lambda p, lr: MoMoWrapper(HeavyBall(p, lr), SPSMax()),
    "Adam-like HeavyBall + MoMo (IAMS-Adam)": lambda p, lr: MoMoWrapper(
        HeavyBall(p, lr, beta2=0.999), MoMo()
    ),
    "Adam-like HeavyBall + NGN (NGN-MDv1)": lambda p, lr: MoMoWrapper(
        HeavyBall(p, lr, beta2=0.999), NGN()
    ),
}


def digits() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(1797, generator=generator)
    inputs, targets = torch.tensor(pixels, dtype=torch.float32)[order] / 16, torch.tensor(labels)
    targets = targets[order]
    wrong = torch.randperm(1200, generator=generator)[:120]
    targets[wrong] = torch.randint(10, (120,), generator=generator)
    return inputs, targets


def test_loss(make: Callable[[Any, float], Optimizer], lr: float, seed: int) -> float:
    inputs, targets = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer: Any = make(model.parameters(), lr)
    getattr(optimizer, "train", lambda: None)()
    for batch in [batch for _ in range(20) for batch in torch.randperm(1200).split(64)]:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
        loss.backward()
        optimizer.step(**{"loss": loss} if isinstance(optimizer, MoMoWrapper) else {})
    getattr(optimizer, "eval", lambda: None)()
    return nn.functional.cross_entropy(model(inputs[1200:]), targets[1200:]).item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| lr |" + "".join(f" {lr:g} |" for lr in LRS))
    print("|---|" + "--:|" * len(LRS))
    found = {}
    for name, make in METHODS.items():
        found[name] = [
            sum(test_loss(make, lr, seed) for seed in range(SEEDS)) / SEEDS for lr in LRS
        ]
        print(f"| {name} |" + "".join(f" {loss:.3f} |" for loss in found[name]), flush=True)
    # Wrapped, it does as well far above the best learning rate as the bare optimizer at it.
    assert max(found["SGDScheduleFree + MoMo"][2:]) < 1.1 * min(found["SGDScheduleFree"])

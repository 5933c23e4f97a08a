"""A network that every trainer trains, and the loop by hand that each is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.optimizer import Optimizer

from momo_wrap import MoMo, MoMoWrapper, StepRecord, StepRule
from tests.problems import flat, last_step

Batch = tuple[Tensor, Tensor]
BATCHES, BATCH_SIZE = 8, 6  # accumulated by three, the last step of an epoch is a shorter one


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a regression that needs the network's second layer."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(BATCHES * BATCH_SIZE, 4, generator=generator, dtype=torch.float64)
    return inputs.to(dtype), torch.sin(3 * inputs[:, :2]).to(dtype)


def batches(dtype: torch.dtype = torch.float64) -> list[Batch]:
    inputs, targets = data(dtype)
    return list(zip(inputs.split(BATCH_SIZE), targets.split(BATCH_SIZE), strict=True))


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)).to(dtype)


def loss_of(model: Any, batch: Any) -> Tensor:
    inputs, targets = batch
    loss: Tensor = nn.functional.mse_loss(model(inputs), targets)
    return loss


def wrapped(model: nn.Module, bound: float = 0.1, rule: StepRule | None = None) -> MoMoWrapper:
    """An optimizer whose cap is too large and whose bound is reached, so that it needs the loss."""
    layers = [
        {"params": layer.parameters()} for layer in model.children() if list(layer.parameters())
    ]
    layers[0]["lr"] = 0.1  # type: ignore[assignment]
    return MoMoWrapper(torch.optim.AdamW(layers, lr=0.3, weight_decay=0.01), rule or MoMo(bound))


def decreasing(optimizer: Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: 0.9**step)


def watched(optimizer: MoMoWrapper) -> list[StepRecord]:
    """A list to which each step adds its record."""
    records: list[StepRecord] = []
    optimizer.register_step_post_hook(lambda *_: records.append(last_step(optimizer)))
    return records


def by_hand(
    epochs: int = 3,
    accumulate: int = 1,
    clip: float | None = None,
    *,
    schedule: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, list[StepRecord]]:
    """Train without a trainer, and return the parameters and what each step was."""
    model = network(dtype)
    optimizer = wrapped(model)
    optimizer.max_grad_norm = clip
    records = watched(optimizer)
    scheduler = decreasing(optimizer) if schedule else None
    for _ in range(epochs):
        for start in range(0, BATCHES, accumulate):
            optimizer.zero_grad()
            losses = [loss_of(model, batch) for batch in batches(dtype)[start : start + accumulate]]
            for loss in losses:
                (loss / accumulate).backward()
            optimizer.step(loss=torch.stack(losses).detach().mean())
            if scheduler is not None:
                scheduler.step()
    return flat(list(model.parameters())), records


def assert_same_steps(
    found: Sequence[StepRecord], expected: Sequence[StepRecord], tolerance: float = 1e-12
) -> None:
    """The same losses reached the optimizer, and shortened the steps by the same θ < 1."""
    assert len(found) == len(expected)
    for name in ("loss", "theta", "value_after_decay"):
        left, right = (torch.stack([getattr(r, name) for r in rs]) for rs in (found, expected))
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
    thetas = torch.stack([record.theta for record in expected])
    assert ((thetas > 0) & (thetas < 1)).any(), "this setting would not show a wrong loss"

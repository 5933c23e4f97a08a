"""Bounds of batches are averaged over the ranks, as the losses are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.distributed import training
from tests.distributed.training import Run, distance, share_cut
from tests.distributed.world import run_world

STEPS = 15


def bounded(make: Any, train: str, *, parts: int) -> tuple[Run, Tensor]:
    """Train with another bound for each row, and return the bounds that were used."""
    model: nn.Module = training.build_model()
    data = training.Data(model)
    part = dist.get_rank() if parts > 1 else 0
    if train == "fsdp2":
        training.fully_sharded(model)
    elif train == "ddp":
        model = DistributedDataParallel(model)
    optimizer = make(model)
    thetas, losses, bounds = [], [], []
    for _ in range(STEPS):
        inputs, targets = data.next_batch(part, parts)
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss, lower_bound=0.6 * targets.square().mean())
        thetas.append(optimizer.last_step.theta)
        losses.append(optimizer.last_step.loss)
        bounds.append(optimizer.last_step.lower_bound)
    run = Run(training.whole(model), torch.stack(thetas), torch.stack(losses))
    return run, torch.stack(bounds)


@pytest.mark.parametrize(
    ("train", "make"),
    [("ddp", training.sgd), ("fsdp2", training.adamw), ("ddp", training.proposing)],
)
def test_ranks_agree_and_follow_one_process(train: str, make: Any) -> None:
    alone, bounds = bounded(make, "alone", parts=1)
    assert share_cut(alone) > 0.1
    (first, its), (second, others) = run_world(2, bounded, make, train, parts=2)
    assert distance(second, first) == 0.0
    assert torch.equal(its, others)
    assert distance(first, alone) < 1e-10
    torch.testing.assert_close(its, bounds)

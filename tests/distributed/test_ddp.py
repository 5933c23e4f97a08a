"""DistributedDataParallel: gradients are averaged over ranks, and so are the losses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from momo_wrap import MoMo, MoMoWrapper
from tests.distributed import training
from tests.distributed.training import MakeOptimizer, Run, distance, share_cut, train_alone
from tests.distributed.world import run_world

STEPS, FEW = 40, 15


def train_each(makes: Sequence[MakeOptimizer], steps: int) -> list[Run]:
    return [training.train_ddp(make, steps) for make in makes]


@pytest.mark.parametrize(
    ("size", "makes", "steps"),
    [
        (2, (training.sgd, training.per_group, training.joint), FEW),
        (4, (training.proposing, training.anchored, *training.EVERY[-1:]), FEW),
        pytest.param(2, training.EVERY, STEPS, marks=pytest.mark.slow),
        pytest.param(4, training.EVERY, STEPS, marks=pytest.mark.slow),
    ],
)
def test_ranks_agree_and_follow_one_process(
    size: int, makes: Sequence[MakeOptimizer], steps: int
) -> None:
    """Equal bit for bit on all ranks, and to rounding as with the concatenated batch."""
    ranks = run_world(size, train_each, makes, steps)
    for index, make in enumerate(makes):
        alone = train_alone(make, steps)
        assert share_cut(alone) > 0.1
        first, *others = [runs[index] for runs in ranks]
        assert all(distance(other, first) == 0.0 for other in others), make
        assert distance(first, alone) < 1e-10, make


LONG, EPSILON = 200, 2.0**-52


def contracting_sgd(model: nn.Module) -> MoMoWrapper:
    """Take steps by which rounding does not grow."""
    base = SGD(training.two_groups(model, 0.1), momentum=0.9, weight_decay=1e-3)
    return MoMoWrapper(base, MoMo(training.BOUND))


def contracting_adamw(model: nn.Module) -> MoMoWrapper:
    base = AdamW(training.two_groups(model, 0.03), weight_decay=1e-2)
    return MoMoWrapper(base, MoMo(training.BOUND))


CONTRACTING = (contracting_sgd, contracting_adamw)


def train_nudged(make: MakeOptimizer) -> Run:
    """Train in this process from parameters that are off by a unit in the last place."""
    model = training.build_model()
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(1.0 + EPSILON)
    return training.train(model, make(model), LONG, training.Data(model))


@pytest.mark.slow
def test_long_runs_do_not_drift() -> None:
    """A nudge of one unit in the last place stays below 1e-12, so that only a fault is above."""
    ranks = run_world(2, train_each, CONTRACTING, LONG)
    for index, make in enumerate(CONTRACTING):
        alone = train_alone(make, LONG)
        assert share_cut(alone) > 0.1
        assert distance(train_nudged(make), alone) < 1e-12, make
        assert distance(ranks[0][index], alone) < 1e-10, make
        assert distance(ranks[1][index], ranks[0][index]) == 0.0, make

"""DistributedDataParallel: gradients are averaged over ranks, and so are the losses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.distributed import training
from tests.distributed.training import MakeOptimizer, Run, distance, share_cut, train_alone
from tests.distributed.world import run_world

STEPS = 40


def train_each(makes: Sequence[MakeOptimizer]) -> list[Run]:
    return [training.train_ddp(make, STEPS) for make in makes]


@pytest.mark.parametrize(
    ("size", "makes"),
    [
        (2, (training.sgd, training.per_group, training.proposing, training.joint)),
        (4, (training.muon,)),
        pytest.param(2, training.EVERY, marks=pytest.mark.slow),
        pytest.param(4, training.EVERY, marks=pytest.mark.slow),
    ],
)
def test_ranks_agree_and_follow_one_process(size: int, makes: Sequence[MakeOptimizer]) -> None:
    """Equal bit for bit on all ranks, and to rounding as with the concatenated batch."""
    ranks = run_world(size, train_each, makes)
    for index, make in enumerate(makes):
        alone = train_alone(make, STEPS)
        assert share_cut(alone) > 0.1
        first, *others = [runs[index] for runs in ranks]
        assert all(distance(other, first) == 0.0 for other in others), make
        assert distance(first, alone) < 1e-10, make

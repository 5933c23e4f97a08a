"""parallelize_module: layers are sharded over ranks that see the same data; and FSDP2 on top."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import loss_parallel, parallelize_module
from torch.optim import SGD

from momo_wrap import MoMo, MoMoWrapper
from momo_wrap.distributed import shards
from tests.distributed import training
from tests.distributed.parallel import DTensor, Replicate, Shard, distribute_tensor, fully_shard
from tests.distributed.training import EVEN, MakeOptimizer, Run, distance, share_cut, train_alone
from tests.distributed.world import run_world
from tests.releases import needs_torch

STEPS, FEW = 25, 10


def train_each(dp: int, *, sharded: bool) -> list[Run]:
    return [
        training.train_tensor_parallel(make, STEPS, dp, sharded=sharded)
        for make in training.ELEMENTWISE
    ]


@pytest.mark.parametrize(
    ("dp", "sharded"),
    [(1, False), pytest.param(2, True, marks=pytest.mark.slow)],
    ids=["TP", "FSDP2+TP"],
)
def test_parts_add_up_to_one_process(dp: int, sharded: bool) -> None:
    ranks = run_world(2 * dp, train_each, dp, sharded=sharded)
    for index, make in enumerate(training.ELEMENTWISE):
        alone = train_alone(make, STEPS, EVEN)
        assert share_cut(alone) > 0.05, make
        first, *others = [runs[index] for runs in ranks]
        assert all(distance(other, first) == 0.0 for other in others), make
        assert distance(first, alone) < 1e-10, make


def train_otherwise(train: Callable[[MakeOptimizer, int], Run]) -> list[Run]:
    return [train(make, FEW) for make in training.OTHERWISE]


@pytest.mark.parametrize(
    ("train", "widths"),
    [
        (training.train_partly_parallel, EVEN),
        pytest.param(
            training.train_with_distributed_data,
            training.UNEVEN,
            marks=needs_torch(2, 8, "gloo can average"),
        ),
    ],
)
def test_other_layouts(train: Callable[[MakeOptimizer, int], Run], widths: tuple[int, ...]) -> None:
    """Parameters and gradients of different layouts."""
    ranks = run_world(2, train_otherwise, train)
    for index, make in enumerate(training.OTHERWISE):
        assert distance(ranks[0][index], train_alone(make, FEW, widths)) < 1e-10, make
        assert distance(ranks[1][index], ranks[0][index]) == 0.0, make


def count_shards() -> dict[str, int]:
    """Return the number of parts under FSDP2 over tensor parallel, by parameter."""
    model = training.build_model(EVEN)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(model, mesh["tp"], training.COLWISE_THEN_ROWWISE)
    fully_shard(model, mesh=mesh["dp"])
    return {name: shards(param) for name, param in model.named_parameters()}


def test_parts_are_counted() -> None:
    """The last bias is on both ranks of a pair, and sharded over the pairs."""
    expected = {"0.weight": 4, "0.bias": 4, "2.weight": 4, "2.bias": 2}
    assert run_world(4, count_shards) == [expected] * 4


def train_with_distributed_loss() -> tuple[float, float]:
    """Train a classifier whose loss is computed on parts of the logits."""
    mesh = init_device_mesh("cpu", (2,))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    labels = torch.arange(8) % 4
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    losses = []
    for parallel in (False, True):
        start = weight.clone()
        param = nn.Parameter(distribute_tensor(start, mesh, [Shard(0)]) if parallel else start)
        rows = distribute_tensor(inputs, mesh, [Replicate()]) if parallel else inputs
        targets = distribute_tensor(labels, mesh, [Replicate()]) if parallel else labels
        optimizer = MoMoWrapper(SGD([param], lr=10.0), MoMo(0.5), nonfinite="raise")
        for step in range(6):
            optimizer.zero_grad()
            with loss_parallel():
                loss = nn.functional.cross_entropy(rows @ param.T, targets)
                assert isinstance(loss, DTensor) == parallel
                loss.backward()
            if step % 2:
                optimizer.record_loss(loss, torch.tensor(3.0))
                optimizer.step()
            else:
                optimizer.step(loss=loss)
        assert optimizer.last_step is not None
        losses.append(float(optimizer.last_step.loss))
    return losses[0], losses[1]


@needs_torch(2, 8, "loss_parallel in float64")
def test_loss_may_be_distributed() -> None:
    for plain, distributed in run_world(2, train_with_distributed_loss):
        assert distributed == pytest.approx(plain, abs=1e-12)

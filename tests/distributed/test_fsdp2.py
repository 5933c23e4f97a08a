"""fully_shard: each rank has a part of each parameter, which may be empty, and sums over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.distributed as dist

from momo_wrap import MoMo, MoMoWrapper, ProposingAdapter, muon_and_adamw
from tests.distributed import training
from tests.distributed.parallel import DTensor, distribute_tensor, fully_shard
from tests.distributed.training import MakeOptimizer, Run, distance, share_cut, train_alone
from tests.distributed.world import run_world
from tests.releases import Muon, needs_torch

STEPS, FEW = 25, 15

Train = Callable[[MakeOptimizer, int], Run]


def train_each(train: Train, makes: Sequence[MakeOptimizer], steps: int) -> list[Run]:
    return [train(make, steps) for make in makes]


@pytest.mark.parametrize(
    ("size", "train", "makes", "steps"),
    [
        (2, training.train_fsdp2, (training.nesterov, training.adamw, training.per_group), FEW),
        pytest.param(2, training.train_fsdp2, training.ELEMENTWISE, STEPS, marks=pytest.mark.slow),
        pytest.param(
            *(4, training.train_fsdp2, (training.proposing, training.anchored), FEW),
            marks=pytest.mark.slow,
        ),
        pytest.param(4, training.train_hsdp, (training.joint,), FEW, marks=pytest.mark.slow),
        pytest.param(4, training.train_fsdp2, training.ELEMENTWISE, STEPS, marks=pytest.mark.slow),
        pytest.param(4, training.train_hsdp, training.ELEMENTWISE, STEPS, marks=pytest.mark.slow),
    ],
)
def test_parts_add_up_to_one_process(
    size: int, train: Train, makes: Sequence[MakeOptimizer], steps: int
) -> None:
    ranks = run_world(size, train_each, train, makes, steps)
    for index, make in enumerate(makes):
        alone = train_alone(make, steps)
        assert share_cut(alone) > 0, make
        first, *others = [runs[index] for runs in ranks]
        assert all(distance(other, first) == 0.0 for other in others), make
        assert distance(first, alone) < 1e-10, make


@pytest.mark.slow
def test_compiled_passes_over_parts() -> None:
    """They equal uncompiled ones in one process."""
    alone = train_alone(training.adamw, FEW)
    assert share_cut(alone) > 0
    for run in run_world(2, training.train_fsdp2, training.compiled_adamw, FEW):
        assert distance(run, alone) < 1e-10


def sizes_of_parts() -> list[int]:
    model = training.fully_sharded(training.build_model())
    return [p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor)]


def test_parts_are_uneven_and_some_are_empty() -> None:
    """The setup of the comparison above."""
    parts = torch.tensor(run_world(2, sizes_of_parts))
    assert (parts[0] != parts[1]).all()
    assert (parts == 0).any()


def muon_on_parts(rows: int) -> list[tuple[str, torch.Tensor]]:
    """Take steps with a bare Muon, and with one whose steps are not shortened."""
    results = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, rows, bias=False)
        fully_shard(model)
        base = Muon(model.parameters(), lr=0.1, weight_decay=0.0)
        adapter = ProposingAdapter()
        optimizer = MoMoWrapper(base, MoMo(-math.inf), adapter=adapter) if wrapped else base
        error = ""
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.eye(4)).square().mean()
            loss.backward()
            try:
                optimizer.step(**({"loss": loss} if wrapped else {}))
            except RuntimeError as found:
                error = str(found)
        results.append((error, training.whole(model)["weight"]))
    return results


@needs_torch(2, 9, "torch.optim.Muon")
@pytest.mark.parametrize("rows", [5, 1])
def test_muon_is_wrapped_as_far_as_it_goes(rows: int) -> None:
    """If this fails for 1 row, torch can orthogonalise with an empty part; tell the docs."""
    for (bare_error, bare), (error, wrapped) in run_world(2, muon_on_parts, rows):
        assert error == bare_error
        assert ("Sharding propagation failed" in error) == (rows == 1)
        torch.testing.assert_close(wrapped, bare)


Move = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def moves_of_muon(rows: int) -> Move:
    """Return a step of Muon on a sharded matrix, on the whole matrix, and on its shards."""
    torch.manual_seed(0)
    gradient = torch.randn(rows, 12)
    layer = torch.nn.Linear(12, rows, bias=False)
    fully_shard(layer)
    before = training.whole(layer)["weight"]
    cut = layer.weight
    assert isinstance(cut, DTensor)
    cut.grad = distribute_tensor(gradient, cut.device_mesh, cut.placements)
    wrapped_muon([cut]).step(loss=1.0)
    parts = [moved_whole(part) for part in gradient.chunk(dist.get_world_size())]
    return training.whole(layer)["weight"] - before, moved_whole(gradient), torch.cat(parts)


def wrapped_muon(params: Sequence[torch.Tensor]) -> MoMoWrapper:
    base = Muon(params, lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return MoMoWrapper(base, MoMo(-math.inf))


def moved_whole(gradient: torch.Tensor) -> torch.Tensor:
    """Return the move of a matrix that is on this rank alone, in the scale of all matrices."""
    param = torch.zeros_like(gradient, requires_grad=True)
    param.grad = gradient
    optimizer = wrapped_muon([param])
    optimizer.process_group = None
    optimizer.step(loss=1.0)
    return param.detach()


@needs_torch(2, 9, "torch.optim.Muon")
@pytest.mark.parametrize(("size", "rows"), [(2, 8), (4, 8), (4, 5)])
def test_muon_orthogonalises_whole_matrices(size: int, rows: int) -> None:
    """Also where the last rank's part is empty, as of 5 rows over 4."""
    for cut, whole, by_parts in run_world(size, moves_of_muon, rows):
        length = whole.norm()
        assert (cut - whole).norm() < 0.02 * length
        assert (cut - by_parts).norm() > 0.2 * length


def muon_of_a_model(widths: tuple[int, ...]) -> tuple[str, bool]:
    """Return why it could not be made, and whether it trained, alike on all ranks."""
    model = training.fully_sharded(training.build_model(widths))
    try:
        optimizer = muon_and_adamw(model, lr=1.0, rule=MoMo(training.BOUND))
    except ValueError as refused:
        return str(refused), False
    part, parts = dist.get_rank(), dist.get_world_size()
    run = training.train(model, optimizer, 20, training.Data(model), part, parts)
    gathered = [torch.zeros_like(run.thetas) for _ in range(parts)]
    dist.all_gather(gathered, run.thetas)
    trained = share_cut(run) > 0.1 and float(run.losses[-10:].mean()) < float(run.losses[0])
    return "", trained and all(torch.equal(own, run.thetas) for own in gathered)


@needs_torch(2, 9, "torch.optim.Muon")
@pytest.mark.parametrize(("widths", "refused"), [((5, 8, 6, 3), False), ((5, 3, 6, 3), True)])
def test_muon_and_adamw_of_a_sharded_model(widths: tuple[int, ...], refused: bool) -> None:
    for why, fine in run_world(4, muon_of_a_model, widths):
        assert ("0.weight of shape [3, 5] is sharded into 4 parts" in why) == refused
        assert fine != refused

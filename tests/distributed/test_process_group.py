"""process_group= decides who shares the model of the loss, and one all-reduce does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp._common_utils import FSDP_FLATTENED
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from momo_wrap import MoMo, MoMoStar, MoMoWrapper
from tests.distributed import training
from tests.distributed.parallel import CommDebugMode
from tests.distributed.training import Data, MakeOptimizer, Run, build_model, distance
from tests.distributed.world import run_world

OFTEN = 10


def step_counts(model: nn.Module, optimizer: MoMoWrapper) -> set[tuple[int, int]]:
    """Return the all-reduces that a step of the optimizer made, and all of its communication."""
    data, counts = Data(model), set()
    for _ in range(3):
        inputs, targets = data.next_batch(dist.get_rank(), dist.get_world_size())
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        with CommDebugMode() as communication:
            optimizer.step(loss=loss)
        found = {str(name): n for name, n in communication.get_comm_counts().items()}
        reduces = sum(n for name, n in found.items() if "all_reduce" in name or "allreduce" in name)
        counts.add((reduces, communication.get_total_counts()))
    return counts


def count_communication() -> dict[str, set[tuple[int, int]]]:
    counts = {}
    for make in training.UNCLIPPED:
        model = training.fully_sharded(build_model())
        counts[f"FSDP2, {make.__name__}"] = step_counts(model, make(model))
    for make in training.EVERY:
        counts[f"DDP, {make.__name__}"] = step_counts(m := build_model(), make(m))
    return counts


def test_a_step_has_one_all_reduce_and_no_other_communication() -> None:
    for counts in run_world(2, count_communication):
        assert counts == {case: {(1, 1)} for case in counts}


def count_while_looking_for_nan() -> set[tuple[int, int]]:
    model = build_model()
    return step_counts(model, MoMoWrapper(SGD(model.parameters(), lr=0.1), nonfinite="skip"))


def test_a_decision_of_all_ranks_has_a_second_one() -> None:
    assert run_world(2, count_while_looking_for_nan) == [{(2, 2)}] * 2


def count_while_clipping() -> list[set[tuple[int, int]]]:
    whole, sharded = build_model(), training.fully_sharded(build_model())
    return [step_counts(model, training.clipped(model)) for model in (whole, sharded)]


def test_the_norm_of_sharded_gradients_has_a_second_one() -> None:
    """As torch's own function: what clips them must be known before the base takes them up."""
    assert run_world(2, count_while_clipping) == [[{(1, 1)}, {(2, 2)}]] * 2


def count_without_need(process_group: str | None) -> set[tuple[int, int]]:
    model = build_model()
    base = SGD(model.parameters(), lr=0.1, momentum=0.9)
    return step_counts(model, MoMoWrapper(base, process_group=process_group))  # type: ignore[arg-type]


def test_no_communication_without_need() -> None:
    assert run_world(1, count_without_need, "auto") == [{(0, 0)}]
    assert run_world(2, count_without_need, None) == [{(0, 0)}] * 2


def alone_on_own_data(rank: int) -> Run:
    """Train as many steps as no other rank does, so that any communication would hang."""
    model = build_model()
    base = SGD(training.two_groups(model, 0.1), momentum=0.9)
    optimizer = MoMoWrapper(base, MoMoStar(), nonfinite="skip", process_group=None)
    return training.train(model, optimizer, OFTEN * (1 + rank), Data(model, seed=rank))


def alone_among_others() -> Run:
    return alone_on_own_data(dist.get_rank())


def test_initialised_but_unused() -> None:
    """Each rank trains a model of its own."""
    for rank, run in enumerate(run_world(2, alone_among_others)):
        assert distance(run, alone_on_own_data(rank)) == 0.0


def own_model(seed: int, group: dist.ProcessGroup | None) -> Run:
    """Train on data that the ranks of a group have in common."""
    model: nn.Module = build_model()
    data = Data(model, seed)
    if group is not None:
        model = DistributedDataParallel(model, process_group=group)
    base = SGD(training.two_groups(model, 0.3), momentum=0.9)
    optimizer = MoMoWrapper(base, MoMo(training.BOUND), process_group=group)
    part, parts = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    return training.train(model, optimizer, OFTEN, data, part, parts)


def two_models() -> Run:
    group, _ = dist.new_subgroups(2)
    return own_model(dist.get_rank() // 2, group)


def test_a_group_of_the_ranks_is_on_its_own() -> None:
    """Pairs of ranks train different models at the same time."""
    runs = run_world(4, two_models)
    for rank, run in enumerate(runs):
        assert distance(run, own_model(rank // 2, None)) < 1e-10
        assert distance(run, runs[rank - rank % 2]) == 0.0
    assert distance(runs[0], runs[2]) > 1e-3


def refused() -> dict[str, str]:
    """Return the error of groups that can't share a model."""
    rank = dist.get_rank()
    other = [dist.new_group([index]) for index in range(2)][1 - rank]
    mine = [dist.new_group([index]) for index in range(2)][rank]
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    sharded, plain = training.fully_sharded(build_model()), build_model()

    def message(model: nn.Module, process_group: Any) -> str:
        with pytest.raises((TypeError, ValueError)) as caught:
            MoMoWrapper(SGD(model.parameters(), lr=0.1), process_group=process_group)
        return f"{caught.type.__name__}: {caught.value}"

    MoMoWrapper(SGD(sharded.parameters(), lr=0.1), process_group=mesh.get_group("dp"))
    return {
        "sharded, None": message(sharded, None),
        "sharded, one rank": message(sharded, mine),
        "not a member": message(plain, other),
        "mesh": message(plain, mesh),
        "text": message(plain, "world"),
    }


def test_groups_that_can_not_share_a_model_raise() -> None:
    for rank, said in enumerate(run_world(2, refused)):
        assert "sharded over the ranks [0, 1], but process_group has only this one" in said.pop(
            "sharded, None"
        )
        assert f"process_group has only [{rank}], so the" in said.pop("sharded, one rank")
        assert "ValueError: process_group does not contain this process" in said.pop("not a member")
        assert set(said) == {"mesh", "text"}
        assert all(text.startswith("TypeError: process_group must") for text in said.values())


def marked_as_fsdp1() -> str:
    """Return the error of parameters with the mark of FSDP1, which needs a GPU."""
    model = build_model()
    for param in model.parameters():
        setattr(param, FSDP_FLATTENED, True)
    with pytest.raises(ValueError, match="FSDP1") as caught:
        MoMoWrapper(SGD(model.parameters(), lr=0.1))
    return str(caught.value)


def test_fsdp1_raises() -> None:
    """Its shards can't be distinguished from whole tensors."""
    for said in run_world(2, marked_as_fsdp1):
        assert said.endswith("Use torch.distributed.fsdp.fully_shard.")


@pytest.mark.parametrize("make", training.EVERY)
def test_steps_without_torch_distributed(make: MakeOptimizer, monkeypatch: Any) -> None:
    """Nothing is asked of a group where there is none."""
    called: list[str] = []
    record: Callable[..., None] = lambda *_, **__: called.append("all_reduce")  # noqa: E731
    monkeypatch.setattr(dist, "all_reduce", record)
    assert not dist.is_initialized()
    training.train_alone(make, 2)
    assert not called
    assert torch.is_grad_enabled()

"""Probes in several processes: each evaluates its own batch, and the differences are averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam

from momo_wrap import ModelStats, MoMo, MoMoWrapper, StepDecision
from tests.distributed import training
from tests.distributed.parallel import fully_shard
from tests.distributed.training import Data, build_model
from tests.distributed.world import run_world

STEPS = 8


class Every(MoMo):
    """MoMo that has every third step probed, and records its statistics."""

    def __init__(self) -> None:
        super().__init__(training.BOUND)
        self.seen: list[float] = []

    def wants_probe(self, stats: ModelStats) -> bool:
        """Those of number 3, 6, ..."""
        return stats.step % 3 == 0

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Note the measurements."""
        self.seen += [float(stats.probed_decrease), float(stats.probed_slope)]
        return super().__call__(stats, memory)


class EverySlope(Every):
    """The same by slopes alone."""

    def wants_probe(self, stats: ModelStats) -> bool:
        """None."""
        return False

    def wants_slope(self, stats: ModelStats) -> bool:
        """Those of number 3, 6, ..."""
        return stats.step % 3 == 0


def train(
    form: str, *, probed: bool, make_rule: Callable[[], Every] = Every
) -> tuple[list[float], dict[str, Tensor]]:
    """Return the measurements, and the final parameters."""
    whole = build_model()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if form != "single" else (0, 1)
    model: nn.Module = whole
    if form == "DDP":
        model = DistributedDataParallel(whole)
    elif form == "FSDP2":
        fully_shard(whole)
    rule, data = make_rule(), Data(whole)
    optimizer = MoMoWrapper(Adam(model.parameters(), lr=0.1), rule)
    for _ in range(STEPS):
        inputs, targets = data.next_batch(rank, ranks)

        def evaluate(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            loss: Tensor = nn.functional.mse_loss(model(inputs), targets)
            return loss

        loss = evaluate()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss, probe=evaluate if probed else None)
    return rule.seen, training.whole(whole)


@pytest.mark.parametrize("form", ["DDP", "FSDP2"])
def test_differences_are_those_of_one_process(form: str) -> None:
    expected, weights = train("single", probed=True)
    assert [not math.isnan(value) for value in expected] == [
        k in (3, 6) for k in range(STEPS) for _ in range(2)
    ]
    for seen, found in run_world(2, train, form, probed=True):
        assert seen == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)
        for name, value in weights.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["DDP", "FSDP2"])
def test_slopes_are_those_of_one_process(form: str) -> None:
    probed, _ = train("single", probed=True)
    expected, _ = train("single", probed=False, make_rule=EverySlope)
    assert [not math.isnan(value) for value in expected[1::2]] == [
        k in (3, 6) for k in range(STEPS)
    ]
    assert expected[1::2] == pytest.approx(probed[1::2], rel=1e-9, nan_ok=True)
    assert all(map(math.isnan, expected[::2]))
    for seen, _ in run_world(2, train, form, probed=False, make_rule=EverySlope):
        assert seen == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("form", ["DDP", "FSDP2"])
def test_a_probe_changes_no_parameter(form: str) -> None:
    pairs = zip(
        run_world(2, train, form, probed=True), run_world(2, train, form, probed=False), strict=True
    )
    for (_, probed), (_, unprobed) in pairs:
        for name, value in unprobed.items():
            assert torch.equal(probed[name], value)


class Nested(nn.Module):
    """A root module with its own parameters around a separately sharded one."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.block = nn.Linear(6, 6)
        self.last = nn.Sequential(nn.Dropout(dropout), nn.Linear(6, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return one number for each row."""
        output: Tensor = self.last(torch.tanh(self.block(self.first(inputs))))
        return output


def losses_of_nested(form: str, dropout: float, *, probed: bool) -> list[tuple[float, ...]]:
    """Return the loss of each step of FSDP2 or DDP, and the measurements, with probes of all."""
    torch.manual_seed(0)
    whole = Nested(dropout).double()
    model: nn.Module = whole
    if form == "FSDP2":
        fully_shard(whole.block)
        fully_shard(whole)
    else:
        model = DistributedDataParallel(whole)

    class Each(Every):
        def wants_probe(self, stats: ModelStats) -> bool:
            return True

    rule = Each()
    rule.lower_bound = -math.inf
    generator = torch.Generator().manual_seed(dist.get_rank())
    optimizer = MoMoWrapper(Adam(model.parameters(), lr=0.1), rule)
    found = []
    for _ in range(STEPS):
        inputs = torch.randn(8, 5, dtype=torch.float64, generator=generator)

        def evaluate(inputs: Tensor = inputs) -> Tensor:
            loss: Tensor = (model(inputs) - 1.0).square().mean()
            return loss

        loss = evaluate()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss, probe=evaluate if probed else None)
        found.append((float(loss.detach()), *rule.seen[-2:]))
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_fsdp2_gathers_anew_what_a_probe_has_moved(dropout: float) -> None:
    """A root module keeps its gathered parameters after a forward without backward."""
    sharded = run_world(2, losses_of_nested, "FSDP2", dropout, probed=True)
    whole = run_world(2, losses_of_nested, "DDP", dropout, probed=True)
    plain = run_world(2, losses_of_nested, "FSDP2", dropout, probed=False)
    for own, others, unprobed in zip(sharded, whole, plain, strict=True):
        assert [loss for loss, *_ in own] == [loss for loss, *_ in unprobed]
        for found, expected in zip(own, others, strict=True):
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)

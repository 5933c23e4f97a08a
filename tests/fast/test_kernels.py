"""Kernels are compiled once for each kind of parameters, and need little memory."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.optim.lr_scheduler import OneCycleLR

from momo_wrap import ModelStats, MoMoWrapper, StepDecision, StepRule
from momo_wrap.fast import kernels
from momo_wrap.testing.blocks import block_elements
from tests.cases import Case
from tests.engine.test_blocks import peak_mib
from tests.mixture import COMPILED, FEW, set_gradients, train, wrapped

pytestmark = pytest.mark.usefixtures("small_blocks")

STEPS = range(20)


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.fixture
def no_new_graphs() -> Iterator[Callable[[], None]]:
    """Call it once all kernels are there."""
    seen: list[int] = []
    yield lambda: seen.append(graphs())
    assert seen
    assert graphs() == seen[0]


class Alternating(StepRule):
    """Takes full steps, which it predicts, and half of every fourth one, which it does not."""

    def foresee(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> Tensor:
        return torch.ones_like(stats.learning_rate)

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        theta = torch.full_like(stats.learning_rate, 1.0 if stats.step % 4 else 0.5)
        return StepDecision(theta, theta, stats.lower_bound)


def vary(case: Case, by: float) -> None:
    """Train while settings, sizes and missing gradients change from step to step."""
    optimizer = wrapped(case, True, form="decoupled")
    optimizer.rule = Alternating()
    first, second = optimizer.param_groups
    scheduler = OneCycleLR(optimizer, max_lr=0.1 + by, total_steps=21)
    cycled = set()
    for step in STEPS:
        set_gradients(optimizer, step)
        if step % 3 == 1:
            first["params"][0].grad = second["params"][1].grad = None
        if step == 5:
            optimizer.zero_grad()
        first["weight_decay"] = 0.01 + 0.001 * step + by
        optimizer.step(loss=(1.0 + step) if step % 2 else torch.tensor(2.0 + step))
        scheduler.step()
        cycled.add((first.get("momentum"), first.get("betas"), first["lr"]))
    assert len({(momentum, betas) for momentum, betas, _ in cycled}) > 10
    sizes = (50, 9) if by else (60, 10)
    others = [[torch.randn(n, 37, dtype=torch.float64, requires_grad=True)] for n in sizes]
    other = wrapped(case, True, params=others)
    other.rule = Alternating()
    for step in STEPS[:6]:
        set_gradients(other, step)
        other.step(loss=3.0)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_nothing_is_compiled_anew(case: Case, no_new_graphs: Callable[[], None]) -> None:
    """Not for other settings and sizes, once there is a kernel for each kind of step."""
    vary(case, 0.0)
    no_new_graphs()
    vary(case, 0.001)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_copies_share_kernels(case: Case, no_new_graphs: Callable[[], None]) -> None:
    optimizer = wrapped(case, True)
    optimizer.rule = Alternating()
    train(optimizer, STEPS[:6])
    no_new_graphs()
    train(copy.deepcopy(optimizer), STEPS[:6])


@pytest.mark.slow
@pytest.mark.parametrize("shapes", [[(2000, 2000)], [(1000,)] * 1000], ids=["large", "small"])
@pytest.mark.parametrize("case", COMPILED.values(), ids=str)
def test_temporary_memory(case: Case, shapes: list[tuple[int, ...]]) -> None:
    """Far less than the 16 MB of the parameters."""
    params = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    for param in params:
        param.grad = torch.zeros_like(param)
    with block_elements(2**18):
        optimizer = MoMoWrapper(case.make(params), compiled=True)
        for _ in range(2):
            optimizer.step(loss=1.0)
        assert peak_mib(optimizer) < (1.0 if len(shapes) == 1 else 10.0)


@pytest.mark.slow
def test_all_kinds_of_parameters_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a kernel for each dtype and for each of the sizes 0, 1 and more."""
    fresh = functools.cache(kernels._kernel.__wrapped__)
    monkeypatch.setattr(kernels, "_kernel", fresh)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for size in (0, 1, 7):
            params = [[torch.ones(size, dtype=dtype, requires_grad=True)] for _ in range(2)]
            train(wrapped(FEW[0], True, params=params), STEPS[:2])

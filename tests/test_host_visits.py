"""Nothing in a step waits for the device: the wrapper reads no tensor that the base does not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from momo_wrap import MoMo, MoMoStar, MoMoWrapper, StepRule
from tests.cases import ALGORITHMS, FLAG_COMBINATIONS, Case
from tests.problems import Problem, take_step

VISITS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "unique"}


class HostVisits(TorchDispatchMode):
    """Counts operations that bring values of tensors to the host.

    Args:
        base: An optimizer, whose counters on the CPU may be read: their values are there already,
            wherever the parameters are.
    """

    def __init__(self, base: Optimizer | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()
        self._base = base

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in VISITS and not any(args[0].is_set_to(own) for own in counters(self._base)):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def counters(base: Optimizer | None) -> list[Tensor]:
    """What an optimizer counts with on the CPU."""
    entries = [] if base is None else list(base.state.values())
    found = [entry.get(name) for entry in entries for name in ("step", "mu_product")]
    return [count for count in found if isinstance(count, Tensor) and not count.dim()]


def visits(case: Case, rule: StepRule | None) -> Counter[str]:
    """Host synchronizations in five steps; bare if there is no rule."""
    problem = Problem(sign=case.sign)
    bare = case.make(problem.params, weight_decay=0.01)
    optimizer = bare if rule is None else MoMoWrapper(bare, rule)
    counts: Counter[str] = Counter()
    for _ in range(5):
        loss = problem.gradients()
        with HostVisits(bare) as mode:
            take_step(optimizer, loss)
        counts += mode.seen
    return counts


def has_tensor_lr(case: Case) -> bool:
    return isinstance(case.settings["lr"], torch.Tensor)


def test_counter_sees_visits() -> None:
    with HostVisits() as mode:
        value = torch.ones(2).sum()
        assert value.item() == 2.0
        assert bool(value > 1)
        assert float(value) == 2.0
    assert mode.seen["_local_scalar_dense"] == 3


# MoMoStar synchronizes where MoMo does, and for its memory.
@pytest.mark.parametrize("case", FLAG_COMBINATIONS, ids=str)
def test_wrapped_visits_the_host_as_often_as_bare(case: Case) -> None:
    """Some bare forms read a learning rate that is a tensor; the wrapper does not."""
    wrapped, bare = visits(case, MoMoStar()), visits(case, None)
    assert wrapped <= bare if has_tensor_lr(case) else wrapped == bare


@pytest.mark.parametrize(
    ("case", "rule"),
    [*((case, MoMoStar()) for case in ALGORITHMS), (ALGORITHMS[0], MoMo())],
    ids=str,
)
def test_runs_where_no_visit_is_possible(case: Case, rule: StepRule) -> None:
    """Tensors on the meta device have no values, so that reading one raises."""
    params = [torch.empty(shape, device="meta", requires_grad=True) for shape in [(70, 30), (3,)]]
    for param in params:
        param.grad = torch.empty_like(param)
    optimizer = MoMoWrapper(case.make(params, weight_decay=0.01), rule)
    for _ in range(3):
        optimizer.step(loss=torch.empty((), device="meta"))
    assert optimizer.last_step is not None
    assert optimizer.last_step.theta.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        optimizer.last_step.theta.item()

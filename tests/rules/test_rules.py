"""Rules by hand; their laws are in tests/property."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from momo_wrap import ModelStats, MoMo, MoMoStar, StepRule, TrustedMoMo
from momo_wrap.research import NGN, MovingTarget, ScheduledBound, SPSMax
from momo_wrap.rules import truncate
from tests.problems import last_step
from tests.test_wrapper import one_parameter


def number(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype)


STATS = ModelStats(
    loss=number(4.0),
    mean_loss=number(4.0),
    value=number(4.0),
    value_after_decay=number(1.0),
    predicted_decrease=number(8.0),
    gradient_decrease=number(16.0),
    lower_bound=0.0,
    learning_rate=number(1.0),
)


def test_momo_star_by_hand() -> None:
    """(6) and (7) by hand: f̄ + e = 4, h = 1, f* = 2."""
    decision = MoMoStar()(STATS, {"lower_bound": number(2.0)})
    assert decision.lower_bound == 0.5
    assert decision.theta == 0.0625
    assert decision.memory["lower_bound"] == 3.5


@pytest.mark.parametrize("bound", [1, Fraction(1, 1)])
def test_bound_becomes_a_float(bound: Any) -> None:
    assert repr(MoMo(bound)) == "MoMo(lower_bound=1.0)"


def test_record_has_the_bound_that_was_aimed_at() -> None:
    """The record holds the bound that the step used: (7) of the step before."""
    _, optimizer = one_parameter(lr=0.01)
    optimizer.rule = MoMoStar()
    optimizer.step(loss=2.0)
    assert last_step(optimizer).lower_bound == 0.0
    optimizer.step(loss=2.0)
    assert last_step(optimizer).lower_bound == pytest.approx(2.0 - 0.16 / 2)


def test_predicted_decrease_is_positive_for_ascent() -> None:
    """The record's predicted decrease is positive where the base's step improves the objective."""
    _, optimizer = one_parameter(lr=0.5, maximize=True)
    optimizer.rule = MoMo(math.inf)
    optimizer.step(loss=2.0)
    assert last_step(optimizer).predicted_decrease == 8.0


@pytest.mark.parametrize("bound", [0.0, -math.inf])
def test_a_gradient_that_is_nan_is_never_a_full_step(bound: float) -> None:
    """A gradient that is NaN while the loss is finite shows in θ, also without a bound."""
    x, optimizer = one_parameter(lr=0.1)
    optimizer.rule = MoMo(bound)
    x.grad = torch.tensor([math.nan], dtype=torch.float64)
    optimizer.step(loss=1.0)
    assert last_step(optimizer).theta.isnan()


def expected_uncapped(
    value: float, decrease: float, bound: float, rounded: Callable[[float], float]
) -> float:
    """Equation (3) before θ is clamped to 1, with the edge cases of docstring and page."""
    if not math.isfinite(value) or math.isnan(decrease) or math.isnan(bound):
        return math.nan
    gap = rounded(value - bound)
    if gap <= 0:
        return 0.0
    if gap == math.inf or decrease <= 0:
        return math.inf
    return rounded(gap / decrease)


SMALL, LARGE = [0.0, 0.3, 1.0, 7.0], [1e-320, 1e-40, 3e38, 1e308, math.inf, math.nan]
SPECIAL = [sign * value for value in SMALL + LARGE for sign in (1, -1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("of_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("by_group", [False, True], ids=["0-dim", "groups"])
def test_truncation_of_special_values(by_group: bool, of_tensor: bool, dtype: torch.dtype) -> None:
    def rounded(value: float) -> float:
        return float(number(value, dtype))

    special = [rounded(value) for value in SPECIAL]
    pairs = list(itertools.product(special, repeat=2))
    values, decreases = torch.tensor(pairs, dtype=dtype).unbind(dim=1)
    for bound in special[:: 1 if by_group else 5]:
        aim = number(bound, dtype) if of_tensor else bound
        if by_group:
            seen = replace(STATS, value_after_decay=values, predicted_decrease=decreases)
            theta, uncapped = truncate(seen, aim)
        else:
            seen_one_by_one = (
                replace(STATS, value_after_decay=value, predicted_decrease=decrease)
                for value, decrease in zip(values, decreases, strict=True)
            )
            found = [torch.stack(truncate(seen, aim)) for seen in seen_one_by_one]
            theta, uncapped = torch.stack(found).unbind(dim=1)
        wanted = [expected_uncapped(value, drop, bound, rounded) for value, drop in pairs]
        expected = torch.tensor(wanted, dtype=dtype)
        torch.testing.assert_close(uncapped, expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(theta, expected.clamp(max=1.0), rtol=0, atol=0, equal_nan=True)


class Operations(TorchDispatchMode):
    """Counts tensor operations, views included."""

    count = 0

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("rule", "most"), [(MoMo(), 11), (MoMoStar(), 20), (TrustedMoMo(), 52)], ids=repr
)
def test_number_of_operations(rule: StepRule, most: int) -> None:
    """The cost of a step of a small model; for MoMo it is only the truncation."""
    memory = {name: number(value) for name, value in rule.initial_memory(0.0).items()}
    memory = dict(rule(STATS, memory).memory)
    with Operations() as operations:
        rule(STATS, memory)
    assert operations.count <= most


SET: dict[str, tuple[StepRule, str, Any, type[Exception], str]] = {
    "a bound that is NaN": (
        MoMo(1.0),
        "lower_bound",
        math.nan,
        ValueError,
        "MoMo got lower_bound=nan, expected a number below every loss, or -math.inf for no bound. "
        "Write MoMo(lower_bound=0.0).",
    ),
    "a bound that is a tensor": (
        NGN(1.0),
        "lower_bound",
        torch.zeros(()),
        TypeError,
        "lower_bound must be a Python number, got Tensor. Write NGN(lower_bound=0.0).",
    ),
    "an infinite bound": (MovingTarget(1.0), "lower_bound", -math.inf, ValueError, "is finite"),
    "a window": (TrustedMoMo(), "window", 1.0, ValueError, "of at least 2 that is finite"),
    "a factor": (SPSMax(), "c", "2", TypeError, "c must be a Python number"),
    "a speed": (MovingTarget(), "speed", 1, ValueError, "MovingTarget got speed=1, expected"),
    "a schedule": (
        ScheduledBound(abs),
        "schedule",
        0.5,
        TypeError,
        "schedule must be a function of the step count, got float.",
    ),
}


@pytest.mark.parametrize(("rule", "name", "value", "error", "message"), SET.values(), ids=SET)
def test_settings_are_checked_when_they_are_set(
    rule: StepRule, name: str, value: Any, error: type[Exception], message: str
) -> None:
    before = repr(rule)
    with pytest.raises(error, match=re.escape(message)):
        setattr(rule, name, value)
    assert repr(rule) == before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda rule: pickle.loads(pickle.dumps(rule))])
def test_settings_that_are_set_are_used_shown_and_copied(copied: Callable[[Any], Any]) -> None:
    rule = MovingTarget(speed=0)
    rule.lower_bound, rule.pull = 1, 0.5
    other = copied(rule)
    assert repr(other) == "MovingTarget(lower_bound=1.0, speed=0.0, pull=0.5)"
    other.pull = 1.0
    assert (rule.pull, other.pull) == (0.5, 1.0)
    memory = {"target": number(3.0)}
    seen = replace(STATS, lower_bound=1.0)
    assert float(other(seen, memory).memory["target"]) == 1.0
    assert float(rule(seen, memory).memory["target"]) == 2.0


def test_a_rule_with_a_constructor_of_its_own_has_a_bound() -> None:
    class Own(MoMo):
        def __init__(self) -> None:
            self.name = "own"

    assert repr(Own()) == "Own(lower_bound=0.0, name='own')"

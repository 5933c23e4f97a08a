"""Rules by hand; their laws are in tests/property."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from momo_wrap import ModelStats, MoMo, MoMoStar
from tests.problems import last_step
from tests.test_wrapper import one_parameter


def test_momo_star_by_hand() -> None:
    """(6) and (7) by hand: f̄ + e = 4, h = 1, f* = 2."""

    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64)

    stats = ModelStats(
        loss=number(4.0),
        mean_loss=number(4.0),
        value=number(4.0),
        value_after_decay=number(1.0),
        predicted_decrease=number(8.0),
        gradient_decrease=number(16.0),
        lower_bound=0.0,
        learning_rate=number(1.0),
    )
    decision = MoMoStar()(stats, {"lower_bound": number(2.0)})
    assert decision.lower_bound == 0.5
    assert decision.theta == 0.0625
    assert decision.memory["lower_bound"] == 3.5


@pytest.mark.parametrize("bound", [1, Fraction(1, 1)])
def test_bound_becomes_a_float(bound: Any) -> None:
    assert repr(MoMo(bound)) == "MoMo(lower_bound=1.0)"


def test_record_has_the_bound_that_was_aimed_at() -> None:
    """The record holds the bound that the step aimed at: (7) of the step before."""
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

"""The averaging coefficients and the model, apart from any optimizer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from momo_wrap import Averaging
from momo_wrap.adapters import StepSums
from momo_wrap.model import MomentumModel


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def fresh(groups: int = 1) -> dict[str, Tensor]:
    """The scalars of each group before the first step."""
    initial = MomentumModel.initial_scalars()
    return {name: float64(*[value] * groups) for name, value in initial.items()}


def sums(decreases: Tensor, shifts: Tensor | None = None) -> StepSums:
    zero = torch.zeros_like(decreases)
    return StepSums(decreases, decreases, zero if shifts is None else shifts, zero, zero)


def test_coefficients_that_are_tensors_are_never_read() -> None:
    """Values on the meta device can't be read, so that a comparison would raise."""
    beta, loss = torch.empty((), device="meta"), torch.empty((), device="meta")
    scalars = {name: torch.empty(2, device="meta") for name in MomentumModel.initial_scalars()}
    averagings = [
        Averaging(beta, 1 - beta, bias_corrected=True),
        Averaging(0.9, 1.0, first_weight=beta, buffer_scale=beta, grad_scale=beta),
    ]
    model = MomentumModel.of(scalars, averagings, loss)
    assert model.total(sums(torch.empty(2, device="meta"))).value.is_meta


@pytest.mark.parametrize("dampening", [0.0, 0.3])
def test_first_weight_keeps_all_digits(dampening: float) -> None:
    """F and R of two steps, in float64 whatever the default dtype is."""
    averaging = Averaging(0.9, 1.0 - dampening, first_weight=1.0)
    scalars = fresh()
    for loss in (3.0, 2.0):
        model = MomentumModel.of(scalars, [averaging], torch.tensor(loss, dtype=torch.float64))
        scalars = model.scalars_after(float64(0.0))
    assert float(scalars["loss_sum"]) == 0.9 * 3.0 + (1.0 - dampening) * 2.0
    assert float(scalars["weight_sum"]) == 0.9 + (1.0 - dampening)


def two_steps(averagings: list[Averaging], losses: tuple[float, float]) -> MomentumModel:
    scalars = fresh(len(averagings))
    for loss in losses:
        model = MomentumModel.of(scalars, averagings, torch.tensor(loss, dtype=torch.float64))
        scalars = model.scalars_after(float64(*[0.5] * len(averagings)))
    return model


MIXED = [
    Averaging(0.0, 1.0),
    Averaging(0.5, 1.0),
    Averaging(0.5, 0.5, bias_corrected=True),
    Averaging(0.5, 0.25, first_weight=1.0, buffer_scale=0.5, grad_scale=2.0),
]


def test_groups_that_average_differently_by_hand() -> None:
    """Losses 4 then 2, and ⟨p B, Δ⟩ = 1/2 between them."""
    model = two_steps(MIXED, (4.0, 2.0))
    #  F = 2 | 4/2 + 2 | 1 + 1 | 4/2 + 2/4;  R = 1 | 3/2 | 3/4 | 3/4;  p = 1 | 1 | 4/3 | 1/2
    #  f̄/ρ = 2 | 4 / (3/2) | (8/3) / 1 | (5/4 + 4) / (3/8 + 2)
    torch.testing.assert_close(model.mean_loss, float64(2.0, 8 / 3, 8 / 3, 5.25 / 2.375))
    #  E = a Δ / p of the step before, whose p is 1 | 1 | 2 | 1/2
    torch.testing.assert_close(
        model.mean_displacement, float64(0.0, 0.25 / 1.5, 0.125 * 4 / 3, 0.5 * 0.5 / 2.375)
    )
    torch.testing.assert_close(model.normaliser, float64(1.0, 1.5, 1.0, 2.375))
    # Shares of N/ρ = 1 | 0 | 3 | -2, the last of which does not count.
    found = model.total(sums(float64(1.0, 0.0, 3.0, -4.75), float64(0.0, -0.3, 0.0, 0.0)))
    value = 0.25 * 2.0 + 0.75 * 8 / 3 + float(model.mean_displacement.sum())
    assert float(found.value) == pytest.approx(value)
    assert float(found.value_after_decay) == pytest.approx(value - 0.3 / 1.5)
    assert float(found.predicted_decrease) == pytest.approx(1.0 + 0.0 + 3.0 - 2.0)


@pytest.mark.parametrize("averaging", MIXED, ids=str)
@given(
    losses=st.tuples(st.floats(-10, 10), st.floats(-10, 10)),
    decreases=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4),
)
def test_groups_that_average_alike_are_one(
    averaging: Averaging, losses: tuple[float, float], decreases: list[float]
) -> None:
    """(2') is (2) then: only the sum of what the groups contribute counts."""
    one = two_steps([averaging], losses)
    several = two_steps([averaging] * len(decreases), losses)
    parts = float64(*decreases)
    whole, split = one.total(sums(parts.sum().reshape(1))), several.total(sums(parts))
    # `two_steps` gives the displacement to each group; it is that of one group here.
    extra = (len(decreases) - 1) * float(one.mean_displacement)
    assert float(split.value) - extra == pytest.approx(float(whole.value), abs=1e-9)
    assert float(split.predicted_decrease) == pytest.approx(
        float(whole.predicted_decrease), abs=1e-9
    )


@given(
    decreases=st.lists(
        st.one_of(st.floats(-1e3, 1e3), st.just(math.inf), st.just(math.nan)),
        min_size=2,
        max_size=5,
    ),
    losses=st.tuples(st.floats(-10, 10), st.floats(-10, 10)),
)
def test_value_is_between_those_of_the_groups(
    decreases: list[float], losses: tuple[float, float]
) -> None:
    """The shares are weights of a mean, whatever the groups predict."""
    averagings = [MIXED[i % len(MIXED)] for i in range(len(decreases))]
    model = two_steps(averagings, losses)
    mean = float(model.total(sums(float64(*decreases))).value - model.mean_displacement.sum())
    assert float(model.mean_loss.min()) - 1e-9 <= mean <= float(model.mean_loss.max()) + 1e-9


def test_a_group_that_does_not_move_does_not_count() -> None:
    """Its own average of the losses has no share; nor has its displacement, which is 0."""
    model = two_steps([Averaging(0.0, 1.0), Averaging(0.9, 0.1, first_weight=1.0)], (9.0, 1.0))
    found = model.total(sums(float64(0.0, 2.0)))
    expected = model.mean_loss[1] + model.mean_displacement.sum()
    torch.testing.assert_close(found.value, expected)

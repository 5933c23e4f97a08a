"""The averaging coefficients and the model, apart from any optimizer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from momo_wrap import Averaging
from momo_wrap.model import MomentumModel, Start, coefficients_of
from momo_wrap.rules import ModelStats


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def model_of(
    averages: Tensor, averagings: list[Averaging], loss: float, start: Start = Start.RUNNING
) -> MomentumModel:
    coefficients = coefficients_of(averagings, [start] * len(averagings), averages)
    return MomentumModel.of(averages, coefficients, torch.tensor(loss, dtype=torch.float64))


def total(model: MomentumModel, decreases: Tensor, shifts: Tensor | None = None) -> ModelStats:
    """The statistics of a step; without decay, or with its shifts."""
    zero = torch.zeros_like(decreases)
    rows = [decreases, zero] if shifts is None else [decreases, zero, decreases, shifts, zero]
    return model.stats(torch.stack(rows), decreases.new_zeros(()), 0.0, decreases.new_zeros(()))


@pytest.mark.parametrize("start", Start)
def test_coefficients_that_are_tensors_are_never_read(start: Start) -> None:
    """Values on the meta device can't be read, so that a comparison would raise."""
    beta, loss = torch.empty((), device="meta"), torch.empty((), device="meta")
    averagings = [
        Averaging(beta, 1 - beta, bias_corrected=True),
        Averaging(0.9, 1.0, first_weight=beta, buffer_scale=beta, grad_scale=beta),
    ]
    averages = torch.empty(4, 2, device="meta")
    model = MomentumModel.of(averages, coefficients_of(averagings, [start] * 2, averages), loss)
    assert total(model, torch.empty(2, device="meta")).value.is_meta
    assert model.after(torch.empty(2, 2, device="meta"), loss).is_meta


@pytest.mark.parametrize("dampening", [0.0, 0.3])
def test_first_weight_keeps_all_digits(dampening: float) -> None:
    """F and R of two steps, in float64 for any default dtype."""
    averaging = Averaging(0.9, 1.0 - dampening, first_weight=1.0)
    averages = two_steps([averaging], (3.0, 2.0)).averages
    loss_sum, _, loss_weight_sum, weight_sum = averages[:, 0].tolist()
    assert loss_sum == 0.9 * 3.0 + (1.0 - dampening) * 2.0
    assert weight_sum == loss_weight_sum == 0.9 + (1.0 - dampening)


def two_steps(averagings: list[Averaging], losses: tuple[float, float]) -> MomentumModel:
    """The model at the second step, after a first one with ⟨p B, Δ⟩ = 1/2 in each group."""
    fresh = torch.zeros(4, len(averagings), dtype=torch.float64)
    first = model_of(fresh, averagings, losses[0], Start.FRESH)
    moves = float64(*[0.5] * len(averagings))
    averages = first.after(torch.stack([moves, moves]), torch.ones_like(moves))
    return model_of(averages, averagings, losses[1])


@pytest.mark.parametrize("thetas", [0.25, [0.25, 0.5]], ids=["one", "by group"])
def test_displacement_after_a_step_by_hand(thetas: Any) -> None:
    """(5): E grows by θ ⟨p B, s⟩/p, and by the whole of what weight decay moves."""
    model = model_of(
        torch.zeros(4, 2, dtype=torch.float64),
        [Averaging(0.5, 1.0, buffer_scale=2.0), Averaging(0.5, 1.0)],
        3.0,
    )
    sums = torch.zeros(5, 2, dtype=torch.float64)
    sums[1], sums[4] = float64(-4.0, -8.0), float64(-1.0, 0.5)
    after = model.after(sums, torch.tensor(thetas, dtype=torch.float64))
    second = -2.0 if thetas == 0.25 else -4.0
    assert after[1].tolist() == [(-1.0 - 1.0) / 2.0, second + 0.5]
    assert after[[0, 2, 3]].tolist() == [[3.0, 3.0], [1.0, 1.0], [1.0, 1.0]]


def test_a_move_that_overflowed_stays_finite() -> None:
    """Else it would be NaN in later steps; where nothing moved, it does not count at all."""
    averagings = [Averaging(0.5, 1.0), Averaging(0.5, 1.0)]
    model = model_of(torch.zeros(4, 2, dtype=torch.float64), averagings, 3.0)
    sums = torch.full((2, 2), -math.inf, dtype=torch.float64)
    displacement = model.after(sums, float64(1.0, 0.0))[1]
    assert displacement[0] < -1e300
    assert torch.isfinite(displacement).all()
    assert displacement[1] == 0.0


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
    torch.testing.assert_close(model.levels[0], float64(2.0, 8 / 3, 8 / 3, 5.25 / 2.375))
    #  E = a Δ / p of the step before, whose p is 1 | 1 | 2 | 1/2
    torch.testing.assert_close(
        model.levels[1], float64(0.0, 0.25 / 1.5, 0.125 * 4 / 3, 0.5 * 0.5 / 2.375)
    )
    torch.testing.assert_close(model.normalizer, float64(1.0, 1.5, 1.0, 2.375))
    # Shares of N/ρ = 1 | 0 | 3 | -2, the last of which does not count.
    found = total(model, float64(1.0, 0.0, 3.0, -4.75), float64(0.0, -0.3, 0.0, 0.0))
    value = 0.25 * 2.0 + 0.75 * 8 / 3 + float(model.levels[1].sum())
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
    """(2') is (2) then: only the sum over the groups counts."""
    one = two_steps([averaging], losses)
    several = two_steps([averaging] * len(decreases), losses)
    parts = float64(*decreases)
    whole, split = total(one, parts.sum().reshape(1)), total(several, parts)
    # `two_steps` gives the displacement to each group; it is that of one group here.
    extra = (len(decreases) - 1) * float(one.levels[1])
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
    """The shares are weights of a mean, for any predictions of the groups."""
    averagings = [MIXED[i % len(MIXED)] for i in range(len(decreases))]
    model = two_steps(averagings, losses)
    mean = float(total(model, float64(*decreases)).value - model.levels[1].sum())
    assert float(model.levels[0].min()) - 1e-9 <= mean <= float(model.levels[0].max()) + 1e-9


def test_a_group_that_does_not_move_does_not_count() -> None:
    """Its own average of the losses has no share; nor has its displacement, which is 0."""
    model = two_steps([Averaging(0.0, 1.0), Averaging(0.9, 0.1, first_weight=1.0)], (9.0, 1.0))
    found = total(model, float64(0.0, 2.0))
    expected = model.levels[0][1] + model.levels[1].sum()
    torch.testing.assert_close(found.value, expected)

"""With truncation inactive (f* = -inf), the wrapped base is the bare base.

Groups, missing gradients, bfloat16 and the bound at the loss are among the laws in testing.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from momo_wrap import MoMo, MoMoStar, MoMoWrapper
from momo_wrap.rules import WeightDecayForm
from tests.cases import ALGORITHMS, FLAG_COMBINATIONS, Case
from tests.problems import Problem, relative_distance, thetas, trajectory

STEPS = 20  # RAdam's rectification sets in before, and its bias corrections are far from 1


def compare(
    case: Case, dtype: torch.dtype, *, decay: float = 0.1, form: WeightDecayForm | None = None
) -> float:
    """The distance of wrapped and bare trajectories, with weight decay in the base's own form."""

    def bare(params: list[Tensor]) -> Optimizer:
        return case.make(params, weight_decay=decay)

    def wrapped(params: list[Tensor]) -> MoMoWrapper:
        return MoMoWrapper(bare(params), MoMo(-case.sign * math.inf), weight_decay_form=form)

    return relative_distance(
        trajectory(wrapped, STEPS, Problem(dtype, sign=case.sign)).to(torch.complex128),
        trajectory(bare, STEPS, Problem(dtype, sign=case.sign)).to(torch.complex128),
    )


@pytest.mark.parametrize("case", FLAG_COMBINATIONS, ids=str)
def test_every_flag_combination(case: Case) -> None:
    assert compare(case, torch.float64) < 1e-12


@pytest.mark.parametrize("case", [c for c in FLAG_COMBINATIONS if c.takes_complex], ids=str)
def test_complex_parameters(case: Case) -> None:
    assert compare(case, torch.complex128) < 1e-12


@pytest.mark.parametrize("case", ALGORITHMS, ids=str)
def test_float32(case: Case) -> None:
    assert compare(case, torch.float32) < 1e-5


@pytest.mark.parametrize("case", [c for c in ALGORITHMS if c.takes_float16], ids=str)
def test_float16(case: Case) -> None:
    assert compare(case, torch.float16) < 1e-2


@pytest.mark.parametrize("form", ["decoupled", "scaled"])
@pytest.mark.parametrize(
    "case",
    [c for c in FLAG_COMBINATIONS if c.kind is AdamW],
    ids=str,
)
def test_decay_is_that_of_adamw(case: Case, form: WeightDecayForm) -> None:
    assert compare(case, torch.float64, decay=0.1, form=form) < 1e-12


def test_momo_star_without_a_safeguard_still_truncates() -> None:
    """MoMo* estimates a bound of its own: -inf as a safeguard does not turn it off."""

    def wrapped(params: list[Tensor]) -> MoMoWrapper:
        return MoMoWrapper(Adam(params, lr=10.0), MoMoStar(-math.inf))

    assert (thetas(wrapped, 20) < 1).any()

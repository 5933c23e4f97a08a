"""With truncation inactive (f* = -inf), the wrapped base is the bare base."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap import MoMo, MoMoStar, MoMoWrapper, StepRule
from momo_wrap.rules import WeightDecayForm
from tests.cases import ALGORITHMS, FLAG_COMBINATIONS, Case
from tests.problems import Problem, relative_distance, trajectory

STEPS = 50
# Tolerance and number of steps: trajectories that are rounded so coarsely part in the end.
LOW_PRECISION = {torch.float32: (1e-5, STEPS), torch.bfloat16: (5e-2, 25)}


def unbounded(case: Case, rule: StepRule | None = None) -> StepRule:
    """A rule that never cuts the steps of a case."""
    return MoMo(-case.sign * math.inf) if rule is None else rule


def compare(
    case: Case,
    dtype: torch.dtype,
    *,
    decay: float = 0.0,
    form: WeightDecayForm = "decoupled",
    steps: int = STEPS,
) -> float:
    """The distance of wrapped and bare trajectories."""

    def bare(params: list[Tensor]) -> Optimizer:
        return case.make(params, weight_decay=decay) if decay else case.make(params)

    def wrapped(params: list[Tensor]) -> MoMoWrapper:
        return MoMoWrapper(bare(params), unbounded(case), weight_decay=form)

    return relative_distance(
        trajectory(wrapped, steps, Problem(dtype, sign=case.sign)).to(torch.complex128),
        trajectory(bare, steps, Problem(dtype, sign=case.sign)).to(torch.complex128),
    )


@pytest.mark.parametrize("case", FLAG_COMBINATIONS, ids=str)
def test_every_flag_combination(case: Case) -> None:
    assert compare(case, torch.float64) < 1e-12


@pytest.mark.parametrize("case", [c for c in FLAG_COMBINATIONS if c.takes_complex], ids=str)
def test_complex_parameters(case: Case) -> None:
    assert compare(case, torch.complex128) < 1e-12


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
@pytest.mark.parametrize("case", ALGORITHMS, ids=str)
def test_low_precision(case: Case, dtype: torch.dtype) -> None:
    tolerance, steps = LOW_PRECISION[dtype]
    assert compare(case, dtype, steps=steps) < tolerance


@pytest.mark.parametrize("case", [c for c in ALGORITHMS if c.takes_float16], ids=str)
def test_float16(case: Case) -> None:
    assert compare(case, torch.float16) < 1e-2


@pytest.mark.parametrize("form", ["decoupled", "scaled"])
@pytest.mark.parametrize(
    "case",
    [c for c in FLAG_COMBINATIONS if c.kind is torch.optim.AdamW],
    ids=str,
)
def test_decay_is_that_of_adamw(case: Case, form: WeightDecayForm) -> None:
    assert compare(case, torch.float64, decay=0.1, form=form) < 1e-12


@pytest.mark.parametrize("case", ALGORITHMS, ids=str)
def test_momo_star_without_a_safeguard_still_truncates(case: Case) -> None:
    """MoMo* estimates a bound of its own: -inf as a safeguard does not turn it off."""
    problem = Problem(sign=case.sign)

    def wrapped(params: list[Tensor]) -> MoMoWrapper:
        return MoMoWrapper(case.make(params, lr=10.0), MoMoStar(-math.inf))

    cut = [o for o in problem.train(wrapped, 20) if o.last_step.theta < 1]  # type: ignore[attr-defined]
    assert cut


@pytest.mark.parametrize("case", ALGORITHMS, ids=str)
def test_bound_at_the_loss_stops_the_base(case: Case) -> None:
    problem = Problem(sign=case.sign)
    before = [p.detach().clone() for p in problem.params]
    loss = problem.gradients()
    optimizer = MoMoWrapper(case.make(problem.params), MoMo(float(loss)))
    optimizer.step(loss=loss)
    assert optimizer.last_step is not None
    assert float(optimizer.last_step.theta) < 1e-14
    for old, new in zip(before, problem.params, strict=True):
        torch.testing.assert_close(old, new, rtol=0.0, atol=1e-14)

"""Trajectories against momo-opt 0.1.0, the authors' own implementation, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import momo
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from momo_wrap import MoMo, MoMoStar, MoMoWrapper, StepRule
from tests.problems import Problem, relative_distance, thetas, trajectory

STEPS = 200
RULES = {False: MoMo, True: MoMoStar}
DECAYS = [0.0, 0.1]
# Four decades for each, from where nothing is cut to where every step is.
SGD_RATES = [1e-3, 1e-2, 1e-1, 1.0, 10.0]
ADAM_RATES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]

# Where every step is cut hard, Adam's preconditioner and θ feed each other's rounding: two bare
# runs of momo-opt whose initial parameters differ by 1e-15 end as far apart as those compared
# here (see `test_divergence_is_that_of_the_dynamics`). Steps until then are compared all the same.
CHAOTIC_STEPS = 60


@pytest.fixture(autouse=True)
def _double_default() -> Iterator[None]:
    """momo-opt makes some of its scalars in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("weight_decay", DECAYS)
@pytest.mark.parametrize("lr", SGD_RATES)
@pytest.mark.parametrize("estimate_bound", [False, True], ids=["MoMo", "MoMoStar"])
def test_sgd(lr: float, weight_decay: float, estimate_bound: bool) -> None:
    def theirs(params: list[Tensor]) -> momo.Momo:
        return momo.Momo(
            params, lr=lr, weight_decay=weight_decay, beta=0.9, use_fstar=estimate_bound
        )

    def ours(params: list[Tensor]) -> MoMoWrapper:
        base = SGD(params, lr=lr, momentum=0.9, dampening=0.9, weight_decay=weight_decay)
        return MoMoWrapper(base, RULES[estimate_bound]())

    assert relative_distance(trajectory(ours, STEPS), trajectory(theirs, STEPS)) < 1e-10


@pytest.mark.parametrize("form", ["proximal", "decoupled"])
@pytest.mark.parametrize("weight_decay", DECAYS)
@pytest.mark.parametrize("lr", ADAM_RATES)
@pytest.mark.parametrize("estimate_bound", [False, True], ids=["MoMo", "MoMoStar"])
@pytest.mark.parametrize("base", [Adam, AdamW])
def test_adam(
    base: type[Adam], lr: float, weight_decay: float, estimate_bound: bool, form: str
) -> None:
    def theirs(params: list[Tensor]) -> momo.MomoAdam:
        return momo.MomoAdam(
            params,
            lr=lr,
            weight_decay=weight_decay,
            use_fstar=estimate_bound,
            divide=form == "proximal",
        )

    def ours(params: list[Tensor]) -> MoMoWrapper:
        bare = base(params, lr=lr, weight_decay=weight_decay)
        return MoMoWrapper(bare, RULES[estimate_bound](), weight_decay=form)  # type: ignore[arg-type]

    steps = CHAOTIC_STEPS if lr == 1.0 else STEPS
    assert relative_distance(trajectory(ours, steps), trajectory(theirs, steps)) < 1e-10


def test_phases_all_occur() -> None:
    """The learning rates above cover runs that are never, sometimes and always cut."""

    def steps_cut(
        make: Callable[[list[Tensor], float], Optimizer], lr: float, rule: StepRule
    ) -> int:
        return int((thetas(lambda params: MoMoWrapper(make(params, lr), rule), STEPS) < 1).sum())

    def sgd(params: list[Tensor], lr: float) -> SGD:
        return SGD(params, lr=lr, momentum=0.9, dampening=0.9)

    for make, rates in ((sgd, SGD_RATES), (Adam, ADAM_RATES)):
        counts = [steps_cut(make, lr, rule) for lr in rates for rule in (MoMo(), MoMoStar())]
        assert min(counts) == 0
        assert any(0.1 * STEPS < count < 0.9 * STEPS for count in counts)
        assert max(counts) > 0.9 * STEPS


def test_divergence_is_that_of_the_dynamics() -> None:
    """At lr 1, momo-opt itself departs from momo-opt by more than 1e-10 after a nudge of 1e-15."""

    def nudged() -> Problem:
        problem = Problem()
        with torch.no_grad():
            problem.params[0][0, 0] += 1e-15
        return problem

    def theirs(params: list[Tensor]) -> momo.MomoAdam:
        return momo.MomoAdam(params, lr=1.0)

    apart = relative_distance(trajectory(theirs, STEPS, nudged()), trajectory(theirs, STEPS))
    assert apart > 1e-10

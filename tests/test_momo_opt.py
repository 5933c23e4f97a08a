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

# At the highest learning rates preconditioner and θ feed each other's rounding: further on, a nudge
# of one unit in the last place grows to the tolerance.
STEPS = 40
RULES = {False: MoMo, True: MoMoStar}
# Four decades for each, from no shortened step to every step.
SGD_RATES = [1e-3, 1e-2, 1e-1, 1.0, 10.0]
ADAM_RATES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
# With weight decay, where few steps are shortened, and where most are.
OF_SGD = [*((lr, 0.0) for lr in SGD_RATES), (1e-1, 0.1), (10.0, 0.1)]
# Without decay its form is of no account.
OF_ADAM = [
    *((Adam, lr, 0.0, "proximal") for lr in ADAM_RATES),
    *((Adam, lr, 0.1, form) for lr in (1e-2, 1.0) for form in ("proximal", "decoupled")),
    *((AdamW, 1e-2, 0.1, form) for form in ("proximal", "decoupled")),
]


@pytest.fixture(autouse=True)
def _double_default() -> Iterator[None]:
    """momo-opt makes some of its scalars in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("lr", "weight_decay"), OF_SGD)
@pytest.mark.parametrize("estimate_bound", [False, True], ids=["MoMo", "MoMoStar"])
def test_sgd(lr: float, weight_decay: float, estimate_bound: bool) -> None:
    def theirs(params: list[Tensor]) -> momo.Momo:
        return momo.Momo(
            params, lr=lr, weight_decay=weight_decay, beta=0.9, use_fstar=estimate_bound
        )

    def ours(params: list[Tensor]) -> MoMoWrapper:
        base = SGD(params, lr=lr, momentum=0.9, dampening=0.9, weight_decay=weight_decay)
        return MoMoWrapper(base, RULES[estimate_bound](), weight_decay_form="proximal")

    assert relative_distance(trajectory(ours, STEPS), trajectory(theirs, STEPS)) < 1e-10


@pytest.mark.parametrize(("base", "lr", "weight_decay", "form"), OF_ADAM)
@pytest.mark.parametrize("estimate_bound", [False, True], ids=["MoMo", "MoMoStar"])
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
        return MoMoWrapper(bare, RULES[estimate_bound](), weight_decay_form=form)  # type: ignore[arg-type]

    assert relative_distance(trajectory(ours, STEPS), trajectory(theirs, STEPS)) < 1e-10


def test_phases_all_occur() -> None:
    """The learning rates above cover runs that are never, sometimes and always shortened."""

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


# Over which a drift would be seen. Towards a bound that is within reach the dynamics contract, and
# rounding with them, even if most steps are shortened.
LONG, BOUND = 200, 0.5
LONG_RUNS = [
    (SGD, 1e-1, 0.02),
    (SGD, 1.0, 0.3),
    (SGD, 10.0, 0.7),
    (Adam, 1e-2, 0.0),
    (Adam, 1e-1, 0.2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("base", "lr", "cut"), LONG_RUNS)
def test_long_runs(base: type[Optimizer], lr: float, cut: float) -> None:
    """As far apart as rounding: a nudge of one unit in the last place stays below 1e-13."""

    def theirs(params: list[Tensor]) -> Optimizer:
        if base is SGD:
            return momo.Momo(params, lr=lr, beta=0.9, lb=BOUND)  # type: ignore[no-any-return]
        return momo.MomoAdam(params, lr=lr, lb=BOUND)  # type: ignore[no-any-return]

    def ours(params: list[Tensor]) -> MoMoWrapper:
        if base is SGD:
            return MoMoWrapper(SGD(params, lr=lr, momentum=0.9, dampening=0.9), MoMo(BOUND))
        return MoMoWrapper(Adam(params, lr=lr), MoMo(BOUND))

    def nudged() -> Problem:
        problem = Problem()
        with torch.no_grad():
            for param in problem.params:
                param.copy_(torch.nextafter(param, param + 1.0))
        return problem

    path = trajectory(ours, LONG)
    assert relative_distance(trajectory(ours, LONG, nudged()), path) < 1e-13
    assert relative_distance(trajectory(theirs, LONG), path) < 1e-10
    fractions = thetas(ours, LONG)
    assert ((fractions > 0) & (fractions < 1)).double().mean() >= cut

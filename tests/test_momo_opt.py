"""Trajectories against momo-opt 0.1.0, the authors' own implementation, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import momo
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from momo_wrap import MoMo, MoMoStar, MoMoWrapper, StepRule
from tests.problems import relative_distance, thetas, trajectory

# At the highest learning rates preconditioner and θ feed each other's rounding: further on, a nudge
# of one unit in the last place grows to the tolerance.
STEPS = 40
RULES = {False: MoMo, True: MoMoStar}
DECAYS = [0.0, 0.1]
# Without decay its form is of no account.
DECAYS_OF_ADAM = [(0.0, "proximal"), (0.1, "proximal"), (0.1, "decoupled")]
# Four decades for each, from where nothing is cut to where every step is.
SGD_RATES = [1e-3, 1e-2, 1e-1, 1.0, 10.0]
ADAM_RATES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]


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


@pytest.mark.parametrize(("weight_decay", "form"), DECAYS_OF_ADAM)
@pytest.mark.parametrize(
    ("base", "lr"), [*((Adam, lr) for lr in ADAM_RATES), (AdamW, 1e-2), (AdamW, 1.0)]
)
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

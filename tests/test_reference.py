"""Trajectories against the NumPy float64 reference, which is written with ⟨d, x⟩ and γ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from momo_wrap import MoMo, MoMoStar, MoMoWrapper
from tests.problems import Problem, flat, last_step
from tests.reference import AdamBase, Array, ReferenceGroup, ReferenceMoMo, SGDBase

STEPS = 25
BOUND, FLOOR = 1.0, 0.01  # the loss soon comes close to the first

Base = tuple[Callable[..., Optimizer], Callable[[], SGDBase | AdamBase]]
BASES: dict[str, Base] = {
    "SGD": (SGD, SGDBase),
    "SGD-momentum": (lambda p: SGD(p, momentum=0.9), lambda: SGDBase(0.9)),
    "SGD-dampening": (
        lambda p: SGD(p, momentum=0.8, dampening=0.3),
        lambda: SGDBase(0.8, dampening=0.3),
    ),
    "SGD-nesterov": (
        lambda p: SGD(p, momentum=0.9, nesterov=True),
        lambda: SGDBase(0.9, nesterov=True),
    ),
    "Adam": (lambda p: Adam(p, betas=(0.8, 0.9)), lambda: AdamBase(0.8, 0.9)),
    "Adam-amsgrad": (
        lambda p: Adam(p, amsgrad=True, eps=1e-4),
        lambda: AdamBase(amsgrad=True, eps=1e-4),
    ),
}
# Learning rate and weight decay of the two groups.
SETTINGS = {
    "small": ((1e-3, 0.0), (3e-3, 0.0)),
    "middle": ((0.03, 0.01), (0.1, 0.0)),
    "large": ((0.3, 0.1), (1.0, 0.3)),
}


def numpy_vector(tensors: Sequence[Tensor]) -> Array:
    vector: Array = flat(tensors).numpy().copy()
    return vector


# The bases here add their own decay to the gradients.
@pytest.mark.parametrize("form", ["proximal", "decoupled", "scaled", "base"])
@pytest.mark.parametrize("estimate_bound", [False, True], ids=["MoMo", "MoMoStar"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("make_base", "make_reference"), BASES.values(), ids=BASES)
def test_two_groups(
    make_base: Callable[..., Optimizer],
    make_reference: Callable[[], SGDBase | AdamBase],
    settings: tuple[tuple[float, float], tuple[float, float]],
    estimate_bound: bool,
    form: str,
) -> None:
    problem = Problem()
    halves = problem.params[:2], problem.params[2:]
    groups = [
        {"params": half, "lr": lr, "weight_decay": decay}
        for half, (lr, decay) in zip(halves, settings, strict=True)
    ]
    rule = MoMoStar(FLOOR) if estimate_bound else MoMo(BOUND)
    optimizer = MoMoWrapper(make_base(groups), rule, weight_decay_form=form)  # type: ignore[arg-type]
    reference = ReferenceMoMo(
        [
            ReferenceGroup(numpy_vector(half), lr, decay, make_reference())
            for half, (lr, decay) in zip(halves, settings, strict=True)
        ],
        lower_bound=FLOOR if estimate_bound else BOUND,
        estimate_bound=estimate_bound,
        form="coupled" if form == "base" else form,
    )
    cut = []
    for step in range(STEPS):
        # Both move on from the library's parameters, so that rounding is not amplified by the
        # dynamics and a wrong formula shows in the step where it acts.
        for group, half in zip(reference.groups, halves, strict=True):
            np.testing.assert_allclose(group.x, numpy_vector(half), rtol=1e-9, atol=1e-11)
            group.x = numpy_vector(half)
        loss = problem.gradients()
        gradients = [numpy_vector([p.grad for p in half if p.grad is not None]) for half in halves]
        optimizer.step(loss=loss)
        reference.step(float(loss), gradients)
        record = last_step(optimizer)
        assert float(record.theta) == pytest.approx(reference.theta, abs=1e-9), step
        assert float(record.lower_bound) == pytest.approx(reference.aimed_at, abs=1e-9), step
        cut.append(0 < reference.theta < 1)
    assert any(cut) or settings is SETTINGS["small"]

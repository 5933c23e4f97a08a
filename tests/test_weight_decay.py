"""Weight decay that is scaled with the step, and which form of decay a wrapper applies.

Trajectories against a NumPy reference are in test_reference, compiled passes in
fast/test_engine, and the bare AdamW in test_reduction.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from lion_pytorch import Lion
from torch import Tensor
from torch.optim import SGD, Adagrad, AdamW, NAdam, Optimizer, RAdam, RMSprop

from momo_wrap import MoMo, MoMoStar, MoMoWrapper, ProposingAdapter, StepRule, TrustedMoMo
from momo_wrap.adapters import LionAdapter
from momo_wrap.rules import WeightDecayForm
from tests.problems import (
    Problem,
    flat,
    kept,
    last_step,
    relative_distance,
    thetas,
    trajectory,
)

BOUND = 0.05
DECAY = 0.02
STEPS = 30

Params = list[Tensor]
AVERAGE = ProposingAdapter("exp_avg", beta=0.9)
# Bases whose own step is x - α (u + λ x), and how to read d where the full step is proposed. SGD
# adds λ x to a gradient that it does not average.
OWN_FORM: dict[str, tuple[Callable[..., Optimizer], float, ProposingAdapter]] = {
    "AdamW": (AdamW, 3.0, AVERAGE),
    "AdamW-amsgrad": (lambda p, **s: AdamW(p, amsgrad=True, **s), 3.0, AVERAGE),
    "RAdam": (lambda p, **s: RAdam(p, decoupled_weight_decay=True, **s), 30.0, AVERAGE),
    "Lion": (Lion, 3.0, ProposingAdapter("exp_avg", averaging=LionAdapter().averaging)),
    "SGD": (SGD, 10.0, ProposingAdapter(beta=0.0)),
}


@pytest.mark.filterwarnings("ignore:.*averages no gradients:momo_wrap.MoMoWarning")
@pytest.mark.parametrize("rule", [MoMo(BOUND), MoMoStar(), TrustedMoMo(BOUND)], ids=repr)
@pytest.mark.parametrize(("make", "lr", "adapter"), OWN_FORM.values(), ids=OWN_FORM)
def test_is_the_part_of_a_proposed_step_that_is_taken(
    make: Callable[..., Optimizer], lr: float, adapter: ProposingAdapter, rule: StepRule
) -> None:
    """Equation (8), with the groups' own learning rates and decays."""

    def groups(params: Params) -> list[dict[str, Any]]:
        return [
            {"params": params[:2], "weight_decay": 2 * DECAY / lr},
            {"params": params[2:], "lr": lr / 2, "weight_decay": DECAY},
        ]

    def read(params: Params) -> Optimizer:
        return MoMoWrapper(make(groups(params), lr=lr), rule, weight_decay_form="scaled")

    def proposed(params: Params) -> Optimizer:
        return MoMoWrapper(make(groups(params), lr=lr), rule, adapter=adapter)

    fractions = thetas(read, STEPS)
    assert int(((fractions > 0) & (fractions < 1)).sum()) > STEPS / 3
    assert relative_distance(trajectory(proposed, STEPS), trajectory(read, STEPS)) < 1e-6


def test_by_hand() -> None:
    """With x = 3, g = 4, α = 1, λ = 2: the step is 4 + 6 = 10, the model falls by 40 from 2."""
    x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    x.grad = torch.tensor([4.0], dtype=torch.float64)
    optimizer = MoMoWrapper(SGD([x], lr=1.0, weight_decay=2.0), weight_decay_form="scaled")
    optimizer.step(loss=2.0)
    assert last_step(optimizer).predicted_decrease == 40.0
    assert last_step(optimizer).value_after_decay == 2.0
    assert last_step(optimizer).theta == 0.05
    assert x.item() == 2.5


def test_nothing_decays_where_no_step_is_taken() -> None:
    for form, shrinks in (("proximal", True), ("decoupled", True), ("scaled", False)):
        problem = Problem()
        before = flat(problem.params)
        loss = problem.gradients()
        base = AdamW(problem.params, lr=0.1, weight_decay=0.1)
        optimizer = MoMoWrapper(base, MoMo(1e3), weight_decay_form=form)  # type: ignore[arg-type]
        optimizer.step(loss=loss)
        assert last_step(optimizer).theta == 0.0
        assert (flat(problem.params).norm() < before.norm()) == shrinks


@pytest.mark.parametrize("make", [AdamW, NAdam, SGD], ids=lambda kind: kind.__name__)
def test_without_decay_the_form_is_of_no_account(make: Callable[..., Optimizer]) -> None:
    def wrapped(form: WeightDecayForm) -> Callable[[Params], Optimizer]:
        return lambda p: MoMoWrapper(
            make(p, lr=5.0, weight_decay=0.0), MoMo(BOUND), weight_decay_form=form
        )

    assert torch.equal(trajectory(wrapped("scaled"), 30), trajectory(wrapped("proximal"), 30))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("names", [["lr"], ["weight_decay"], ["lr", "weight_decay"]], ids=str)
def test_settings_that_are_tensors(names: list[str], dtype: torch.dtype) -> None:
    """float64 on the host, as schedulers make them."""

    def wrapped(names: list[str]) -> Callable[[Params], Optimizer]:
        def make(params: Params) -> Optimizer:
            optimizer = MoMoWrapper(AdamW(params, lr=3.0, weight_decay=0.01), TrustedMoMo())
            (group,) = optimizer.param_groups
            for name in names:
                group[name] = torch.tensor(group[name], dtype=torch.float64)
            group["capturable"] = False
            return optimizer

        return make

    found = trajectory(wrapped(names), 30, Problem(dtype))
    expected = trajectory(wrapped([]), 30, Problem(dtype))
    assert relative_distance(found, expected) < (1e-12 if dtype is torch.float64 else 1e-4)


def test_maximising_is_minimising_the_negative() -> None:
    def wrapped(bound: float, maximize: bool) -> Callable[[Params], Optimizer]:
        return lambda p: MoMoWrapper(
            AdamW(p, lr=3.0, weight_decay=0.01, maximize=maximize),
            MoMo(bound),
            weight_decay_form="scaled",
        )

    ascent = trajectory(wrapped(-BOUND, True), 40, Problem(sign=-1.0))
    assert torch.equal(ascent, trajectory(wrapped(BOUND, False), 40))


def test_several_optimizers_are_one_with_as_many_groups() -> None:
    def groups(params: Params) -> list[dict[str, Any]]:
        return [
            {"params": params[:2], "weight_decay": 0.01},
            {"params": params[2:], "lr": 5.0, "weight_decay": 0.02},
        ]

    def joint(params: Params) -> Optimizer:
        bases = [AdamW([group], lr=10.0) for group in groups(params)]
        return MoMoWrapper(bases, TrustedMoMo(BOUND))

    def one(params: Params) -> Optimizer:
        return MoMoWrapper(AdamW(groups(params), lr=10.0), TrustedMoMo(BOUND))

    # The inner products of groups that share a block are summed up in another order.
    assert relative_distance(trajectory(joint, 40), trajectory(one, 40)) < 1e-12


class Scaling(MoMo):
    """A rule of a user with a form of its own."""

    weight_decay_form = "scaled"


def after_a_step(rule: StepRule, form: WeightDecayForm | None) -> Tensor:
    problem = Problem()
    base = SGD(problem.params, lr=3.0, weight_decay=0.1)
    optimizer = MoMoWrapper(base, MoMo(BOUND) if form else rule, weight_decay_form=form)
    optimizer.rule = rule
    optimizer.step(loss=problem.gradients())
    return flat(problem.params)


@pytest.mark.parametrize(
    ("rule", "own"),
    [(MoMo(BOUND), "base"), (MoMoStar(BOUND), "base"), (Scaling(BOUND), "scaled")],
    ids=repr,
)
def test_the_form_is_the_one_chosen_or_else_that_of_the_rule(
    rule: StepRule, own: WeightDecayForm
) -> None:
    assert torch.equal(after_a_step(rule, None), after_a_step(rule, own))
    forms: list[WeightDecayForm] = ["base", "proximal", "decoupled", "scaled"]
    found = [after_a_step(rule, form) for form in forms]
    assert not any(torch.equal(left, right) for left, right in pairwise(found))


def test_the_form_follows_the_rule_that_is_set() -> None:
    optimizer = MoMoWrapper(SGD(Problem().params, lr=0.1))
    assert optimizer.weight_decay_form is None
    assert "rule=MoMo(lower_bound=0.0), weight_decay_form='base', base=" in repr(optimizer)
    optimizer.rule = Scaling()
    assert "rule=Scaling(lower_bound=0.0), weight_decay_form='scaled', base=" in repr(optimizer)
    assert "weight_decay_form='scaled'" in repr(copy.deepcopy(optimizer))
    optimizer.weight_decay_form = "decoupled"
    assert "weight_decay_form='decoupled'" in repr(optimizer)


def test_an_unknown_form_raises_on_assignment() -> None:
    optimizer = MoMoWrapper(SGD(Problem().params, lr=0.1, momentum=0.9), weight_decay_form="scaled")
    wrong: Any = "coupled"
    with pytest.raises(ValueError, match="'decoupled' or 'scaled', got 'coupled'"):
        optimizer.weight_decay_form = wrong
    assert optimizer.weight_decay_form == "scaled"


def test_a_decay_that_outweighs_the_gradient_is_a_whole_step() -> None:
    """N < 0: the step does not descend on the model."""
    x = torch.tensor([10.0], dtype=torch.float64, requires_grad=True)
    x.grad = torch.tensor([-0.5], dtype=torch.float64)
    optimizer = MoMoWrapper(SGD([x], lr=0.1, weight_decay=0.1), weight_decay_form="scaled")
    optimizer.step(loss=2.0)
    assert last_step(optimizer).predicted_decrease < 0
    assert last_step(optimizer).theta == 1.0
    assert x.item() == pytest.approx(10.0 - 0.1 * (1.0 - 0.5))
    assert math.isfinite(kept(optimizer)[0]["momo_displacement"])


@pytest.mark.parametrize("kind", [RMSprop, NAdam, Adagrad, SGD])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("compiled", ["auto", False])
def test_gradients_with_decay_are_rounded_as_the_base_rounds_them(
    kind: type[Any], dtype: torch.dtype, compiled: Any
) -> None:
    """A gradient that the decay cancels is 0 for the preconditioner, and so for the step."""
    ends = []
    for wrap in (False, True):
        param = torch.ones(64, dtype=dtype, requires_grad=True)
        base = kind([param], lr=1e-3, weight_decay=0.01)
        optimizer = MoMoWrapper(base, MoMo(-math.inf), compiled=compiled) if wrap else base
        for _ in range(3):
            param.grad = torch.full_like(param, -0.01)
            arguments: dict[str, Any] = {"loss": 1.0} if wrap else {}
            optimizer.step(**arguments)
        ends.append(param.detach().float())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)

"""What holds for every step rule; a module of tests imports them, and has a fixture `subject`.

A subject is a rule, and what makes its reference in plain floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from momo_wrap import MoMoWrapper, ProposingAdapter, StepRule
from momo_wrap.rules import WeightDecayForm
from tests import reference_rules
from tests.cases import ALGORITHMS, Case
from tests.problems import Problem, flat, last_step, trajectory
from tests.property.test_theta import numbers, scalar, stats
from tests.reference import AdamBase, Array, ReferenceGroup, SGDBase
from tests.reference_rules import ReferenceRun
from tests.state.test_checkpoint import TRANSFERS, go_on, same, start
from tests.test_host_visits import visits

BOUND = 0.01
STEPS, FEW = 100, 40

Subject: TypeAlias = tuple[StepRule, Callable[[], reference_rules.Rule]]

Base: TypeAlias = tuple[Callable[..., Optimizer], Callable[[], SGDBase | AdamBase], float]
BASES: dict[str, Base] = {
    "SGD": (SGD, SGDBase, 10.0),
    "SGD-momentum": (lambda p, **s: SGD(p, momentum=0.9, **s), lambda: SGDBase(0.9), 3.0),
    "Adam": (lambda p, **s: Adam(p, betas=(0.8, 0.9), **s), lambda: AdamBase(0.8, 0.9), 30.0),
}


def numpy_vector(tensors: list[Tensor]) -> Array:
    vector: Array = flat(tensors).numpy().copy()
    return vector


@pytest.mark.filterwarnings("ignore:.*averages no gradients:momo_wrap.MoMoWarning")
# A rule sees nothing of the base but the statistics of the model, so that few bases tell a wrong
# formula: one that has all terms, and one at which the losses of batches are followed.
@pytest.mark.parametrize(
    ("weight_decay", "form", "steps"),
    [
        (0.01, "proximal", FEW),
        pytest.param(0.0, "proximal", STEPS, marks=pytest.mark.slow),
        pytest.param(0.01, "proximal", STEPS, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("make", "make_reference", "lr"),
    [
        pytest.param(*base, id=name, marks=[pytest.mark.slow] if name == "SGD-momentum" else [])
        for name, base in BASES.items()
    ],
)
def test_trajectory_is_that_of_the_reference(
    subject: Subject,
    make: Callable[..., Optimizer],
    make_reference: Callable[[], SGDBase | AdamBase],
    lr: float,
    weight_decay: float,
    form: WeightDecayForm,
    steps: int,
) -> None:
    rule, make_rule = subject
    problem = Problem()
    base = make(problem.params, lr=lr, weight_decay=weight_decay)
    optimizer = MoMoWrapper(base, rule, weight_decay_form=form)
    group = ReferenceGroup(numpy_vector(problem.params), lr, weight_decay, make_reference())
    reference = ReferenceRun(group, make_rule(), scaled=form == "scaled")
    cut = 0
    for step in range(steps):
        # Both move on from the library's parameters, so that rounding is not amplified by the
        # dynamics and a wrong formula shows in the step where it acts.
        np.testing.assert_allclose(group.x, numpy_vector(problem.params), rtol=1e-9, atol=1e-11)
        group.x = numpy_vector(problem.params)
        loss = problem.gradients()
        gradient = numpy_vector([p.grad for p in problem.params if p.grad is not None])
        optimizer.step(loss=loss)
        reference.step(float(loss), gradient)
        theta = float(last_step(optimizer).theta)
        assert theta == pytest.approx(reference.theta, abs=1e-9), step
        cut += 0 < theta < 1
    assert cut > steps / 4


@given(value=numbers, decrease=numbers, bound=numbers, shift=numbers, data=st.data())
def test_theta_is_a_fraction(
    subject: Subject, value: float, decrease: float, bound: float, shift: float, data: st.DataObject
) -> None:
    rule, _ = subject
    initial = rule.initial_memory(bound)
    memory = {name: scalar(start) for name, start in initial.items()}
    for _ in range(3):
        before = {name: value.clone() for name, value in memory.items()}
        decision = rule(stats(value, decrease, bound, shift), memory)
        assert 0 <= decision.theta <= 1
        assert decision.theta <= decision.theta_uncapped
        assert decision.lower_bound >= bound
        assert decision.memory.keys() == memory.keys()
        assert all(torch.equal(memory[name], value) for name, value in before.items())
        memory = dict(decision.memory)
        value, decrease = data.draw(numbers), data.draw(numbers)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_step_from_numbers_that_are_not_finite(subject: Subject, value: float) -> None:
    rule, _ = subject
    memory = {name: scalar(start) for name, start in rule.initial_memory(BOUND).items()}
    for decrease in (1.0, 0.0, -1.0, math.nan, math.inf):
        assert rule(stats(value, decrease, BOUND), memory).theta.isnan()
    assert rule(stats(1.0, math.nan, BOUND), memory).theta.isnan()


def test_a_decrease_that_overflowed_is_no_step_and_is_got_over(subject: Subject) -> None:
    rule, _ = subject
    memory = {name: scalar(start) for name, start in rule.initial_memory(BOUND).items()}
    decision = rule(stats(5.0, math.inf, BOUND), memory)
    assert decision.theta == 0.0
    assert not any(value.isnan() for value in decision.memory.values())


def test_maximising_is_minimising_the_negative(subject: Subject) -> None:
    """A schedule is in the sense of minimisation already."""
    rule, _ = subject
    mirrored = type(rule).__new__(type(rule))
    vars(mirrored).update({**vars(rule), "lower_bound": -BOUND})
    ascent = trajectory(
        lambda p: MoMoWrapper(SGD(p, lr=0.5, momentum=0.9, maximize=True), mirrored),
        40,
        Problem(sign=-1.0),
    )
    descent = trajectory(lambda p: MoMoWrapper(SGD(p, lr=0.5, momentum=0.9), rule), 40)
    assert torch.equal(ascent, descent)


def test_run_goes_on_bit_for_bit(subject: Subject) -> None:
    """With any base, the rule's memory must be loaded too."""
    rule, _ = subject
    (case,) = (case for case in ALGORITHMS if case.name == "AdamW")
    run = start(case, rule)
    go_on(run)
    copies = [transfer(run, case, rule) for transfer in TRANSFERS]
    go_on(run)
    for moved in copies:
        go_on(moved)
        assert torch.equal(flat(moved[0].params), flat(run[0].params))
        assert same(vars(last_step(moved[1])), vars(last_step(run[1])))
        assert same(moved[1].state_dict(), run[1].state_dict())


@pytest.mark.parametrize("case", [c for c in ALGORITHMS if c.name in ("Adam", "SGD")], ids=str)
def test_no_host_visits(subject: Subject, case: Case) -> None:
    rule, _ = subject
    assert visits(case, rule) == visits(case, None)


def test_runs_where_no_visit_is_possible(subject: Subject) -> None:
    """Tensors on the meta device have no values, so that reading one raises."""
    rule, _ = subject
    param = torch.empty(7, device="meta", requires_grad=True)
    param.grad = torch.empty_like(param)
    optimizer = MoMoWrapper(Adam([param], weight_decay=0.01), rule)
    for _ in range(3):
        optimizer.step(loss=torch.empty((), device="meta"))
    assert last_step(optimizer).theta.device.type == "meta"


def test_proposed_steps_are_the_same(subject: Subject) -> None:
    """A rule knows nothing of how the base is read."""
    rule, _ = subject

    def proposed(params: list[Tensor]) -> Optimizer:
        adapter = ProposingAdapter(momentum="exp_avg", beta=0.9)
        return MoMoWrapper(Adam(params, lr=0.3), rule, adapter=adapter)

    read = trajectory(lambda p: MoMoWrapper(Adam(p, lr=0.3), rule), 20)
    torch.testing.assert_close(trajectory(proposed, 20), read, rtol=1e-7, atol=1e-9)

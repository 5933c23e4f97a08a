"""Laws of θ, for every rule, base and any numbers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from momo_wrap import ModelStats, MoMo, MoMoStar, MoMoWrapper, StepRule
from tests.cases import ADAPTERS, Case
from tests.problems import Problem

numbers = st.floats(-1e6, 1e6)
bounds = st.one_of(numbers, st.just(-math.inf))


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def stats(value: float, decrease: float, bound: float, shift: float = 0.0) -> ModelStats:
    return ModelStats(
        loss=scalar(value),
        mean_loss=scalar(value),
        value=scalar(value),
        value_after_decay=scalar(value + shift),
        predicted_decrease=scalar(decrease),
        gradient_decrease=scalar(decrease),
        lower_bound=bound,
        learning_rate=scalar(1.0),
    )


@given(value=numbers, decrease=numbers, bound=bounds, shift=numbers, estimate=numbers)
def test_theta_is_a_fraction(
    value: float, decrease: float, bound: float, shift: float, estimate: float
) -> None:
    for rule in (MoMo(bound), MoMoStar(bound)):
        memory = {name: scalar(max(estimate, bound)) for name in rule.initial_memory(bound)}
        decision = rule(stats(value, decrease, bound, shift), memory)
        assert 0 <= decision.theta <= 1
        assert decision.theta == min(decision.theta_uncapped, scalar(1.0))
        assert decision.lower_bound >= bound
        assert all(new >= bound for new in decision.memory.values())


@given(value=numbers, decrease=numbers, first=bounds, second=bounds)
def test_theta_does_not_increase_with_the_bound(
    value: float, decrease: float, first: float, second: float
) -> None:
    low, high = sorted([first, second])
    at_low = MoMo(low)(stats(value, decrease, low), {})
    at_high = MoMo(high)(stats(value, decrease, high), {})
    assert at_low.theta >= at_high.theta


@given(value=numbers, bound=numbers, decrease=st.floats(-1e6, 0.0))
def test_a_step_that_does_not_descend_is_whole_above_the_bound_and_none_below(
    value: float, bound: float, decrease: float
) -> None:
    decision = MoMo(bound)(stats(value, decrease, bound), {})
    assert decision.theta == (1.0 if value > bound else 0.0)


@given(value=numbers, bound=numbers, decrease=st.floats(1e-3, 1e6))
def test_truncated_model_stops_at_the_bound(value: float, bound: float, decrease: float) -> None:
    """If the step is shortened, the model after it is the bound; otherwise it stays above."""
    theta = float(MoMo(bound)(stats(value, decrease, bound), {}).theta)
    after = value - theta * decrease
    if 0 < theta < 1:
        assert after == pytest.approx(bound, rel=1e-9, abs=1e-6)
    elif theta == 1:
        assert after >= bound - 1e-6
    else:
        assert value <= bound


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", [MoMo(), MoMo(-math.inf), MoMoStar()], ids=repr)
def test_no_step_from_a_loss_that_is_not_finite(rule: StepRule, value: float) -> None:
    memory = {name: scalar(0.0) for name in rule.initial_memory(rule.lower_bound)}
    for decrease in (1.0, 0.0, -1.0, math.nan, math.inf):
        assert rule(stats(value, decrease, rule.lower_bound), memory).theta.isnan()


@pytest.mark.parametrize("rule", [MoMo(), MoMo(-math.inf), MoMoStar()], ids=repr)
def test_no_step_from_a_gradient_that_is_not_a_number(rule: StepRule) -> None:
    memory = {name: scalar(0.0) for name in rule.initial_memory(rule.lower_bound)}
    assert rule(stats(1.0, math.nan, rule.lower_bound), memory).theta.isnan()


@given(
    lr=st.floats(-3, 2),
    bound=st.floats(-2, 2),
    higher=st.floats(0, 2),
    decay=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=10)
@pytest.mark.parametrize("case", [c for c in ADAPTERS if c.can_be_copied], ids=str)
def test_wrapped_theta_is_a_fraction_and_falls_with_the_bound(
    case: Case, lr: float, bound: float, higher: float, decay: float, seed: int
) -> None:
    problem = Problem(seed=seed)
    optimizer = MoMoWrapper(case.make(problem.params, lr=10.0**lr, weight_decay=decay), MoMo(bound))
    for _ in range(3):
        loss = problem.gradients()
        # A twin on copies of the parameters meets the same gradients, with the higher bound.
        params, twin = copy.deepcopy((problem.params, optimizer))
        for copied, param in zip(params, problem.params, strict=True):
            copied.grad = param.grad
        twin.rule = MoMo(bound + higher)
        twin.step(loss=loss)
        optimizer.step(loss=loss)
        assert optimizer.last_step is not None
        assert twin.last_step is not None
        assert 0 <= twin.last_step.theta <= optimizer.last_step.theta <= 1

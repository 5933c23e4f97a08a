"""TrustedMoMo and the rules for research: a NumPy reference, their limits, and checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from momo_wrap import MoMo, MoMoWrapper, StepRule, TrustedMoMo, research
from momo_wrap.research import (
    NGN,
    DecSPS,
    LinearSchedule,
    ModelNGN,
    MovingTarget,
    PerGroup,
    PowerLaw,
    ScheduledBound,
    SPSMax,
    SPSSafe,
)
from tests import reference_rules
from tests.problems import Problem, flat, last_step, thetas, trajectory
from tests.property.test_theta import numbers, scalar, stats
from tests.research.laws import (  # noqa: F401  each test of the laws is one of this module
    BOUND,
    Subject,
    test_a_decrease_that_overflowed_is_no_step_and_is_got_over,
    test_maximising_is_minimising_the_negative,
    test_no_host_visits,
    test_no_step_from_numbers_that_are_not_finite,
    test_proposed_steps_are_the_same,
    test_run_goes_on_bit_for_bit,
    test_runs_where_no_visit_is_possible,
    test_theta_is_a_fraction,
    test_trajectory_is_that_of_the_reference,
)

FALLING = LinearSchedule(3.0, 0.2, steps=20)
POWER = PowerLaw(0.1, 2.0, 0.5)
RULES: dict[str, Subject] = {
    "SPSMax": (SPSMax(BOUND), lambda: reference_rules.sps_max(BOUND, 1.0)),
    "SPSMax-c": (SPSMax(BOUND, c=1.5), lambda: reference_rules.sps_max(BOUND, 1.5)),
    "SPSSafe": (
        SPSSafe(BOUND, safeguard=0.5),
        lambda: reference_rules.sps_safe(BOUND, 0.5),
    ),
    "DecSPS": (DecSPS(BOUND, c=0.7), lambda: reference_rules.dec_sps(BOUND, 0.7)),
    "NGN": (NGN(BOUND), lambda: reference_rules.ngn(BOUND)),
    "ModelNGN": (ModelNGN(BOUND), lambda: reference_rules.model_ngn(BOUND)),
    "linear": (
        ScheduledBound(FALLING, BOUND),
        lambda: reference_rules.scheduled(BOUND, lambda k: 3.0 - 2.8 * min(k / 20, 1.0)),
    ),
    "power law": (
        ScheduledBound(POWER, BOUND),
        lambda: reference_rules.scheduled(BOUND, lambda k: 0.1 + 2.0 / math.sqrt(k)),
    ),
    "MovingTarget": (
        MovingTarget(BOUND, speed=0.2, pull=0.1),
        lambda: reference_rules.moving_target(BOUND, 0.2, 0.1),
    ),
    "PerGroup": (PerGroup(BOUND), lambda: reference_rules.momo(BOUND)),
    "TrustedMoMo": (TrustedMoMo(BOUND), lambda: reference_rules.Trusted(BOUND)),
    "TrustedMoMo-settings": (
        TrustedMoMo(
            BOUND,
            required=0.4,
            rate=0.3,
            window=6.0,
            confidence=1.0,
            start=0.5,
            every=2.0,
            measurements=5.0,
            descends=0.3,
        ),
        lambda: reference_rules.Trusted(BOUND, 0.4, 0.3, 6.0, 1.0, 0.5, 2.0, 5.0, 0.3),
    ),
}


@pytest.fixture(scope="module", params=list(RULES.values()), ids=list(RULES))
def subject(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("c", [0.2, 0.5, 1.0])
def test_sps_max_is_the_formula_of_the_paper(c: float) -> None:
    """Without momentum, the step size is min(α, (f - f*) / (c ‖g‖²))."""
    problem, capped = Problem(), set()
    optimizer = MoMoWrapper(SGD(problem.params, lr=3.0), SPSMax(BOUND, c=c))
    for _ in range(50):
        loss = problem.gradients()
        norm = sum(float(p.grad.square().sum()) for p in problem.params if p.grad is not None)
        before = flat(problem.params)
        gradient = flat([p.grad for p in problem.params if p.grad is not None])
        optimizer.step(loss=loss)
        polyak = (float(loss) - BOUND) / (c * norm)
        torch.testing.assert_close(flat(problem.params), before - min(3.0, polyak) * gradient)
        capped.add(polyak > 3.0)
    assert capped == {False, True}


def steps_of_sgd(rule: StepRule, lr: float, count: int) -> list[tuple[float, float, float]]:
    """The loss, the squared norm of its gradient and the step size of each step of SGD."""
    problem, found = Problem(), []
    optimizer = MoMoWrapper(SGD(problem.params, lr=lr), rule)
    for _ in range(count):
        loss = problem.gradients()
        gradient = flat([p.grad for p in problem.params if p.grad is not None])
        before = flat(problem.params)
        optimizer.step(loss=loss)
        size = (before - flat(problem.params)) @ gradient / gradient.square().sum()
        found.append((float(loss), float(gradient.square().sum()), float(size)))
    return found


def test_sps_safe_is_the_formula_of_the_paper() -> None:
    """Without momentum, and with no cap in the way."""
    is_safe = set()
    for loss, norm, size in steps_of_sgd(SPSSafe(BOUND, safeguard=1.0), 1e3, 50):
        assert size == pytest.approx((loss - BOUND) / max(norm, 1.0))
        is_safe.add(norm < 1.0)
    assert is_safe == {False, True}


def test_dec_sps_is_the_formula_of_the_paper() -> None:
    """Without momentum: c_{k-1} γ_{k-1} is that of the step before, and γ_b is the cap."""
    c, last, limited = 0.7, 0.7 * 2.0, set()
    for k, (loss, norm, size) in enumerate(steps_of_sgd(DecSPS(BOUND, c=c), 2.0, 50), start=1):
        polyak = (loss - BOUND) / norm
        assert size == pytest.approx(min(polyak, last) / (c * math.sqrt(k)))
        limited.add(polyak > last)
        last = c * math.sqrt(k) * size
    assert limited == {False, True}


def test_dec_sps_waits_while_the_learning_rate_is_0() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=2.0), DecSPS(BOUND))
    for lr in (2.0, 0.0, 0.0, 2.0):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step(loss=problem.gradients())
    assert 0 < float(last_step(optimizer).theta) < 1


def plain(lr: float, rule: StepRule) -> Callable[[list[Tensor]], Optimizer]:
    return lambda params: MoMoWrapper(SGD(params, lr=lr), rule)


def adamw(lr: float, rule: StepRule) -> Callable[[list[Tensor]], Optimizer]:
    return lambda params: MoMoWrapper(AdamW(params, lr=lr, weight_decay=0.1), rule)


IS_MOMO: dict[str, StepRule] = {
    "a constant schedule": ScheduledBound(lambda _: BOUND),
    "a schedule below the floor": ScheduledBound(LinearSchedule(0.0, -5.0, steps=20), BOUND),
    "a schedule that has ended": ScheduledBound(LinearSchedule(9.0, 0.0, steps=1), BOUND),
    "a target that rests": MovingTarget(BOUND, speed=0.0),
    "one group": PerGroup(BOUND),
}


@pytest.mark.parametrize("rule", IS_MOMO.values(), ids=IS_MOMO)
def test_limits_that_are_momo(rule: StepRule) -> None:
    """Bit for bit, with momentum and weight decay."""
    assert torch.equal(trajectory(adamw(10.0, rule), 60), trajectory(adamw(10.0, MoMo(BOUND)), 60))


def test_sps_max_without_momentum_is_momo() -> None:
    found = thetas(plain(3.0, SPSMax(BOUND)), 60)
    torch.testing.assert_close(found, thetas(plain(3.0, MoMo(BOUND)), 60))
    assert int((found < 1).sum()) > 10


@given(value=st.floats(0.1, 1e3), decrease=st.floats(0.1, 1e3), bound=st.floats(-1.0, 0.05))
@pytest.mark.parametrize("kind", [NGN, ModelNGN])
def test_ngn_in_its_limits(
    kind: type[ModelNGN], value: float, decrease: float, bound: float
) -> None:
    """Below both of its bounds, and near them for small and for large learning rates."""
    for lr in (1e-7, 1.0, 1e7):
        seen = stats(value, lr * decrease, bound)
        theta = float(kind(bound)(seen, {}).theta)
        polyak = float(MoMo(bound)(seen, {}).theta_uncapped)
        assert theta <= min(1.0, 2 * polyak) * (1 + 1e-12)
        assert theta >= min(1.0, 2 * polyak) / 2 * (1 - 1e-12)
        if lr != 1.0:
            assert theta == pytest.approx(min(1.0, 2 * polyak), rel=1e-2)


@given(value=numbers, target=numbers, decrease=st.floats(1e-3, 1e6), speed=st.floats(0.0, 0.9))
def test_the_model_meets_the_target_that_has_moved(
    value: float, target: float, decrease: float, speed: float
) -> None:
    rule = MovingTarget(-1e6, speed=speed)
    decision = rule(stats(value, decrease, -1e6), {"target": scalar(target)})
    theta = float(decision.theta)
    if 0 < theta < 1:
        after = value - theta * decrease
        assert after == pytest.approx(target + speed * (value - target), rel=1e-6, abs=1e-4)


def test_the_target_settles_where_the_docstring_says() -> None:
    rule, target = MovingTarget(1.0, speed=0.2, pull=0.1), scalar(1.0)
    for _ in range(200):
        target = rule(stats(3.0, 5.0, 1.0), {"target": target}).memory["target"]
    assert float(target) == pytest.approx(1.0 + 0.9 * 0.2 * 2.0 / (0.2 + 0.1 - 0.02))


def test_a_bound_that_was_raised_raises_the_target() -> None:
    """As after a checkpoint that is loaded with another bound."""
    decision = MovingTarget(1.0, speed=0.5)(stats(3.0, 1.0, 1.0), {"target": scalar(-5.0)})
    assert decision.lower_bound == 2.0


RULES_WITHOUT_BOUND = [kind(-math.inf) for kind in (NGN, ModelNGN, SPSMax, SPSSafe)]


@given(value=numbers, decrease=numbers)
@pytest.mark.parametrize("rule", RULES_WITHOUT_BOUND)
def test_without_a_bound_nothing_is_shortened(
    rule: StepRule, value: float, decrease: float
) -> None:
    memory = {name: scalar(start) for name, start in rule.initial_memory(-math.inf).items()}
    assert rule(stats(value, decrease, -math.inf), memory).theta == 1.0


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "c of 0": (
        lambda: SPSMax(c=0.0),
        ValueError,
        "SPSMax got c=0.0, expected a number above 0. Write SPSMax(c=1.0).",
    ),
    "c that is NaN": (
        lambda: SPSMax(c=math.nan),
        ValueError,
        "SPSMax got c=nan, expected a number above 0",
    ),
    "a target as fast as the model": (
        lambda: MovingTarget(speed=1.0),
        ValueError,
        "MovingTarget got speed=1.0, expected a number of at least 0 and below 1",
    ),
    "a pull beyond the bound": (
        lambda: MovingTarget(pull=1.5),
        ValueError,
        "MovingTarget got pull=1.5, expected a number from 0 to 1",
    ),
    "a target that starts nowhere": (
        lambda: MovingTarget(-math.inf),
        ValueError,
        "MovingTarget got lower_bound=-inf, expected a number that is finite. Write "
        "MovingTarget(lower_bound=0.0).",
    ),
    "a schedule that is a number": (
        lambda: ScheduledBound(0.5),  # type: ignore[arg-type]
        TypeError,
        "schedule must be a function of the step count, got float. Write ScheduledBound("
        "LinearSchedule(",
    ),
    "a schedule without length": (
        lambda: LinearSchedule(1.0, 0.0, steps=0),
        ValueError,
        "LinearSchedule got steps=0, expected a number above 0",
    ),
    "a power law that rises": (
        lambda: PowerLaw(0.1, 1.0, -0.5),
        ValueError,
        "PowerLaw got exponent=-0.5, expected a number above 0",
    ),
    "a bound that is NaN": (lambda: NGN(math.nan), ValueError, "Write NGN(lower_bound=0.0)"),
}


@pytest.mark.parametrize(("make", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("schedule", "found"),
    [(lambda step: step.reshape(1), "shape [1]"), (lambda _: None, "NoneType")],
)
def test_schedule_that_returns_no_number(schedule: Any, found: str) -> None:
    message = f"The schedule must return a 0-dim tensor or a number, got {found}. Compute it from"
    with pytest.raises(TypeError, match=re.escape(message)):
        ScheduledBound(schedule)(stats(1.0, 1.0, 0.0), {"step_count": scalar(0.0)})


def test_a_schedule_may_return_another_dtype() -> None:
    rule = ScheduledBound(lambda _: torch.tensor(0.5, dtype=torch.float32))
    decision = rule(stats(1.0, 1.0, 0.0), {"step_count": scalar(0.0)})
    assert decision.theta.dtype is torch.float64
    assert decision.theta == 0.5


def test_settings_are_in_the_repr() -> None:
    assert repr(SPSMax(1, c=0.5)) == "SPSMax(lower_bound=1.0, c=0.5)"
    assert "PowerLaw(offset=0.1, scale=2.0, exponent=0.5)" in repr(ScheduledBound(POWER))


def test_memory_of_one_name_means_one_thing() -> None:
    """A run may continue with another rule, which then finds memory under its own names."""
    names: dict[str, set[float]] = {}
    for rule in [rule for rule, _ in RULES.values()]:
        for name, initial in rule.initial_memory(BOUND).items():
            names.setdefault(name, set()).add(initial)
    assert all(len(initial) == 1 for initial in names.values()), names


def test_table_of_the_page_has_every_rule() -> None:
    page = (Path(__file__).parents[2] / "docs" / "which_rule.md").read_text()
    assert all(f"| [`{name}(" in page for name in research.__all__ if name not in OTHERS)
    assert all(f"`{name}" in page for name in OTHERS)


OTHERS = {"HeavyBall", "LinearSchedule", "MuonMax", "PowerLaw"}

"""The rules in docs/evidence/rules, which did not help, are the measured ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW

from docs.evidence.rules.limited_growth import LimitedGrowth
from docs.evidence.rules.trust_region import TrustRegion
from docs.evidence.rules.warm_target import WarmTarget
from momo_wrap import MoMo, MoMoWrapper, StepRule
from tests.problems import Problem, last_step, thetas, trajectory
from tests.property.test_theta import scalar, stats
from tests.reference import ReferenceGroup, SGDBase
from tests.reference_rules import ReferenceRun, Rule, Seen, clip
from tests.research.laws import (  # noqa: F401  each test of the laws is one of this module
    BOUND,
    STEPS,
    Subject,
    numpy_vector,
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


def warm_target(bound: float, steps: int) -> Rule:
    count = 0

    def theta(seen: Seen) -> float:
        nonlocal count
        count += 1
        eta = count / steps if count < steps else 1.0
        target = eta * bound + (1 - eta) * max(seen.value, bound)
        return clip((seen.height - target) / seen.decrease)

    return theta


def limited_growth(bound: float, factor: float, floor: float) -> Rule:
    last = 1.0

    def theta(seen: Seen) -> float:
        nonlocal last
        found = clip((seen.height - bound) / seen.decrease)
        if found > factor * max(last, floor):
            found = factor * max(last, floor)
        last = found
        return found

    return theta


@dataclass
class ReferenceRegion:
    """Nocedal and Wright, Algorithm 4.1, with their ratio."""

    bound: float
    floor: float
    radius: float = 1.0
    last: tuple[float, float, float] | None = None
    judged: list[str] = field(default_factory=list)

    def __call__(self, seen: Seen) -> float:
        if self.last is not None:
            value, predicted, theta = self.last
            ratio = (value - seen.value) / predicted if predicted > 0 else 0.5
            if ratio < 0.25:
                self.radius = max(self.radius / 4, self.floor)
                self.judged.append("bad")
            elif ratio > 0.75 and theta >= self.radius:
                self.radius = min(2 * self.radius, 1.0)
                self.judged.append("good")
        theta = min(clip((seen.height - self.bound) / seen.decrease), self.radius)
        after = seen.height - theta * seen.decrease
        self.last = seen.value, seen.value - after, theta
        return theta


RULES: dict[str, Subject] = {
    "WarmTarget": (WarmTarget(BOUND, steps=40), lambda: warm_target(BOUND, 40)),
    "LimitedGrowth": (
        LimitedGrowth(BOUND, factor=1.2, floor=0.05),
        lambda: limited_growth(BOUND, 1.2, 0.05),
    ),
    "TrustRegion": (TrustRegion(BOUND, floor=0.01), lambda: ReferenceRegion(BOUND, 0.01)),
}


@pytest.fixture(scope="module", params=list(RULES.values()), ids=list(RULES))
def subject(request: pytest.FixtureRequest) -> Any:
    return request.param


IS_MOMO: dict[str, StepRule] = {
    "a warm-up of one step": WarmTarget(BOUND, steps=1),
    "growth without limit": LimitedGrowth(BOUND, factor=math.inf),
    "a region that is always trusted": TrustRegion(BOUND, floor=1.0),
}


@pytest.mark.parametrize("limit", IS_MOMO.values(), ids=IS_MOMO)
def test_limits_that_are_momo(limit: StepRule) -> None:
    """Bit for bit, with momentum and weight decay."""

    def found(rule: StepRule) -> torch.Tensor:
        return trajectory(lambda p: MoMoWrapper(AdamW(p, lr=10.0, weight_decay=0.1), rule), 60)

    assert torch.equal(found(limit), found(MoMo(BOUND)))


def test_without_a_bound_nothing_is_shortened() -> None:
    decision = WarmTarget(-math.inf)(stats(1.0, 2.0, -math.inf), {"step_count": scalar(0.0)})
    assert decision.theta == 1.0


def plain(lr: float, rule: StepRule) -> Callable[[list[torch.Tensor]], torch.optim.Optimizer]:
    return lambda params: MoMoWrapper(SGD(params, lr=lr), rule)


def test_both_verdicts_of_the_trust_region_were_compared() -> None:
    problem, rule = Problem(), ReferenceRegion(BOUND, 0.01)
    group = ReferenceGroup(numpy_vector(problem.params), 0.05, 0.0, SGDBase(0.9))
    reference = ReferenceRun(group, rule)
    optimizer = MoMoWrapper(SGD(problem.params, 0.05, momentum=0.9), TrustRegion(BOUND, floor=0.01))
    for _ in range(STEPS):
        group.x = numpy_vector(problem.params)
        loss = problem.gradients()
        reference.step(
            float(loss), numpy_vector([p.grad for p in problem.params if p.grad is not None])
        )
        optimizer.step(loss=loss)
    assert min(rule.judged.count("good"), rule.judged.count("bad")) >= 5


def test_warm_target_is_momo_after_the_warm_up() -> None:
    """From step 20 on; before, the uncapped step is that of MoMo times k/20."""
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.5, momentum=0.9), WarmTarget(BOUND))
    for step in range(1, 40):
        optimizer.step(loss=problem.gradients())
        record = last_step(optimizer)
        momo = (record.value_after_decay - BOUND).clamp(min=0.0) / record.predicted_decrease
        if step >= 20:
            assert record.theta_uncapped == momo
            assert record.lower_bound == BOUND
        else:
            torch.testing.assert_close(record.theta_uncapped, momo * step / 20)


def test_growth_is_limited() -> None:
    found = thetas(plain(10.0, LimitedGrowth(BOUND, factor=1.1)), 100)
    free = thetas(plain(10.0, MoMo(BOUND)), 100)
    assert (found[1:] <= 1.1 * found[:-1].clamp(min=1e-3) * (1 + 1e-12)).all()
    assert not (free[1:] <= 1.1 * free[:-1].clamp(min=1e-3)).all()


def test_growth_is_from_the_theta_that_was_taken() -> None:
    rule = LimitedGrowth(factor=2.0, floor=0.05)
    decision = rule(stats(1.0, 1.0, 0.0), {"last_theta": scalar(0.1)})
    assert decision.theta == decision.memory["last_theta"] == 0.2
    assert rule(stats(0.0, 1.0, 0.0), decision.memory).memory["last_theta"] == 0.05


def test_the_trust_region_shrinks_where_the_loss_rises_and_recovers() -> None:
    """Losses that rise by 1 at each step, and then fall twice as fast as predicted."""
    rule = TrustRegion(-math.inf, floor=0.05)
    memory = {name: scalar(value) for name, value in rule.initial_memory(0.0).items()}
    radii = []
    for value in [1.0, 2.0, 3.0, 4.0, 3.8, 3.4, 2.0, 0.0, -4.0, -8.0]:
        memory = dict(rule(stats(value, 1.0, -math.inf), memory).memory)
        radii.append(float(memory["radius"]))
    assert radii == [1.0, 0.25, 0.0625, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


@pytest.mark.parametrize(("last_theta", "radius"), [(0.1, 0.2), (0.2, 0.4)])
def test_the_trust_region_grows_only_where_it_was_the_limit(
    last_theta: float, radius: float
) -> None:
    kept = {"last_value": 4.0, "last_prediction": 1.0, "last_theta": last_theta, "radius": 0.2}
    memory = {name: scalar(value) for name, value in kept.items()}
    assert TrustRegion()(stats(2.0, 1.0, 0.0), memory).memory["radius"] == radius


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a factor that shrinks": (
        lambda: LimitedGrowth(factor=0.5),
        ValueError,
        "LimitedGrowth got factor=0.5, expected a number of at least 1. Write "
        "LimitedGrowth(factor=2.0).",
    ),
    "a floor that is a tensor": (
        lambda: LimitedGrowth(floor=torch.ones(())),  # type: ignore[arg-type]
        TypeError,
        "floor must be a Python number, got Tensor. Write LimitedGrowth(floor=0.001).",
    ),
    "a floor of 0": (
        lambda: TrustRegion(floor=0.0),
        ValueError,
        "TrustRegion got floor=0.0, expected a number above 0 and of at most 1",
    ),
    "no warm-up": (
        lambda: WarmTarget(steps=0),
        ValueError,
        "WarmTarget got steps=0, expected a number above 0. Write WarmTarget(steps=20).",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_settings_that_are_set_are_checked() -> None:
    rule = WarmTarget()
    with pytest.raises(ValueError, match="WarmTarget got steps=0, expected a number above 0"):
        rule.steps = 0
    assert repr(rule) == "WarmTarget(lower_bound=0.0, steps=20.0)"

"""TrustedMoMo and the rules for research: a NumPy reference, their limits, and checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from momo_wrap import MoMo, MoMoWrapper, ProposingAdapter, StepRule, TrustedMoMo, research
from momo_wrap.research import (
    NGN,
    DecSPS,
    LimitedGrowth,
    LinearSchedule,
    ModelNGN,
    MovingTarget,
    PerGroup,
    PowerLaw,
    ScheduledBound,
    SPSMax,
    SPSSafe,
    TrustRegion,
    WarmTarget,
)
from momo_wrap.rules import WeightDecayForm
from tests import reference_rules
from tests.cases import ALGORITHMS, Case
from tests.problems import Problem, flat, last_step, thetas, trajectory
from tests.property.test_theta import numbers, scalar, stats
from tests.reference import AdamBase, Array, ReferenceGroup, SGDBase
from tests.reference_rules import ReferenceRun
from tests.state.test_checkpoint import (
    TRANSFERS,
    go_on,
    same,
    start,
)
from tests.test_host_visits import visits

BOUND = 0.01
STEPS, FEW = 100, 40

FALLING = LinearSchedule(3.0, 0.2, steps=20)
POWER = PowerLaw(0.1, 2.0, 0.5)
Reference = Callable[[], reference_rules.Rule]
RULES: dict[str, tuple[StepRule, Reference]] = {
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
    "WarmTarget": (WarmTarget(BOUND, steps=40), lambda: reference_rules.warm_target(BOUND, 40)),
    "MovingTarget": (
        MovingTarget(BOUND, speed=0.2, pull=0.1),
        lambda: reference_rules.moving_target(BOUND, 0.2, 0.1),
    ),
    "LimitedGrowth": (
        LimitedGrowth(BOUND, factor=1.2, floor=0.05),
        lambda: reference_rules.limited_growth(BOUND, 1.2, 0.05),
    ),
    "TrustRegion": (
        TrustRegion(BOUND, floor=0.01),
        lambda: reference_rules.TrustRegion(BOUND, 0.01),
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
rules = pytest.mark.parametrize("rule", [rule for rule, _ in RULES.values()], ids=RULES)

Base = tuple[Callable[..., Optimizer], Callable[[], SGDBase | AdamBase], float]
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
@pytest.mark.parametrize(("rule", "make_rule"), RULES.values(), ids=RULES)
def test_trajectory_is_that_of_the_reference(
    rule: StepRule,
    make_rule: Reference,
    make: Callable[..., Optimizer],
    make_reference: Callable[[], SGDBase | AdamBase],
    lr: float,
    weight_decay: float,
    form: WeightDecayForm,
    steps: int,
) -> None:
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


def test_both_verdicts_of_the_trust_region_were_compared() -> None:
    problem, rule = Problem(), reference_rules.TrustRegion(BOUND, 0.01)
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
    "a warm-up of one step": WarmTarget(BOUND, steps=1),
    "a target that rests": MovingTarget(BOUND, speed=0.0),
    "growth without limit": LimitedGrowth(BOUND, factor=math.inf),
    "a region that is always trusted": TrustRegion(BOUND, floor=1.0),
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


def test_a_bound_that_was_raised_raises_the_target() -> None:
    """As after a checkpoint that is loaded with another bound."""
    decision = MovingTarget(1.0, speed=0.5)(stats(3.0, 1.0, 1.0), {"target": scalar(-5.0)})
    assert decision.lower_bound == 2.0


@given(value=numbers, decrease=numbers, bound=numbers, shift=numbers, data=st.data())
@rules
def test_theta_is_a_fraction(
    rule: StepRule, value: float, decrease: float, bound: float, shift: float, data: st.DataObject
) -> None:
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


RULES_WITHOUT_BOUND = [kind(-math.inf) for kind in (NGN, ModelNGN, WarmTarget, SPSMax, SPSSafe)]


@given(value=numbers, decrease=numbers)
@pytest.mark.parametrize("rule", RULES_WITHOUT_BOUND)
def test_without_a_bound_nothing_is_cut(rule: StepRule, value: float, decrease: float) -> None:
    memory = {name: scalar(start) for name, start in rule.initial_memory(-math.inf).items()}
    assert rule(stats(value, decrease, -math.inf), memory).theta == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@rules
def test_no_step_from_numbers_that_are_not_finite(rule: StepRule, value: float) -> None:
    memory = {name: scalar(start) for name, start in rule.initial_memory(BOUND).items()}
    for decrease in (1.0, 0.0, -1.0, math.nan, math.inf):
        assert rule(stats(value, decrease, BOUND), memory).theta.isnan()
    assert rule(stats(1.0, math.nan, BOUND), memory).theta.isnan()


@rules
def test_a_decrease_that_overflowed_is_no_step_and_is_got_over(rule: StepRule) -> None:
    memory = {name: scalar(start) for name, start in rule.initial_memory(BOUND).items()}
    decision = rule(stats(5.0, math.inf, BOUND), memory)
    assert decision.theta == 0.0
    assert not any(value.isnan() for value in decision.memory.values())


@rules
def test_maximising_is_minimising_the_negative(rule: StepRule) -> None:
    """A schedule is in the sense of minimisation already."""
    mirrored = type(rule).__new__(type(rule))
    vars(mirrored).update({**vars(rule), "lower_bound": -BOUND})
    ascent = trajectory(
        lambda p: MoMoWrapper(SGD(p, lr=0.5, momentum=0.9, maximize=True), mirrored),
        40,
        Problem(sign=-1.0),
    )
    descent = trajectory(lambda p: MoMoWrapper(SGD(p, lr=0.5, momentum=0.9), rule), 40)
    assert torch.equal(ascent, descent)


@rules
def test_run_goes_on_bit_for_bit(rule: StepRule) -> None:
    """With any base it is what the rule remembers that has to come along."""
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
@rules
def test_no_host_visits(rule: StepRule, case: Case) -> None:
    assert visits(case, rule) == visits(case, None)


@rules
def test_runs_where_no_visit_is_possible(rule: StepRule) -> None:
    """Tensors on the meta device have no values, so that reading one raises."""
    param = torch.empty(7, device="meta", requires_grad=True)
    param.grad = torch.empty_like(param)
    optimizer = MoMoWrapper(Adam([param], weight_decay=0.01), rule)
    for _ in range(3):
        optimizer.step(loss=torch.empty((), device="meta"))
    assert last_step(optimizer).theta.device.type == "meta"


@rules
def test_proposed_steps_are_the_same(rule: StepRule) -> None:
    """A rule knows nothing of how the base is read."""

    def proposed(params: list[Tensor]) -> Optimizer:
        adapter = ProposingAdapter(momentum="exp_avg", beta=0.9)
        return MoMoWrapper(Adam(params, lr=0.3), rule, adapter=adapter)

    read = trajectory(lambda p: MoMoWrapper(Adam(p, lr=0.3), rule), 20)
    torch.testing.assert_close(trajectory(proposed, 20), read, rtol=1e-7, atol=1e-9)


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
    assert repr(TrustRegion(1, floor=0.5)) == "TrustRegion(lower_bound=1.0, floor=0.5)"
    assert "PowerLaw(offset=0.1, scale=2.0, exponent=0.5)" in repr(ScheduledBound(POWER))


def test_memory_of_one_name_means_one_thing() -> None:
    """A run may go on with another rule, which then finds what it takes for its own."""
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

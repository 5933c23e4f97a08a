"""TrustedMoMo: verdicts by hand, laws, limits, and training at learning rates far too high.

Trajectories against a reference in plain floats, checkpoints, host synchronizations, meta device
are in test_research with those of the other rules, and torch.compile in test_compile.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR

from momo_wrap import (
    Averaging,
    ModelStats,
    MoMo,
    MoMoWrapper,
    ProposingAdapter,
    StepDecision,
    StepRule,
    TrustedMoMo,
)
from tests import reference_rules
from tests.problems import Problem, flat, last_step, relative_distance, take_step, trajectory
from tests.property.test_theta import scalar
from tests.reference import AdamBase, ReferenceGroup, SGDBase
from tests.reference_rules import ReferenceRun
from tests.research.laws import numpy_vector

BOUND = 0.01
Params = list[Tensor]
Memory = Mapping[str, Tensor]
Make = Callable[..., Optimizer]


def seen(
    loss: float,
    *,
    value: float | None = None,
    decrease: float = 1.0,
    lr: float = 1.0,
    bound: float = 0.0,
    mean_loss: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> ModelStats:
    """The statistics; the model's value and the mean of the losses are the loss by default."""
    value = loss if value is None else value

    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=dtype)

    return ModelStats(
        loss=number(loss),
        mean_loss=number(loss if mean_loss is None else mean_loss),
        value=number(value),
        value_after_decay=number(value),
        predicted_decrease=number(decrease),
        gradient_decrease=number(decrease),
        lower_bound=bound,
        learning_rate=number(lr),
    )


def fresh(rule: StepRule, dtype: torch.dtype = torch.float64) -> Memory:
    initial = rule.initial_memory(rule.lower_bound)
    return {name: torch.tensor(value, dtype=dtype) for name, value in initial.items()}


def after(rule: StepRule, *steps: ModelStats, memory: Memory | None = None) -> StepDecision:
    """The decision on the last of some steps."""
    memory = fresh(rule, steps[0].loss.dtype) if memory is None else memory
    for stats in steps:
        decision = rule(stats, memory)
        memory = decision.memory
    return decision


def trusted(decision: StepDecision) -> float:
    return float(decision.memory["trusted"])


# By hand.


def test_first_step_is_a_part_of_the_way_to_the_bound() -> None:
    """A gap of 3 and a decrease of 12 with α = 8: the bound is at 1/4, a step size of 2."""
    decision = after(TrustedMoMo(1.0), seen(4.0, decrease=12.0, lr=8.0, bound=1.0))
    assert trusted(decision) == pytest.approx(0.01 * 2.0)
    assert float(decision.theta) == pytest.approx(0.01 / 4)
    assert float(decision.theta_uncapped) == pytest.approx(0.01 / 4)
    assert float(decision.memory["prediction"]) == pytest.approx(4.0 - 0.01 * 3.0)


def on_its_way(**values: float) -> Memory:
    """The memory after many steps that all fell by 1 as predicted, but for `values`."""
    kept = {
        "trusted": 2.0,
        "weight": 1.0,
        "observed": 1.0,
        "predicted": 1.0,
        "observed_square": 1.0,
        "last_mean_loss": 5.0,
        "prediction": 4.0,
        "last_step_size": 2.0,
        "last_lr": 8.0,
        "peak_lr": 8.0,
    }
    return {**fresh(TrustedMoMo()), **{k: scalar(v) for k, v in {**kept, **values}.items()}}


@pytest.mark.parametrize(
    ("make", "make_reference", "lr"),
    [
        (lambda p, lr: SGD(p, lr=lr, momentum=0.9), lambda: SGDBase(0.9), 3.0),
        (lambda p, lr: Adam(p, lr=lr), AdamBase, 100.0),
    ],
    ids=["SGD", "Adam"],
)
@pytest.mark.parametrize("change", [None, "a scheduler", "later"])
def test_all_verdicts_were_compared_with_the_reference(
    make: Make, make_reference: Callable[[], Any], lr: float, change: str | None
) -> None:
    """In a run whose steps are far too long for a while; without and with a schedule."""
    settings: dict[str, Any] = {"start": 0.002, "measurements": 4.0, "rate": 0.2}
    scheduled = change == "a scheduler"
    problem = Problem()
    rule = reference_rules.Trusted(-50.0, **settings, is_scheduled=scheduled)
    group = ReferenceGroup(numpy_vector(problem.params), lr, 0.0, make_reference())
    reference = ReferenceRun(group, rule)
    optimizer = MoMoWrapper(make(problem.params, lr), TrustedMoMo(-50.0, **settings))
    if scheduled:  # its first learning rate is not the initial one
        schedule = LambdaLR(optimizer, lambda k: (0.9, 0.3, 0.7)[k // 30 % 3])
    for step in range(180):
        if step == 70:
            optimizer._memory.rule["trusted"] *= 1e3
            assert rule.log_radius is not None
            rule.log_radius += math.log(1e3)
        if change == "later" and step == 100:
            optimizer.param_groups[0]["lr"] = 0.5 * lr
        group.x = numpy_vector(problem.params)
        group.lr = optimizer.param_groups[0]["lr"]
        loss = problem.gradients()
        gradient = numpy_vector([p.grad for p in problem.params if p.grad is not None])
        optimizer.step(loss=loss)
        reference.step(float(loss), gradient)
        if scheduled:
            schedule.step()
        assert float(last_step(optimizer).theta) == pytest.approx(reference.theta, rel=1e-9), step
    needed = {
        None: ("good", "bad", "annealed", "falls"),
        "a scheduler": ("longer", "shorter"),
        "later": ("good", "falls", "shorter"),
    }
    assert min(rule.judged.count(verdict) for verdict in needed[change]) >= 2
    assert ("longer" in rule.judged) <= (change is not None)


# Laws.

KINDS: dict[str, Make] = {
    "SGD": lambda p, **s: SGD(p, momentum=0.9, **s),
    "SGD-plain": lambda p, **s: SGD(p, **s),
    "SGD-nesterov": lambda p, **s: SGD(p, momentum=0.9, nesterov=True, **s),
    "Adam": lambda p, **s: Adam(p, **s),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)

# Such that sums and differences of a few are exact, and products with powers of 2.
exact = st.integers(-(2**20), 2**20).map(lambda number: number / 1024)
positive = st.integers(1, 2**20).map(lambda number: number / 1024)
steps = st.lists(
    st.fixed_dictionaries(
        {"loss": exact, "value": exact, "mean_loss": exact, "decrease": exact, "lr": positive}
    ),
    min_size=1,
    max_size=12,
)
Steps = list[dict[str, Any]]


@given(sequence=steps, bound=exact)
def test_theta_is_a_fraction_and_at_most_that_of_momo(sequence: Steps, bound: float) -> None:
    rule = TrustedMoMo(bound)
    memory = fresh(rule)
    for values in sequence:
        stats = seen(**values, bound=bound)
        decision = rule(stats, memory)
        momo = MoMo(bound)(stats, {})
        assert 0 <= decision.theta <= momo.theta
        assert decision.theta == decision.theta_uncapped.clamp(max=1.0)
        assert all(value.isfinite() for value in decision.memory.values())
        assert decision.memory["trusted"] > 0 or memory["trusted"] == 0
        memory = decision.memory


@given(sequence=steps, bound=exact)
def test_is_momo_where_a_long_step_is_trusted(sequence: Steps, bound: float) -> None:
    rule = TrustedMoMo(bound)
    memory: Memory = {**fresh(rule), "trusted": scalar(1e30)}
    for values in sequence:
        stats = seen(**values, bound=bound)
        decision = rule(stats, memory)
        assert decision.theta == MoMo(bound)(stats, {}).theta
        memory = decision.memory


@given(sequence=steps, bound=exact, exponent=st.integers(-20, 20), shift=exact)
def test_scale_and_level_of_the_loss_are_of_no_account(
    sequence: Steps, bound: float, exponent: int, shift: float
) -> None:
    """Bit for bit: the numbers are such that nothing is rounded differently."""

    def thetas(scale: float, shift: float) -> list[float]:
        rule = TrustedMoMo(bound)
        memory, found = fresh(rule), []
        for values in sequence:
            moved = {
                name: scale * (values[name] + shift) for name in ("loss", "value", "mean_loss")
            }
            decrease = scale * values["decrease"]
            stats = seen(**{**values, **moved, "decrease": decrease}, bound=scale * (bound + shift))
            decision = rule(stats, memory)
            memory = decision.memory
            found.append(float(decision.theta))
        return found

    expected = thetas(1.0, 0.0)
    assert thetas(2.0**exponent, 0.0) == expected
    assert thetas(1.0, shift) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(sequence=steps, factor=st.floats(1e-3, 1.0))
def test_a_schedule_that_lowers_the_learning_rate_lowers_the_steps(
    sequence: Steps, factor: float
) -> None:
    """In proportion, at the same θ, except for a step that truncation shortens."""
    rule = TrustedMoMo(-1e6)
    sequence = [{**values, "lr": 8.0} for values in sequence]
    before = after(rule, seen(5.0, lr=8.0, bound=-1e6), *(seen(**v, bound=-1e6) for v in sequence))
    same = seen(3.0, lr=8.0, bound=-1e6)
    lower = seen(3.0, lr=8.0 * factor, decrease=factor, bound=-1e6)
    kept, lowered = (after(rule, stats, memory=before.memory) for stats in (same, lower))
    assert trusted(lowered) == pytest.approx(trusted(kept), rel=1e-12)
    assert float(lowered.theta) == pytest.approx(float(kept.theta), rel=1e-12)


def test_a_learning_rate_that_is_raised_raises_nothing() -> None:
    low, high = seen(4.0, lr=1.0, decrease=1.0), seen(4.0, lr=100.0, decrease=100.0)
    assert float(after(TrustedMoMo(), low).theta) == pytest.approx(0.04)
    assert float(after(TrustedMoMo(), low, high).theta) * 100.0 == pytest.approx(0.04)


@kinds
def test_without_a_bound_it_is_the_base(kind: Make) -> None:
    """For ever: bit for bit what MoMo does, which is the base up to rounding."""

    def wrapped(rule: StepRule) -> Callable[[Params], Optimizer]:
        return lambda p: MoMoWrapper(kind(p, lr=0.01, weight_decay=0.0), rule)

    found = trajectory(wrapped(TrustedMoMo(-math.inf)), 60)
    assert torch.equal(found, trajectory(wrapped(MoMo(-math.inf)), 60))
    assert relative_distance(found, trajectory(lambda p: kind(p, lr=0.01), 60)) < 1e-12


@pytest.mark.filterwarnings("ignore:.*averages no gradients:momo_wrap.MoMoWarning")
@kinds
def test_caps_that_are_too_large_give_the_same_steps(kind: Make) -> None:
    def wrapped(lr: float) -> Callable[[Params], Optimizer]:
        return lambda p: MoMoWrapper(kind(p, lr=lr), TrustedMoMo())

    found = trajectory(wrapped(1e4), 60)
    assert relative_distance(found, trajectory(wrapped(1e2), 60)) < 1e-9


@pytest.mark.filterwarnings("ignore:.*averages no gradients:momo_wrap.MoMoWarning")
@kinds
def test_a_scaled_loss_is_trained_alike(kind: Make) -> None:
    """SGD's steps are as long where the cap is too large, and Adam's at any scale."""

    def train(scale: float) -> Tensor:
        problem = Problem()
        optimizer = MoMoWrapper(kind(problem.params, lr=1e5), TrustedMoMo())
        for _ in range(40):
            loss = scale * problem.gradients()
            for param in problem.params:
                assert param.grad is not None
                param.grad *= scale
            optimizer.step(loss=loss)
        return flat(problem.params)

    torch.testing.assert_close(train(1e3), train(1.0), rtol=1e-5, atol=1e-7)


def test_maximising_is_minimising_the_negative() -> None:
    def wrapped(maximize: bool) -> Callable[[Params], Optimizer]:
        bound = -BOUND if maximize else BOUND
        base: dict[str, Any] = {"lr": 100.0, "momentum": 0.9, "weight_decay": 1e-3}
        return lambda p: MoMoWrapper(SGD(p, maximize=maximize, **base), TrustedMoMo(bound))

    ascent = trajectory(wrapped(True), 40, Problem(sign=-1.0))
    assert torch.equal(ascent, trajectory(wrapped(False), 40))


# Numbers at the edge.


def test_learning_rates_of_0_are_waited_for() -> None:
    """At the first step of a warm-up, and in the middle of a run."""
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=1.0, momentum=0.9), TrustedMoMo())
    sizes, taken = [], []
    for lr in (0.0, 1.0, 2.0, 2.0, 0.0, 0.0, 2.0, 0.0, 1.0):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step(loss=problem.gradients())
        sizes.append(float(optimizer.state_dict()["param_groups"][0]["momo_rule_trusted"]))
        taken.append(float(optimizer.effective_lrs()[0]))
    assert sizes[0] == 0.0
    assert all(0 < size < 0.1 for size in sizes[1:])
    assert min(sizes[4:6]) > 0.5 * sizes[3]
    assert taken[7] == 0.0
    assert 0.4 * taken[6] < taken[8] < 0.6 * taken[6]  # the learning rate is half the largest


@pytest.mark.parametrize("kind", ["number", "tensor"])
def test_a_learning_rate_that_rounding_put_below_0(kind: str) -> None:
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=1.0), TrustedMoMo())
    optimizer.step(loss=problem.gradients())
    before = float(optimizer.state_dict()["param_groups"][0]["momo_rule_trusted"])
    lr = -1e-17
    optimizer.param_groups[0]["lr"] = lr if kind == "number" else torch.tensor(lr)
    optimizer.step(loss=problem.gradients())
    assert float(optimizer.state_dict()["param_groups"][0]["momo_rule_trusted"]) > before / 2
    assert last_step(optimizer).theta.isfinite()


def test_steps_of_length_0_lock_nothing() -> None:
    """Below the bound θ is 0; above it again, steps go on."""
    rule = TrustedMoMo(1.0)
    ups = [seen(5.0, bound=1.0)] * 3
    downs = [seen(0.5, bound=1.0)] * 2000
    memory = after(rule, *ups).memory
    decision = after(rule, *downs, memory=memory)
    assert decision.theta == 0.0
    assert trusted(decision) > 0.0
    for _ in range(5):
        decision = after(rule, *ups, memory=decision.memory)
    assert decision.theta > 0.0


@pytest.mark.parametrize("trusted_before", [0.0, 1e-320, -1.0, math.nan])
def test_the_trusted_step_size_restarts_if_it_cannot_grow(trusted_before: float) -> None:
    """It may underflow; state dicts of old hold -1 for none."""
    memory = on_its_way(trusted=trusted_before)
    decision = after(TrustedMoMo(), seen(4.0, decrease=12.0, lr=8.0), memory=memory)
    assert trusted(decision) == pytest.approx(0.01 * 4.0 / 12.0 * 8.0)
    assert decision.memory["weight"] == 0.0


def test_learning_rates_that_jump_up_and_down_do_not_stop_the_run() -> None:
    """Each drop shortens the steps in proportion, and at each rise they return."""
    rule, memory, taken = TrustedMoMo(), fresh(TrustedMoMo()), []
    for step, lr in enumerate([100.0, 1e-3] * 200, start=1):
        decision = rule(replace(seen(2.0, lr=lr), step=step, is_scheduled=True), memory)
        memory = decision.memory
        taken.append(lr * float(decision.theta))
    for high, low in zip(taken[10::2], taken[11::2], strict=True):
        assert high > 1e-4  # far from 1e-300
        assert low == pytest.approx(1e-5 * high, rel=0.15)


@pytest.mark.parametrize(("step", "factor"), [(30, math.exp(0.1)), (1000, math.exp(4 / 1000))])
def test_while_the_learning_rate_falls_the_trusted_step_size_grows_slowly(
    step: int, factor: float
) -> None:
    """The losses fall because their noise does. Above half of the peak it grows fast."""
    kept = on_its_way(observed=2.0, predicted=1.0, weight=0.5)
    for lr, expected in ((3.9, factor), (4.1, math.exp(0.1)), (8.0, math.exp(0.1))):
        stats = replace(seen(5.0, lr=lr), step=step, is_scheduled=True)
        found = TrustedMoMo()(stats, kept)
        assert trusted(found) == pytest.approx(expected * float(kept["trusted"]), rel=1e-9)


def test_first_gap_of_0() -> None:
    """Nothing is known of how long a step may be, until the loss is above the bound."""
    rule = TrustedMoMo(1.0)
    at_bound = after(rule, seen(1.0, bound=1.0))
    assert at_bound.theta == 0.0
    assert trusted(at_bound) == 0.0
    above = after(rule, seen(1.0, bound=1.0), seen(3.0, bound=1.0))
    assert float(above.theta) == pytest.approx(0.02)


@pytest.mark.parametrize("decrease", [-2.0, 2.0])
def test_first_step_that_does_not_descend_is_as_short(decrease: float) -> None:
    """Weight decay may outweigh the gradient; at α = 100 a full step would ruin the parameters."""
    decision = after(TrustedMoMo(), seen(4.0, decrease=100 * decrease, lr=100.0))
    assert float(decision.theta) == pytest.approx(0.01 * 4.0 / 200.0)


@pytest.mark.parametrize("decrease", [0.0, 1e-320, -1e-320])
def test_first_gradient_that_is_almost_0_tells_no_step_size(decrease: float) -> None:
    rule = TrustedMoMo()
    first = after(rule, seen(4.0, decrease=decrease, lr=100.0))
    assert first.theta == 0.0
    second = after(rule, seen(4.0, decrease=50.0, lr=100.0), memory=first.memory)
    assert float(second.theta) == pytest.approx(0.01 * 4.0 / 50.0)


def test_an_explosion_is_forgotten() -> None:
    """In float32, where the square of such a loss is infinite."""
    rule = TrustedMoMo()
    generator = torch.Generator().manual_seed(0)
    memory = fresh(rule, torch.float32)
    sizes = []
    for step in range(2000):
        noise = 0.1 * float(torch.randn((), generator=generator))
        loss = 1e20 if step == 5 else (1.0 if step < 1900 else 0.9) + noise
        stats = seen(loss, value=1.0, mean_loss=1.0, decrease=0.5, dtype=torch.float32)
        memory = rule(stats, memory).memory
        sizes.append(float(memory["trusted"]))
    assert memory["observed_square"] < 1.0
    # Noise about a constant loss is no reason to grow; from then on losses that fall are one again.
    assert sizes[1900] < 1.5 * sizes[0]
    assert 2.0 * sizes[1900] < sizes[-1] < math.inf


def test_a_rule_without_a_bound_may_get_one() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=100.0, momentum=0.9), TrustedMoMo(-math.inf))
    optimizer.param_groups[0]["lr"] = 0.01
    for _ in range(5):
        optimizer.step(loss=problem.gradients())
        assert optimizer.state_dict()["param_groups"][0]["momo_rule_trusted"] == 0.0
    optimizer.rule = TrustedMoMo()
    optimizer.param_groups[0]["lr"] = 100.0
    optimizer.step(loss=problem.gradients())
    assert 0.0 < last_step(optimizer).theta < 1e-2
    optimizer.rule = TrustedMoMo(-math.inf)
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.step(loss=problem.gradients())


def test_a_base_without_a_learning_rate() -> None:
    """α counts as 1 then."""

    class Unit(SGD):
        """Steps of the length of the averaged gradient."""

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            (group,) = self.param_groups
            group["lr"] = 1.0
            super().step(closure)
            group["lr"] = None

    def proposed(params: Params) -> Optimizer:
        averaging = Averaging(decay=0.9, weight=0.1, first_weight=1.0)
        adapter = ProposingAdapter("momentum_buffer", averaging=lambda *_: averaging)
        base = Unit(params, lr=1.0, momentum=0.9, dampening=0.9)
        base.param_groups[0]["lr"] = None
        return MoMoWrapper(base, TrustedMoMo(), adapter=adapter)

    def read(params: Params) -> Optimizer:
        return MoMoWrapper(SGD(params, lr=1.0, momentum=0.9, dampening=0.9), TrustedMoMo())

    assert relative_distance(trajectory(proposed, 20), trajectory(read, 20)) < 1e-9


def test_memory_is_in_the_first_group() -> None:
    problem = Problem()
    halves: list[dict[str, Any]] = [
        {"params": problem.params[:2]},
        {"params": problem.params[2:], "lr": 50.0},
    ]
    optimizer = MoMoWrapper(AdamW(halves, lr=100.0), TrustedMoMo())
    optimizer.step(loss=problem.gradients())
    first, second = optimizer.state_dict()["param_groups"]
    names = {f"momo_rule_{name}" for name in TrustedMoMo().initial_memory(0.0)}
    assert names <= first.keys()
    assert not names & second.keys()
    assert first["momo_rule_peak_lr"] == 100.0


# Learning rates far too high.


def loss_after_training(make: Callable[[Params], Optimizer], seed: int, steps: int = 400) -> float:
    """The loss in the last quarter of least squares in minibatches, with a linear schedule.

    Noise in the targets keeps it above 0.48, so that the bound of 0 is far out of reach.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = random(512, 10) * torch.logspace(0.0, -1.0, 10, dtype=torch.float64)
    targets = inputs @ random(10) * 2.0 + 0.7 * random(512)
    weights = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = make([weights])
    schedule = LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        rows = torch.randperm(512, generator=generator)[:16]
        loss = (inputs[rows] @ weights - targets[rows]).square().mean()
        loss.backward()
        take_step(optimizer, loss.detach())
        schedule.step()
        losses.append((inputs @ weights.detach() - targets).square().mean())
    return float(torch.stack(losses[-steps // 4 :]).mean())


LRS = [10.0**exponent for exponent in (-2.5, -2.0, -1.5, -1.0, -0.5, 0.0)]


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("SGD", 0),
        pytest.param("Adam", 1, marks=pytest.mark.slow),
        pytest.param("SGD", 1, marks=pytest.mark.slow),
        pytest.param("Adam", 0, marks=pytest.mark.slow),
    ],
)
def test_trains_at_learning_rates_far_too_high(name: str, seed: int) -> None:
    """To within a tenth of the loss of the best bare learning rate, which MoMo misses by far."""

    def bare(params: Params, lr: float) -> Optimizer:
        return KINDS[name](params, lr=lr)

    def wrapped(params: Params, lr: float, rule: StepRule) -> Optimizer:
        return MoMoWrapper(bare(params, lr), rule)

    found = [loss_after_training(partial(bare, lr=lr), seed) for lr in LRS]
    best = min(found)
    assert best not in (found[0], found[-1])
    for lr in (1.0, 100.0, 1e4):
        trained = loss_after_training(partial(wrapped, lr=lr, rule=TrustedMoMo()), seed)
        assert trained < 1.1 * best, lr
    assert loss_after_training(partial(wrapped, lr=100.0, rule=MoMo()), seed) > 1.7 * best


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "nothing is required": (
        lambda: TrustedMoMo(required=1.0),
        ValueError,
        "TrustedMoMo got required=1.0, expected a number of at least 0 and below 1. Write "
        "TrustedMoMo(required=0.2).",
    ),
    "no growth": (
        lambda: TrustedMoMo(rate=0.0),
        ValueError,
        "TrustedMoMo got rate=0.0, expected a number above 0 and of at most 1. Write "
        "TrustedMoMo(rate=0.05).",
    ),
    "a window of one step": (
        lambda: TrustedMoMo(window=1),
        ValueError,
        "TrustedMoMo got window=1, expected a number of at least 2 that is finite. Write "
        "TrustedMoMo(window=20.0).",
    ),
    "a window without end": (
        lambda: TrustedMoMo(window=math.inf),
        ValueError,
        "TrustedMoMo got window=inf, expected a number of at least 2 that is finite",
    ),
    "confidence in the wrong sense": (
        lambda: TrustedMoMo(confidence=-1.0),
        ValueError,
        "TrustedMoMo got confidence=-1.0, expected a number of at least 0. Write "
        "TrustedMoMo(confidence=3.0).",
    ),
    "a start beyond the bound": (
        lambda: TrustedMoMo(start=1.5),
        ValueError,
        "TrustedMoMo got start=1.5, expected a number above 0 and of at most 1. Write "
        "TrustedMoMo(start=0.01).",
    ),
    "a setting that is a tensor": (
        lambda: TrustedMoMo(rate=torch.tensor(0.1)),  # type: ignore[arg-type]
        TypeError,
        "rate must be a Python number, got Tensor. Write TrustedMoMo(rate=0.05).",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_settings_are_in_the_repr() -> None:
    assert repr(TrustedMoMo(1, rate=0.2)) == (
        "TrustedMoMo(lower_bound=1.0, required=0.2, rate=0.2, window=20.0, confidence=3.0, "
        "start=0.01, every=3.0, measurements=10.0, descends=0.1)"
    )

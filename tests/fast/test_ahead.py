"""If θ is predicted, the pass that computes the sums also moves: the same as two passes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from momo_wrap import (
    ModelStats,
    MoMo,
    MoMoStar,
    MoMoWrapper,
    StepDecision,
    StepRule,
    TrustedMoMo,
)
from momo_wrap.engine.ahead import Ahead
from momo_wrap.fast import CompiledEngine, batches, choice, kernels
from momo_wrap.fast.stepping import SteppingEngine
from momo_wrap.research import SPSMax
from momo_wrap.testing.blocks import block_elements
from tests.problems import Problem, flat

Make = Callable[[Any], Optimizer]

BASES: dict[str, Make] = {
    "SGD": lambda params: SGD(params, lr=0.01, momentum=0.9, weight_decay=0.01),
    "Nesterov": lambda params: SGD(params, lr=0.01, momentum=0.9, nesterov=True),
    "Adam": lambda params: Adam(params, lr=0.01, amsgrad=True),
    "AdamW": lambda params: AdamW(params, lr=0.01, weight_decay=0.1),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=0.01),
    "RAdam": lambda params: torch.optim.RAdam(params, lr=0.01),
    "Adamax": lambda params: torch.optim.Adamax(params, lr=0.01),
}
# Each has kernels of its own, which take seconds to compile: by default SGD and AdamW are run.
OF_BASES = [
    pytest.param(base, marks=[] if base in ("SGD", "AdamW") else pytest.mark.slow) for base in BASES
]
RULES: dict[str, Callable[[], StepRule]] = {
    "MoMo": MoMo,
    "MoMoStar": MoMoStar,
    "TrustedMoMo": TrustedMoMo,
    "unbounded": lambda: MoMo(-math.inf),
}


@contextmanager
def two_passes() -> Iterator[None]:
    """Let no engine move ahead."""
    compiled = patch.object(CompiledEngine, "foresees", False)
    with compiled, patch.object(SteppingEngine, "foresees", False):
        yield


class Passes:
    """Counts passes over the blocks, and how many of the sums also move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sums = self.moves = self.ahead = 0
        run = kernels.run

        def spy(traced: Any, key: Any, columns: Any, *more: Any) -> Any:
            *_, scales = more
            self.moves += key[0] == "move"
            self.sums += key[0] == "sum up"
            self.ahead += key[0] == "sum up" and bool(scales)
            return run(traced, key, columns, *more)

        monkeypatch.setattr(kernels, "run", spy)

    def taken(self) -> tuple[int, int, int]:
        """Return sums, moves, and sums that move, since it was last asked."""
        found = (self.sums, self.moves, self.ahead)
        self.sums = self.moves = self.ahead = 0
        return found


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    return Passes(monkeypatch)


def at_lr(optimizer: Optimizer, lr: float | None) -> Optimizer:
    for group in optimizer.param_groups if lr is not None else []:
        group["lr"] = lr
    return optimizer


def run(
    make: Make,
    rule: StepRule,
    steps: int = 25,
    *,
    lr: float | None = None,
    dtype: torch.dtype = torch.float32,
    groups: int = 1,
    compiled: Any = True,
    start: Mapping[str, Any] | None = None,
) -> tuple[list[Tensor], MoMoWrapper]:
    """Train, and return the parameters after each step."""
    problem = Problem(dtype=dtype)
    params: Any = problem.params
    if groups > 1:
        params = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02 if lr is None else lr}]
    optimizer = MoMoWrapper(at_lr(make(params), lr), rule, compiled=compiled)
    if start is not None:
        optimizer.load_state_dict(dict(start))
    found = []
    for _ in range(steps):
        optimizer.step(loss=problem.gradients())
        found.append(flat(problem.params))
    return found, optimizer


@pytest.mark.parametrize("rule", ["MoMo", "TrustedMoMo", "unbounded"])
@pytest.mark.parametrize("base", OF_BASES)
def test_bit_for_bit_if_theta_is_predicted(base: str, rule: str, passes: Passes) -> None:
    """At a cap that never binds, or with a limit that is known beforehand, two passes are one."""
    lr = 100.0 if rule == "TrustedMoMo" else None
    found, _ = run(BASES[base], RULES[rule](), lr=lr)
    sums, moves, ahead = passes.taken()
    with two_passes():
        expected, _ = run(BASES[base], RULES[rule](), lr=lr)
    assert all(map(torch.equal, found, expected))
    # The first step makes the state; then two steps find out; a shortened step takes two more.
    assert ahead > sums // 3
    assert moves < sums
    assert passes.taken()[2] == 0


@pytest.mark.parametrize("base", OF_BASES)
def test_a_wrong_prediction_is_corrected(base: str, passes: Passes) -> None:
    """Caps at which some steps are shortened: in float64 equal to two passes, to rounding."""
    for lr in (0.3, 3.0):
        found, _ = run(BASES[base], MoMo(), lr=lr, dtype=torch.float64, steps=12)
        with two_passes():
            expected, optimizer = run(BASES[base], MoMo(), lr=lr, dtype=torch.float64, steps=12)
        for one, other in zip(found, expected, strict=True):
            assert (one - other).abs().max() <= 1e-9 * (1.0 + other.abs().max())
        assert optimizer.last_step is not None
    assert passes.taken()[1] > 0


@pytest.mark.parametrize("groups", [1, 2])
def test_a_run_that_is_shortened_at_every_step_takes_two_passes(
    groups: int, passes: Passes
) -> None:
    run(BASES["AdamW"], MoMo(), 4, lr=1e6, groups=groups)
    passes.taken()
    _, optimizer = run(BASES["AdamW"], MoMo(), 10, lr=1e6, groups=groups)
    sums, moves, ahead = passes.taken()
    assert (moves, ahead) == (sums, 0)
    assert optimizer.last_step is not None
    assert 0.0 < optimizer.last_step.theta < 1.0


@pytest.mark.parametrize(("count", "calls"), [(1, 1), (3, 1), (4, 1), (9, 3)])
@pytest.mark.parametrize("base", ["SGD", "AdamW"])
def test_several_blocks_share_a_call(base: str, count: int, calls: int, passes: Passes) -> None:
    """Four at most; where there are fewer, others are added, which change nothing."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(200 + i, generator=generator) for i in range(count)]
    ends = []
    for compiled in (True, False):
        params = [tensor.clone().requires_grad_() for tensor in start]
        with block_elements(512):
            optimizer = MoMoWrapper(BASES[base](params), compiled=compiled)
            for _ in range(4):
                passes.taken()
                loss = sum((param.square().mean() for param in params), torch.zeros(()))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step(loss=loss)
        ends.append(flat(params))
        assert passes.taken() == ((calls, 0, calls) if compiled else (0, 0, 0))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


class Told(StepRule):
    """Takes given fractions, and predicts others."""

    def __init__(self, fractions: Sequence[float], foreseen: Sequence[float]) -> None:
        super().__init__()
        self.fractions, self.foreseen = iter(fractions), iter(foreseen)

    def foresee(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> Tensor:
        assert math.isnan(stats.predicted_decrease)
        assert math.isnan(stats.value)
        assert stats.loss.isfinite()
        return torch.full_like(stats.learning_rate, next(self.foreseen))

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        theta = torch.full_like(stats.learning_rate, next(self.fractions))
        return StepDecision(theta, theta, stats.lower_bound)


def test_after_a_wrong_expectation_two_passes_until_one_comes_true(passes: Passes) -> None:
    fractions = [1.0, 1.0, 1.0, 0.5, 0.5, 1.0, 1.0, 1.0]
    ahead = []
    problem = Problem(dtype=torch.float32)
    rule = Told(fractions, [1.0] * 8)
    optimizer = MoMoWrapper(BASES["SGD"](problem.params), rule, compiled=True)
    for _ in fractions:
        optimizer.step(loss=problem.gradients())
        ahead.append(passes.taken())
    # The first step makes the state, uncompiled, and the second has nothing to go by.
    assert ahead == [(0, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1), *[(1, 1, 0)] * 2, *[(1, 0, 1)] * 2]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
def test_a_move_that_can_not_be_undone_is_not_made(wrong: float, passes: Passes) -> None:
    problem = Problem(dtype=torch.float32)
    rule = Told([1.0] * 8, [1.0, 1.0, 1.0, *[wrong] * 5])
    optimizer = MoMoWrapper(BASES["AdamW"](problem.params), rule, compiled=True)
    for _ in range(3):
        optimizer.step(loss=problem.gradients())
    passes.taken()
    optimizer.step(loss=problem.gradients())
    assert passes.taken() == (1, 1, 0)
    assert flat(problem.params).isfinite().all()


def test_weight_decay_that_leaves_nothing_is_not_divided_by(passes: Passes) -> None:
    """1 - α λ is 0."""

    def make(params: Any) -> Optimizer:
        return AdamW(params, lr=10.0, weight_decay=0.1)

    found, _ = run(make, MoMo(-math.inf), 6)
    assert passes.taken()[2] == 0
    assert found[-1].isfinite().all()


def test_16_bits_are_rounded_once(passes: Passes) -> None:
    run(BASES["AdamW"], MoMo(), 6, dtype=torch.bfloat16)
    sums, moves, ahead = passes.taken()
    assert sums > 0
    assert (moves, ahead) == (sums, 0)


def test_rules_without_a_prediction(passes: Passes) -> None:
    run(BASES["AdamW"], SPSMax(), 6)
    sums, moves, ahead = passes.taken()
    assert sums > 0
    assert (moves, ahead) == (sums, 0)


def assert_a_spike_costs_no_digits(make: Make, spike: float) -> None:
    """At θ = 0: the parameters stay where they are."""
    problem = Problem(dtype=torch.float32)
    rule = Told([1.0] * 5 + [0.0], [1.0] * 6)
    optimizer = MoMoWrapper(make(problem.params), rule, compiled=True)
    moved = torch.zeros(())
    for _ in range(5):
        before = flat(problem.params)
        optimizer.step(loss=problem.gradients())
        moved = (flat(problem.params) - before).abs().max()
    before, loss = flat(problem.params), problem.gradients()
    for param in problem.params:
        assert param.grad is not None
        param.grad *= spike
    optimizer.step(loss=loss)
    # 16 times as far as in the last step is the farthest that any of them was moved ahead.
    farthest = before.abs() + 16.0 * moved
    error = (flat(problem.params) - before).abs()
    assert (error <= 2.0 * torch.finfo(torch.float32).eps * farthest).all()


@pytest.mark.parametrize("spike", [1e3, 1e6, 1e12, 1e30])
def test_a_spike_costs_no_digits(spike: float) -> None:
    """A gradient 1e6 times the usual one."""
    assert_a_spike_costs_no_digits(BASES["Nesterov"], spike)


def test_a_spike_that_is_right_is_taken_whole() -> None:
    """To rounding, since it was held back in the first pass."""

    def ends() -> Tensor:
        problem = Problem(dtype=torch.float32)
        rule = Told([1.0] * 6, [1.0] * 6)
        optimizer = MoMoWrapper(BASES["SGD"](problem.params), rule, compiled=True)
        for step in range(6):
            loss = problem.gradients()
            for param in problem.params:
                assert param.grad is not None
                param.grad *= 1e3 if step == 5 else 1.0
            optimizer.step(loss=loss)
        return flat(problem.params)

    found = ends()
    with two_passes():
        expected = ends()
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@given(st.data())
def test_moved_ahead_and_put_right_is_moved_at_once(data: st.DataObject) -> None:
    """A few units in the last place of max(|x|, limit), against NumPy in extended precision."""
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    eps = torch.finfo(dtype).eps
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    x = torch.randn(40, generator=generator, dtype=dtype)
    u = torch.randn(40, generator=generator, dtype=dtype)
    u[:3] *= 10.0 ** data.draw(st.integers(-3, 12))
    pull, keep, ahead_pull, ahead_keep = (
        torch.tensor(value, dtype=dtype)
        for value in (
            data.draw(st.floats(0.0, 1.0)),
            data.draw(st.floats(0.5, 1.0)),
            data.draw(st.floats(0.0, 1.0)),
            data.draw(st.floats(0.5, 1.0)),
        )
    )
    limit = torch.tensor(data.draw(st.floats(0.0, 10.0)), dtype=dtype)
    ahead = Ahead(ahead_pull, ahead_keep, limit)
    moved = ahead.move(x.clone(), u)
    back = ahead.put_back(moved.clone(), u)
    found = back.mul(keep).sub(u * pull)
    exact = x.numpy().astype(np.longdouble) * keep.item()
    exact = exact - u.numpy().astype(np.longdouble) * np.longdouble(pull.item())
    error = np.abs(found.numpy().astype(np.longdouble) - exact)
    largest = np.maximum(x.abs().numpy(), limit.item()) + (u * pull).abs().numpy()
    assert (error <= 8.0 * eps * largest).all()


class Failing(MoMo):
    """A rule that raises once its flag is set."""

    error: BaseException | None = None

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        if self.error is not None:
            raise self.error
        return super().__call__(stats, memory)


@pytest.mark.parametrize("compiled", [True, False])
def test_an_error_in_the_rule_restores_the_parameters(compiled: bool) -> None:
    """To rounding, as one moves there and back."""
    problem = Problem(dtype=torch.float64)
    with patch.object(choice, "_WORTH_FORESEEING", 0):
        base = AdamW(problem.params, lr=0.01, fused=True)
        optimizer = MoMoWrapper(base, rule := Failing(), compiled=compiled)
        for _ in range(5):
            optimizer.step(loss=problem.gradients())
        before, rule.error = flat(problem.params), KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(loss=problem.gradients())
        assert (flat(problem.params) - before).abs().max() < 1e-15
        rule.error = None
        optimizer.step(loss=problem.gradients())
    assert (flat(problem.params) - before).abs().max() > 1e-4


class Interrupted(BaseException):
    """An error in the middle of a pass."""


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_an_error_between_blocks_restores_the_moved_ones(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem(dtype=torch.float64)
    with block_elements(8), patch.object(batches, "_TOGETHER", 1):
        optimizer = MoMoWrapper(BASES[name](problem.params), MoMo(), compiled=True)
        for _ in range(5):
            optimizer.step(loss=problem.gradients())
        before, loss, calls, run = flat(problem.params), problem.gradients(), [0], kernels.run

        def fails(*given: Any) -> Any:
            calls[0] += 1
            if calls[0] == 2:
                raise Interrupted
            return run(*given)

        monkeypatch.setattr(kernels, "run", fails)
        with pytest.raises(Interrupted):
            optimizer.step(loss=loss)
    assert calls[0] > 2
    assert (flat(problem.params) - before).abs().max() < 1e-15


# Bases whose direction has a gradient in it to which weight decay is added.
DECAYED: dict[str, Make] = {
    "SGD": lambda params: SGD(params, lr=0.01, weight_decay=0.1),
    "Nesterov": lambda params: SGD(
        params, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1, maximize=True
    ),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("base", DECAYED)
@pytest.mark.parametrize("groups", [1, 2])
def test_directions_that_depend_on_the_parameters(base: str, groups: int) -> None:
    """They can't be computed again where the parameters have moved."""
    fractions = [1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 0.0, 1.0]
    settings: dict[str, Any] = {"dtype": torch.float64, "groups": groups, "steps": len(fractions)}
    with block_elements(8):
        found, _ = run(DECAYED[base], Told(fractions, [1.0] * 8), **settings)
        with two_passes():
            expected, _ = run(DECAYED[base], Told(fractions, [1.0] * 8), **settings)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-14


class Foreseeing(MoMo):
    """Predicts a given value."""

    theta: Any = None

    def foresee(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> Any:
        return self.theta


@pytest.mark.parametrize("wrong", [1.0, torch.ones(3), "all"])
def test_the_prediction_must_be_a_fraction(wrong: object) -> None:
    problem = Problem(dtype=torch.float32)
    rule = Foreseeing()
    optimizer = MoMoWrapper(BASES["AdamW"](problem.params), rule, compiled=True)
    for _ in range(4):
        optimizer.step(loss=problem.gradients())
    before, rule.theta, loss = flat(problem.params), wrong, problem.gradients()
    with pytest.raises(TypeError, match=r"rule's foresee must be a 0-dim tensor"):
        optimizer.step(loss=loss)
    assert torch.equal(flat(problem.params), before)


def test_the_prediction_may_be_of_any_dtype(passes: Passes) -> None:
    """0.1 in double precision is the 0.1 of a decision in single precision."""
    problem = Problem(dtype=torch.float32)
    rule = Told([0.1] * 6, [])
    foreseen = torch.tensor(0.1, dtype=torch.float64)
    with patch.object(Told, "foresee", lambda *_: foreseen):
        optimizer = MoMoWrapper(BASES["AdamW"](problem.params), rule, compiled=True)
        for _ in range(6):
            optimizer.step(loss=problem.gradients())
    assert passes.taken()[2] > 0


def test_one_element_that_is_nan_stays_alone() -> None:
    """With a rule that continues."""
    ends = []
    for foreseen in (1.0, 0.5):
        problem = Problem(dtype=torch.float32)
        rule = Told([1.0] * 8, [foreseen] * 8)
        optimizer = MoMoWrapper(BASES["SGD"](problem.params), rule, compiled=True)
        for step in range(8):
            for param in problem.params:
                param.grad = torch.ones_like(param)
            if step == 4:
                problem.params[0].grad[0, 0] = math.nan  # type: ignore[index]
            optimizer.step(loss=1.0)
        ends.append(flat(problem.params))
    assert ends[0].isnan().sum() == 1
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("after", range(2, 9))
def test_resumes_bit_for_bit(name: str, after: int) -> None:
    """Predicted and unpredicted steps alternate."""
    fractions = [1.0, 1.0, 1.0, 0.5, 0.5, 1.0, 1.0, 0.25, 1.0, 1.0, 1.0]
    problem = Problem(dtype=torch.float32)
    rule = Told(fractions, [1.0] * 11)
    optimizer = MoMoWrapper(BASES[name](problem.params), rule, compiled=True)
    for _ in range(after):
        optimizer.step(loss=problem.gradients())
    again = Problem(dtype=torch.float32)
    again.generator.set_state(problem.generator.get_state())
    for own, other in zip(again.params, problem.params, strict=True):
        own.data.copy_(other.data)
    rule = Told(fractions[after:], [1.0] * 11)
    resumed = MoMoWrapper(BASES[name](again.params), rule, compiled=True)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in fractions[after:]:
        optimizer.step(loss=problem.gradients())
        resumed.step(loss=again.gradients())
        assert torch.equal(flat(problem.params), flat(again.params))


class TestFusedBase:
    """A fused base takes the predicted step itself, uncompiled."""

    @pytest.fixture(autouse=True)
    def of_any_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(choice, "_WORTH_FORESEEING", 0)

    @staticmethod
    def make(params: Any) -> Optimizer:
        return AdamW(params, lr=0.01, weight_decay=0.1, fused=True)

    @pytest.mark.parametrize("kind", [Adam, AdamW])
    @pytest.mark.parametrize("groups", [1, 2])
    def test_without_a_bound_it_is_bare(self, kind: Any, groups: int) -> None:
        """Bit for bit, from where its first steps have led."""

        def make(params: Any) -> Optimizer:
            optimizer: Optimizer = kind(params, lr=0.01, weight_decay=0.1, fused=True)
            return optimizer

        problem = Problem(dtype=torch.float32)
        parts: Any = [{"params": problem.params[:2]}, {"params": problem.params[2:], "lr": 0.02}]
        params = problem.params if groups == 1 else parts
        optimizer = MoMoWrapper(make(params), MoMo(-math.inf), compiled=False)
        for _ in range(3):
            optimizer.step(loss=problem.gradients())
        other = Problem(dtype=torch.float32)
        other.generator.set_state(problem.generator.get_state())
        for own, its in zip(other.params, problem.params, strict=True):
            own.data.copy_(its.data)
        parts = [{"params": other.params[:2]}, {"params": other.params[2:], "lr": 0.02}]
        bare = make(other.params if groups == 1 else parts)
        bare.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for _ in range(10):
            optimizer.step(loss=problem.gradients())
            other.gradients()
            bare.step()
            assert torch.equal(flat(problem.params), flat(other.params))

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("groups", [1, 2])
    @pytest.mark.parametrize("lr", [0.01, 1.0, 100.0])
    def test_is_what_two_passes_are(self, rule: str, groups: int, lr: float) -> None:
        settings: dict[str, Any] = {
            "dtype": torch.float64,
            "groups": groups,
            "lr": lr,
            "compiled": False,
            "steps": 12,
        }
        found, optimizer = run(self.make, RULES[rule](), **settings)
        assert type(optimizer._bases._engines[0]) is SteppingEngine
        with two_passes():
            expected, other = run(self.make, RULES[rule](), **settings)
        for one, two in zip(found, expected, strict=True):
            assert (one - two).abs().max() <= 1e-9 * (1.0 + two.abs().max())
        assert optimizer.last_step is not None
        assert other.last_step is not None
        torch.testing.assert_close(
            optimizer.last_step.theta, other.last_step.theta, rtol=1e-7, atol=1e-9
        )

    def test_16_bits_are_rounded_once_more(self) -> None:
        """In a step that was not predicted; against one step from the same state."""
        problem = Problem(dtype=torch.bfloat16)
        rule = Told([1.0] * 4 + [0.25], [1.0] * 5)
        optimizer = MoMoWrapper(self.make(problem.params), rule, compiled=False)
        for _ in range(4):
            optimizer.step(loss=problem.gradients())
        other = copy.deepcopy(optimizer)
        start, loss = flat(problem.params).clone(), problem.gradients()
        others = [param for group in other.param_groups for param in group["params"]]
        for own, param in zip(others, problem.params, strict=True):
            own.grad = param.grad
        optimizer.step(loss=loss)
        other.rule = Told([0.25], [0.5])
        with two_passes():
            other.step(loss=loss)
        assert not torch.equal(start, flat(problem.params))
        error = (flat(problem.params).float() - flat(others).float()).abs()
        assert (
            error <= torch.finfo(torch.bfloat16).eps * start.float().abs().clamp(min=0.01)
        ).all()

    @pytest.mark.parametrize("layout", ["gaps", "gradient"])
    def test_where_the_fused_kernel_goes_wrong(self, layout: str) -> None:
        """It takes all tensors of a parameter to lie in memory alike, and without gaps."""

        def ends() -> Tensor:
            wide = torch.arange(48.0).view(6, 8)
            param = (wide[:, 2:5] if layout == "gaps" else wide[:3, :6].clone()).requires_grad_()
            fractions = [1.0] * 4 + [0.5]
            optimizer = MoMoWrapper(self.make([param]), Told(fractions, [1.0] * 5), compiled=False)
            for step in range(5):
                generator = torch.Generator().manual_seed(step)
                param.grad = torch.randn(param.shape, generator=generator)
                if layout == "gradient":
                    param.grad = param.grad.t().contiguous().t()
                optimizer.step(loss=1.0)
            return param.detach().clone()

        found = ends()
        with two_passes():
            assert torch.equal(found, ends())

    def test_who_watches_sees_a_step_at_learning_rate_0(self) -> None:
        problem = Problem(dtype=torch.float32)
        optimizer = MoMoWrapper(self.make(problem.params), compiled=False)
        seen: list[float] = []
        for step in range(6):
            if step == 4:
                optimizer.base.register_step_pre_hook(
                    lambda base, *_: seen.append(base.param_groups[0]["lr"])
                )
            optimizer.step(loss=problem.gradients())
        assert seen == [0.0, 0.0]

    def test_learning_rates_are_put_back(self) -> None:
        """The very objects, also where the base raises."""
        problem = Problem(dtype=torch.float32)
        optimizer = MoMoWrapper(self.make(problem.params), compiled=False)
        lr = 0.0123456789
        optimizer.param_groups[0]["lr"] = lr
        for _ in range(5):
            optimizer.step(loss=problem.gradients())
        assert optimizer.param_groups[0]["lr"] is lr
        loss = problem.gradients()
        optimizer.state[problem.params[0]]["exp_avg"] = None
        with pytest.raises(Exception, match=r"NoneType|exp_avg"):
            optimizer.step(loss=loss)
        assert optimizer.param_groups[0]["lr"] is lr

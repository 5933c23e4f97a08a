"""On accelerators a kernel finds out which moves ahead were wrong: the same as two passes."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW

import momo_wrap.bases
from momo_wrap import MoMo, MoMoWrapper
from momo_wrap.adapters.ahead_step import AheadStep
from momo_wrap.adapters.planned_step import PlannedStep
from momo_wrap.fast import kernels
from momo_wrap.testing.blocks import block_elements
from tests.fast.on_device import on_device, reference
from tests.fast.test_ahead import (
    BASES,
    DECAYED,
    OF_BASES,
    Failing,
    Passes,
    Told,
    assert_a_spike_costs_no_digits,
    at_lr,
    passes,
    run,
    two_passes,
)
from tests.problems import Problem, flat

__all__ = ["passes"]

# So that all parameters but a bias are in blocks of their own.
LARGE = 12
# Those that the kernel corrects. SGD with Nesterov's momentum and NAdam step along the gradient.
CORRECTED = {"SGD", "Adam", "AdamW", "RAdam"}
EPS = torch.finfo(torch.float32).eps


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-9 * (1.0 + other.abs().max())


@pytest.mark.parametrize("rule", ["MoMo", "unbounded"])
@pytest.mark.parametrize("base", OF_BASES)
def test_is_two_passes(base: str, rule: str, passes: Passes) -> None:
    """Bit for bit if θ was right in all steps, else in float64 to rounding."""
    bound, lr = (-math.inf, None) if rule == "unbounded" else (0.0, 3.0)
    settings: dict[str, Any] = {"dtype": torch.float64, "steps": 12, "lr": lr, "groups": 2}
    with block_elements(LARGE), two_passes():
        expected, _ = run(BASES[base], MoMo(bound), **settings)
        passes.taken()
    with block_elements(LARGE), on_device(reference) as launched:
        found, optimizer = run(BASES[base], MoMo(bound), **settings)
    assert optimizer.last_step is not None
    assert_close(found, expected)
    if rule == "unbounded":
        assert all(map(torch.equal, found, expected))
    _, moves, ahead = passes.taken()
    assert (len(launched) > 0) == (ahead > 0) == (base in CORRECTED)
    assert moves > 0  # packed ones, in a second pass


@pytest.mark.parametrize("base", ["SGD", "AdamW"])
def test_all_blocks_are_moved_ahead_in_all_steps(base: str, passes: Passes) -> None:
    """Unlike on the CPU also after a step with another θ; only from the third step on."""
    fractions = [1.0, 1.0, 1.0, 0.5, 0.5, 1.0, 0.0, 1.0]
    problem = Problem(dtype=torch.float32)
    ahead = []
    with block_elements(2), on_device(reference) as launched:
        rule = Told(fractions, [1.0] * 8)
        optimizer = MoMoWrapper(BASES[base](problem.params), rule, compiled=True)
        for _ in fractions:
            optimizer.step(loss=problem.gradients())
            ahead.append(passes.taken())
    assert ahead == [(0, 0, 0), (1, 1, 0), *[(1, 0, 1)] * 6]
    assert launched == [4] * 6


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("base", ["SGD", pytest.param("AdamW", marks=pytest.mark.slow)])
def test_a_move_that_can_not_be_undone_is_not_made(base: str, wrong: float) -> None:
    ends = []
    for foreseen in (wrong, 1.0):
        problem = Problem(dtype=torch.float64)
        rule = Told([1.0] * 8, [1.0, 1.0, 1.0, *[foreseen] * 5])
        with block_elements(LARGE), on_device(reference) as launched:
            optimizer = MoMoWrapper(BASES[base](problem.params), rule, compiled=True)
            for _ in range(8):
                optimizer.step(loss=problem.gradients())
        assert launched
        ends.append(flat(problem.params))
    assert_close(*[[end] for end in ends])


def test_weight_decay_that_leaves_nothing_is_not_divided_by() -> None:
    """1 - α λ is 0 in one group, 0.99 in the other."""

    def make(params: Any) -> AdamW:
        return AdamW(params, lr=10.0, weight_decay=0.1)

    settings: dict[str, Any] = {"dtype": torch.float64, "steps": 6, "groups": 2}

    def one_decays_less(params: Any) -> AdamW:
        optimizer = make(params)
        optimizer.param_groups[1]["weight_decay"] = 1e-3
        return optimizer

    with block_elements(LARGE), on_device(reference) as launched:
        found, _ = run(one_decays_less, MoMo(-math.inf), **settings)
    with block_elements(LARGE), two_passes():
        expected, _ = run(one_decays_less, MoMo(-math.inf), **settings)
    assert launched
    assert_close(found, expected)


@pytest.mark.parametrize("spike", [1e6, 1e30])
def test_a_spike_costs_no_digits(spike: float) -> None:
    with block_elements(LARGE), on_device(reference):
        assert_a_spike_costs_no_digits(BASES["SGD"], spike)


@pytest.mark.parametrize("base", ["AdamW", "SGD", pytest.param("Adam", marks=pytest.mark.slow)])
@pytest.mark.parametrize("lr", [1e2, 1e6])
def test_a_learning_rate_that_is_far_too_high_costs_no_digits(base: str, lr: float) -> None:
    """What a step moves ahead is at most 16 times what the last one moved."""
    ends = []
    for device in (True, False):
        problem = Problem(dtype=torch.float32)
        passes_of: AbstractContextManager[Any] = on_device(reference) if device else two_passes()
        with block_elements(LARGE), passes_of:
            optimizer = MoMoWrapper(at_lr(BASES[base](problem.params), lr), MoMo(), compiled=True)
            optimizer.param_groups[0]["weight_decay"] = 0.0  # which could not be undone
            for _ in range(4):
                optimizer.step(loss=problem.gradients())
        ends.append(flat(problem.params))
    assert (ends[0] - ends[1]).abs().max() <= 50 * EPS * (1.0 + ends[1].abs().max())


@pytest.mark.parametrize("base", ["SGD", "AdamW"])
def test_one_element_that_is_nan_stays_alone(base: str) -> None:
    ends = []
    for foreseen in (1.0, 0.5):
        problem = Problem(dtype=torch.float32)
        rule = Told([1.0] * 8, [foreseen] * 8)
        with block_elements(LARGE), on_device(reference):
            optimizer = MoMoWrapper(BASES[base](problem.params), rule, compiled=True)
            for step in range(8):
                for param in problem.params:
                    param.grad = torch.ones_like(param)
                if step == 4:
                    problem.params[0].grad[0, 0] = math.nan  # type: ignore[index]
                optimizer.step(loss=1.0)
        ends.append(flat(problem.params))
    assert ends[0].isnan().sum() == 1
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_a_small_tensor_that_is_packed_alone() -> None:
    """It has scalars of its own if step counts differ, and takes two passes."""
    ends = []
    for device in (True, False):
        problem = Problem(dtype=torch.float64)
        passes_of: AbstractContextManager[Any] = on_device(reference) if device else two_passes()
        with block_elements(LARGE), passes_of as launched:
            optimizer = MoMoWrapper(BASES["AdamW"](problem.params), MoMo(), compiled=True)
            for step in range(6):
                loss = problem.gradients()
                if step == 2:
                    problem.params[0].grad = None
                optimizer.step(loss=loss)
        assert kernels.failures == {}
        assert not device or launched[-1] == 3
        ends.append(flat(problem.params))
    assert_close(*[[end] for end in ends])


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
)
def test_16_bits_are_rounded_once(dtype: torch.dtype, passes: Passes) -> None:
    with block_elements(LARGE), on_device(reference) as launched:
        run(BASES["AdamW"], MoMo(), 6, dtype=dtype)
    sums, moves, ahead = passes.taken()
    assert sums > 0
    assert (moves, ahead, launched) == (sums, 0, [])


@pytest.mark.slow
@pytest.mark.parametrize("base", DECAYED)
def test_directions_that_depend_on_the_parameters(base: str) -> None:
    with block_elements(LARGE), on_device(reference) as launched:
        found, _ = run(DECAYED[base], MoMo(), 6, dtype=torch.float64)
    with block_elements(LARGE), two_passes():
        expected, _ = run(DECAYED[base], MoMo(), 6, dtype=torch.float64)
    assert launched == []
    assert all(map(torch.equal, found, expected))


@pytest.mark.slow
def test_a_base_that_maximizes_along_the_gradient() -> None:
    """Its buffer is the gradient, with the opposite sign, which the kernel does not know."""

    def ascent(params: Any) -> SGD:
        return SGD(params, lr=0.01, maximize=True)

    with block_elements(LARGE), on_device(reference) as launched:
        found, _ = run(ascent, MoMo(math.inf), 6, dtype=torch.float64)
    with block_elements(LARGE), two_passes():
        expected, _ = run(ascent, MoMo(math.inf), 6, dtype=torch.float64)
    assert launched == []
    assert all(map(torch.equal, found, expected))


def test_an_error_in_the_rule_restores_the_parameters() -> None:
    problem = Problem(dtype=torch.float64)
    with block_elements(LARGE), on_device(reference) as launched:
        rule = Failing()
        optimizer = MoMoWrapper(BASES["AdamW"](problem.params), rule, compiled=True)
        for _ in range(5):
            optimizer.step(loss=problem.gradients())
        before, rule.error = flat(problem.params), KeyboardInterrupt()
        count = len(launched)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(loss=problem.gradients())
    assert len(launched) == count + 1
    assert (flat(problem.params) - before).abs().max() < 1e-15


def assert_repaired_before_the_warning() -> None:
    problem = Problem(dtype=torch.float64)
    optimizer = MoMoWrapper(BASES["SGD"](problem.params), Told([1.0, 1.0, 0.0], [1.0] * 3))
    optimizer.compiled = True
    for _ in range(2):
        optimizer.step(loss=problem.gradients())
    before, loss = flat(problem.params), problem.gradients()
    with pytest.raises(UserWarning, match="no such device"):
        optimizer.step(loss=loss)
    assert (flat(problem.params) - before).abs().max() < 1e-15


def test_without_memory_for_it_kernels_are_used_on() -> None:
    def fails(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("no memory")

    problem = Problem(dtype=torch.float64)
    with block_elements(LARGE), on_device(fails) as launched:
        optimizer = MoMoWrapper(BASES["SGD"](problem.params), MoMo(), compiled=True)
        for _ in range(5):
            optimizer.step(loss=problem.gradients())
    assert len(launched) == 3
    assert kernels.failures == {}


def test_without_a_working_kernel_all_are_put_back_and_moved() -> None:
    """The parameters were moved by then. From the next step on, nothing is compiled."""

    def fails(*_: object) -> None:
        raise RuntimeError("no such device")

    def ends() -> Tensor:
        problem = Problem(dtype=torch.float64)
        rule = Told([1.0] * 4 + [0.5] * 4, [1.0] * 8)
        optimizer = MoMoWrapper(BASES["AdamW"](problem.params), rule, compiled=True)
        for _ in range(8):
            optimizer.step(loss=problem.gradients())
        return flat(problem.params)

    with block_elements(LARGE), on_device(fails) as launched:
        with pytest.warns(UserWarning, match=r"could not compile .* no such device"):
            found = ends()
        kernels.failures.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_repaired_before_the_warning()
        kernels.failures.clear()
    with block_elements(LARGE), two_passes():
        expected = ends()
    assert len(launched) == 2
    assert_close([found], [expected])


def assert_an_interruption_restores_the_parameters(
    monkeypatch: pytest.MonkeyPatch, make: Any, *places: tuple[object, str]
) -> None:
    """In the sixth step, whose parameters have moved ahead."""
    problem = Problem(dtype=torch.float64)
    rule = Told([1.0] * 5 + [0.0], [1.0] * 6)
    optimizer = MoMoWrapper(make(problem.params), rule, compiled=True)
    for _ in range(5):
        optimizer.step(loss=problem.gradients())
    before, loss = flat(problem.params), problem.gradients()

    def interrupted(*_: object) -> None:
        assert not torch.equal(flat(problem.params), before)
        raise KeyboardInterrupt

    for place, name in places:
        monkeypatch.setattr(place, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(loss=loss)
    assert (flat(problem.params) - before).abs().max() < 1e-15


@pytest.mark.parametrize("on", ["the device", "the CPU"])
def test_an_error_after_the_rule_restores_the_parameters(
    on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the decision and the second pass."""
    passes_of: Any = on_device(reference) if on == "the device" else nullcontext()
    places = (AheadStep, "_longest"), (PlannedStep, "apply")
    with block_elements(LARGE), passes_of:
        assert_an_interruption_restores_the_parameters(monkeypatch, BASES["SGD"], *places)


def two_bases(params: Any) -> list[Any]:
    return [AdamW(params[:2], lr=0.3), SGD(params[2:], lr=0.3, momentum=0.9)]


def test_an_error_in_joining_the_sums_restores_the_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = (momo_wrap.bases, "_complete")
    with block_elements(LARGE):
        assert_an_interruption_restores_the_parameters(monkeypatch, two_bases, place)


def test_several_bases() -> None:
    """Each with a launch of its own."""
    ends = []
    for device in (True, False):
        problem = Problem(dtype=torch.float64)
        passes_of: AbstractContextManager[Any] = on_device(reference) if device else two_passes()
        with block_elements(LARGE), passes_of as launched:
            optimizer = MoMoWrapper(two_bases(problem.params), compiled=True)
            for _ in range(8):
                optimizer.step(loss=problem.gradients())
        assert bool(launched) == device
        ends.append(flat(problem.params))
    assert_close(*[[end] for end in ends])


@pytest.mark.parametrize("name", ["SGD", pytest.param("AdamW", marks=pytest.mark.slow)])
@pytest.mark.parametrize("after", [2, 3, 5])
def test_resumes_bit_for_bit(name: str, after: int) -> None:
    fractions = [1.0, 1.0, 1.0, 0.5, 1.0, 0.0, 1.0, 1.0]
    problem, again = Problem(dtype=torch.float32), Problem(dtype=torch.float32)
    with block_elements(LARGE), on_device(reference):
        rule = Told(fractions, [1.0] * 8)
        optimizer = MoMoWrapper(BASES[name](problem.params), rule, compiled=True)
        for _ in range(after):
            optimizer.step(loss=problem.gradients())
        again.generator.set_state(problem.generator.get_state())
        for own, other in zip(again.params, problem.params, strict=True):
            own.data.copy_(other.data)
        rule = Told(fractions[after:], [1.0] * 8)
        resumed = MoMoWrapper(BASES[name](again.params), rule, compiled=True)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for _ in fractions[after:]:
            optimizer.step(loss=problem.gradients())
            resumed.step(loss=again.gradients())
            assert torch.equal(flat(problem.params), flat(again.params))

"""Probes that are recorded with the losses of a step: their mean is that of the step."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Adam

from momo_wrap import MoMo, MoMoWrapper
from tests.problems import Problem, flat
from tests.test_probes import Every, EverySlope

WEIGHTS = (1.0, 3.0)


def run(
    weights: Any = WEIGHTS, last: Callable[..., Any] | None = None, with_probe: Any = (True, True)
) -> tuple[float, list[list[float]], list[int]]:
    """Take four steps of two batches each, of which the third is probed.

    Returns the measurements, the losses of both batches of the last step at the parameters
    before and after the third one, and which of the two the probes were called for.
    """
    problem, rule = Problem(), Every()
    optimizer, before, called = MoMoWrapper(Adam(problem.params, lr=0.1), rule), problem.params, []
    rows = (torch.arange(8), torch.arange(8, 12))

    def loss_of(number: int) -> Tensor:
        called.append(number)
        return problem.loss(problem.params, rows[number])

    for step in range(1, 5):
        problem.gradients()
        now = [param.detach().clone() for param in problem.params]
        for number in range(2):
            loss, probe = loss_of(number), partial(loss_of, number)
            optimizer.record_loss(
                loss, weights[number], probe=probe if with_probe[number] else None
            )
        called.clear()
        if step == 4:
            points = (before, now)
        before = now
        if step == 4 and last is not None:
            last(optimizer, loss_of)
        else:
            optimizer.step()
        assert optimizer._pending._probes == []
    losses = [[float(problem.loss(x, each).detach()) for each in rows] for x in points]
    return rule.seen[-1][0], losses, called


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_it_is_the_difference_of_the_weighted_means(kind: Callable[[float], Any]) -> None:
    found, losses, called = run([kind(weight) for weight in WEIGHTS])
    then, now = ((first + 3 * second) / 4 for first, second in losses)
    assert found == pytest.approx(then - now, rel=1e-9)
    assert called == [0, 1]  # once each: the recorded losses are those of now


@pytest.mark.parametrize("number", [0, 1])
def test_one_batch_may_do_for_all(number: int) -> None:
    found, losses, called = run(with_probe=[i == number for i in range(2)])
    then, now = (pair[number] for pair in losses)
    assert found == pytest.approx(then - now, rel=1e-9)
    assert called == [number, number]  # the recorded mean is not its loss


def test_a_closure_may_record_them() -> None:
    problem, rule = Problem(), Every()
    optimizer, before = MoMoWrapper(Adam(problem.params, lr=0.1), rule), problem.params
    rows = torch.arange(16)

    def closure() -> None:
        problem.gradients()
        loss = problem.loss(problem.params, rows)
        optimizer.record_loss(loss, probe=partial(problem.loss, problem.params, rows))

    for step in range(1, 5):
        if step == 4:
            expected = problem.loss(before, rows) - problem.loss(problem.params, rows)
        before = [param.detach().clone() for param in problem.params]
        optimizer.step(closure)  # type: ignore[arg-type]
    assert rule.seen[-1][0] == pytest.approx(float(expected.detach()), rel=1e-9)


def test_zero_grad_and_skipped_steps_forget_them() -> None:
    def last(optimizer: MoMoWrapper, loss_of: Callable[[int], Tensor]) -> None:
        optimizer.zero_grad()
        optimizer.record_loss(loss_of(1), probe=partial(loss_of, 1))
        optimizer._step_supports_amp_scaling  # noqa: B018 -- as GradScaler, which skips the step
        optimizer.record_loss(loss_of(0), probe=partial(loss_of, 0))
        optimizer.step()

    found, losses, called = run(last=last)
    assert found == pytest.approx(losses[0][0] - losses[1][0], rel=1e-9)
    assert called == [1, 0, 0]


@pytest.mark.parametrize(
    "every", [Every(), EverySlope(), MoMo()], ids=["now and then", "slopes alone", "never"]
)
def test_a_probe_that_is_not_called_is_dropped_at_once(every: MoMo) -> None:
    class Held:
        def __call__(self) -> float:
            return 1.0

    problem = Problem()
    optimizer = MoMoWrapper(Adam(problem.params, lr=0.1), every)
    held = []
    for _ in range(7):
        probe = Held()
        optimizer.record_loss(problem.gradients(), probe=probe)
        reference = weakref.ref(probe)
        del probe
        gc.collect()
        held.append(reference() is not None)
        optimizer.step()
        gc.collect()
        assert reference() is None
    asks = type(every) is Every
    assert held == [False, False, False, asks, False, False, asks]


def reading_a_variable(loss_of: Callable[[int], Tensor]) -> list[Callable[[], Tensor]]:
    return [lambda: loss_of(number) for number in range(2)]  # noqa: B023


def of_a_default(loss_of: Callable[[int], Tensor]) -> list[Callable[[], Tensor]]:
    def probe_of(number: int) -> Callable[[], Tensor]:
        def probe(number: int = number, *, other: int = 0) -> Tensor:
            return loss_of(number + other)

        return probe

    return [probe_of(number) for number in range(2)]


def of_a_keyword(loss_of: Callable[[int], Tensor]) -> list[Callable[[], Tensor]]:
    probes: list[Callable[[], Tensor]] = []
    for number in range(2):

        def probe(*, number: int = number) -> Tensor:
            return loss_of(number)

        probes.append(probe)
    return probes


def of_a_closure(loss_of: Callable[[int], Tensor]) -> list[Callable[[], Tensor]]:
    def probe_of(number: int) -> Callable[[], Tensor]:
        return lambda: loss_of(number)

    return [probe_of(number) for number in range(2)]


def one_for_both(loss_of: Callable[[int], Tensor]) -> list[Callable[[], Tensor]]:
    probe: Callable[[], Tensor] = partial(loss_of, 0)
    return [probe, probe]


@pytest.mark.parametrize("functions", [reading_a_variable, one_for_both])
def test_the_same_function_for_two_batches_raises(functions: Callable[..., Any]) -> None:
    """One that reads a variable would return the loss of the last batch for both."""

    def last(optimizer: MoMoWrapper, loss_of: Callable[[int], Tensor]) -> None:
        optimizer.zero_grad()
        first, second = functions(loss_of)
        optimizer.record_loss(1.0, probe=first)
        with pytest.raises(ValueError, match=r"for two batches .* Write .*functools\.partial\("):
            optimizer.record_loss(1.0, probe=second)
        assert optimizer._pending.count == 1
        optimizer.step()

    run(last=last)


@pytest.mark.parametrize("functions", [of_a_default, of_a_keyword, of_a_closure])
def test_functions_that_hold_their_batch_are_not_the_same(functions: Callable[..., Any]) -> None:
    def last(optimizer: MoMoWrapper, loss_of: Callable[[int], Tensor]) -> None:
        optimizer.zero_grad()
        for number, probe in enumerate(functions(loss_of)):
            optimizer.record_loss(loss_of(number), WEIGHTS[number], probe=probe)
        optimizer.step()

    found, losses, _ = run(last=last)
    then, now = ((first + 3 * second) / 4 for first, second in losses)
    assert found == pytest.approx(then - now, rel=1e-9)


def test_a_probe_that_can_not_be_called_raises_before_anything_is_recorded() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(Adam(problem.params, lr=0.1), MoMo())
    wrong: Any = problem.gradients()
    message = r"record_loss\(\) got as probe Tensor, expected a function.*record_loss\(loss, probe="
    with pytest.raises(TypeError, match=message):
        optimizer.record_loss(wrong, probe=wrong)
    assert optimizer._pending.count == 0


def test_two_kinds_of_probes_raise() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(Adam(problem.params, lr=0.1), Every())
    before = flat(problem.params).clone()
    optimizer.record_loss(problem.gradients(), probe=lambda: 1.0)
    with pytest.raises(TypeError, match=r"step\(\) got a probe, but probes were recorded"):
        optimizer.step(probe=lambda: 1.0)
    assert torch.equal(flat(problem.params), before)
    optimizer.step()


@pytest.mark.parametrize(
    ("returned", "error"), [(None, TypeError), (torch.ones(2), ValueError)], ids=["None", "two"]
)
def test_a_recorded_probe_that_returns_no_loss(returned: Any, error: type[Exception]) -> None:
    problem = Problem()
    optimizer = MoMoWrapper(Adam(problem.params, lr=0.1), Every())
    for _ in range(3):
        optimizer.record_loss(problem.gradients(), probe=lambda: 1.0)
        optimizer.step()
    before = flat(problem.params).clone()
    optimizer.record_loss(problem.gradients(), probe=lambda: returned)
    with pytest.raises(error, match=r"the probe returned .*probe=lambda"):
        optimizer.step()
    assert torch.equal(flat(problem.params), before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_the_optimizer_has_no_probes(duplicate: Callable[[Any], Any]) -> None:
    """They would be those of another model; the losses are there."""
    problem = Problem()
    optimizer = MoMoWrapper(Adam(problem.params, lr=0.1), Every())
    for _ in range(3):
        optimizer.record_loss(problem.gradients(), probe=lambda: 1.0)
        optimizer.step()
    optimizer.record_loss(problem.gradients(), probe=lambda: pytest.fail("of the copy"))
    copied = duplicate(optimizer)
    copied.step()
    assert math.isnan(copied.rule.seen[-1][0])
    assert copied.last_step.loss == optimizer._pending._total
    with pytest.raises(pytest.fail.Exception, match="of the copy"):
        optimizer.step()

"""What raises in a step before the new parameters are written leaves all as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from momo_wrap import Averaging, ModelStats, MoMo, MoMoWrapper, ProposingAdapter, StepDecision
from momo_wrap.adapters import AdamAdapter, SGDAdapter
from tests.problems import Problem, flat, last_step
from tests.releases import Muon


class FailingRule(MoMo):
    """A rule that raises, or returns nonsense, once its flag is set."""

    answer: Callable[[], Any] | None = None

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        if self.answer is None:
            return super().__call__(stats, memory)
        wrong: StepDecision = self.answer()
        return wrong

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        return {}


class FailingRead(SGDAdapter):
    """An adapter that raises after the base has stepped, once its flag is set."""

    error: BaseException | None = None

    def read(self, group: Any, params: Sequence[Tensor], state: Any) -> Any:
        if self.error is not None:
            raise self.error
        return super().read(group, params, state)


class FailingDirection(AdamAdapter):
    """The same, in the first pass."""

    error: BaseException | None = None

    def preconditioned(self, block: Any) -> Tensor:
        if self.error is not None:
            raise self.error
        return super().preconditioned(block)


class FailingAveraging(ProposingAdapter):
    """The same, after the base has taken its own step."""

    error: BaseException | None = None

    def averaging(self, group: Any, state: Any) -> Averaging:
        if self.error is not None and any("momentum_buffer" in entry for entry in state.values()):
            raise self.error
        return super().averaging(group, state)


class FailingOptimizer(SGD):
    """A base that raises after a step of its own."""

    error: BaseException | None = None

    def step(self, closure: Any = None) -> Any:
        super().step()
        if self.error is not None:
            raise self.error


def sgd(params: Any, kind: Any = SGD) -> Optimizer:
    halves = [
        {"params": params[:2], "weight_decay": 0.01},
        {"params": params[2:], "nesterov": True},
    ]
    made: Optimizer = kind(halves, lr=torch.tensor(0.05, dtype=torch.float64), momentum=0.9)
    return made


# What makes a wrapper of parameters, and the part of it that fails.
Make = Callable[[list[Tensor]], tuple[MoMoWrapper, Any]]


def with_rule(params: list[Tensor]) -> tuple[MoMoWrapper, Any]:
    rule = FailingRule()
    return MoMoWrapper(sgd(params), rule), rule


def with_rule_and_proposals(params: list[Tensor]) -> tuple[MoMoWrapper, Any]:
    rule = FailingRule()
    return MoMoWrapper(sgd(params), rule, adapter=ProposingAdapter()), rule


def with_rule_and_two_bases(params: list[Tensor]) -> tuple[MoMoWrapper, Any]:
    rule = FailingRule()
    bases = [Muon(params[::2], lr=0.1), AdamW(params[1::2], lr=0.1)]
    return MoMoWrapper(bases, rule, adapter=[ProposingAdapter(), None]), rule


def with_read(params: list[Tensor]) -> tuple[MoMoWrapper, Any]:
    adapter = FailingRead()
    return MoMoWrapper(sgd(params), adapter=adapter), adapter


def with_direction(params: list[Tensor]) -> tuple[MoMoWrapper, Any]:
    adapter = FailingDirection()
    return MoMoWrapper(AdamW(params, lr=0.1), adapter=adapter), adapter


def with_averaging(params: list[Tensor]) -> tuple[MoMoWrapper, Any]:
    adapter = FailingAveraging()
    return MoMoWrapper(sgd(params), adapter=adapter), adapter


def with_base(params: list[Tensor]) -> tuple[MoMoWrapper, Any]:
    base = sgd(params, FailingOptimizer)
    return MoMoWrapper(base, adapter=SGDAdapter()), base


def with_proposing_base(params: list[Tensor]) -> tuple[MoMoWrapper, Any]:
    base = sgd(params, FailingOptimizer)
    return MoMoWrapper(base, adapter=ProposingAdapter()), base


def with_second_base(params: list[Tensor]) -> tuple[MoMoWrapper, Any]:
    """The first has proposed its step, and was read, when the second raises."""
    second = sgd(params[1:], FailingOptimizer)
    adapters = [ProposingAdapter(), SGDAdapter()]
    return MoMoWrapper([Muon(params[:1], lr=0.1), second], adapter=adapters), second


MAKES: list[Make] = [
    with_rule,
    with_rule_and_proposals,
    with_rule_and_two_bases,
    with_read,
    with_direction,
    with_averaging,
    with_base,
    with_proposing_base,
    with_second_base,
]


class Everything:
    """The settings, parameters and model, none of which a failed step may change."""

    def __init__(self, problem: Problem, optimizer: MoMoWrapper) -> None:
        self.settings = [dict(group) for group in optimizer.param_groups]
        self.lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self.params = flat(problem.params)
        self.memory = [
            {
                name: v.clone()
                for name, v in group.items()
                if isinstance(v, Tensor) and "momo" in name
            }
            for group in optimizer.state_dict()["param_groups"]
        ]
        self.names = {param: set(entry) for param, entry in optimizer.base.state.items()}
        self.last = str(optimizer.last_step)
        self.effective = str(optimizer.effective_lrs())

    def require(self, problem: Problem, optimizer: MoMoWrapper) -> None:
        for group, before in zip(optimizer.param_groups, self.settings, strict=True):
            assert list(group) == list(before)
            assert all(group[name] is before[name] for name in before)
        now = Everything(problem, optimizer)
        assert now.lrs == self.lrs
        assert torch.equal(now.params, self.params)
        assert str(now.memory) == str(self.memory)
        assert now.names == self.names
        assert (now.last, now.effective) == (self.last, self.effective)


def fail_with(part: Any, error: BaseException | None) -> None:
    if not isinstance(part, FailingRule):
        part.error = error
        return

    def answer() -> Any:
        assert error is not None
        raise error

    part.answer = None if error is None else answer


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("make", MAKES, ids=[make.__name__ for make in MAKES])
def test_nothing_has_moved_and_the_step_can_be_tried_again(
    make: Make, error: type[BaseException]
) -> None:
    problem = Problem()
    optimizer, part = make(problem.params)
    for _ in range(3):
        optimizer.step(loss=problem.gradients())
    loss = problem.gradients()
    gradients = [p.grad for p in problem.params]
    before = Everything(problem, optimizer)
    for _ in range(2):
        fail_with(part, error("simulated"))
        with pytest.raises(error, match="simulated"):
            optimizer.step(loss=loss)
        fail_with(part, None)
        before.require(problem, optimizer)
        assert all(p.grad is grad for p, grad in zip(problem.params, gradients, strict=True))
    optimizer.step(loss=loss)
    assert not torch.equal(flat(problem.params), before.params)
    assert 0 < float(last_step(optimizer).theta) <= 1
    for _ in range(3):
        optimizer.step(loss=problem.gradients())
        assert flat(problem.params).isfinite().all()


@pytest.mark.parametrize("make", MAKES, ids=[make.__name__ for make in MAKES])
def test_in_the_first_step(make: Make) -> None:
    """The base's state may be there afterwards, an average of the wrapper's own may not."""
    problem = Problem()
    optimizer, part = make(problem.params)
    loss = problem.gradients()
    before = flat(problem.params)
    settings = [dict(group) for group in optimizer.param_groups]
    fail_with(part, ZeroDivisionError("simulated"))
    with pytest.raises(ZeroDivisionError):
        optimizer.step(loss=loss)
    assert torch.equal(flat(problem.params), before)
    for group, its in zip(optimizer.param_groups, settings, strict=True):
        assert all(group[name] is its[name] for name in its)
    for group in optimizer.state_dict()["param_groups"]:
        assert float(group["momo_loss_sum"]) == 0.0
    assert optimizer.last_step is None
    fail_with(part, None)
    optimizer.step(loss=loss)
    assert 0 < float(last_step(optimizer).theta) <= 1


NONSENSE: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "a number": lambda: StepDecision(0.5, torch.tensor(0.5), 0.0),  # type: ignore[arg-type]
    "too many": lambda: StepDecision(torch.ones(7), torch.ones(7), 0.0),
    "a memory": lambda: StepDecision(
        torch.tensor(0.5), torch.tensor(0.5), 0.0, {"more": torch.tensor(1.0)}
    ),
}
WITH_RULES: list[Make] = [with_rule, with_rule_and_proposals, with_rule_and_two_bases]


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("make", WITH_RULES, ids=[make.__name__ for make in WITH_RULES])
def test_nonsense_of_a_rule_moves_nothing(make: Make, answer: Callable[[], Any]) -> None:
    problem = Problem()
    optimizer, rule = make(problem.params)
    optimizer.step(loss=problem.gradients())
    loss, before = problem.gradients(), Everything(problem, optimizer)
    rule.answer = answer
    with pytest.raises((TypeError, ValueError), match="rule"):
        optimizer.step(loss=loss)
    before.require(problem, optimizer)
    rule.answer = None
    optimizer.step(loss=loss)


def test_an_interrupted_step_keeps_no_gradients() -> None:
    """They are freed with the next `zero_grad`, as after any step."""
    import gc
    import weakref

    for make in (with_rule, with_read, with_base):
        problem = Problem()
        optimizer, part = make(problem.params)
        optimizer.step(loss=problem.gradients())
        loss = problem.gradients()
        references = [weakref.ref(p.grad) for p in problem.params if p.grad is not None]
        fail_with(part, ZeroDivisionError("simulated"))
        with pytest.raises(ZeroDivisionError):
            optimizer.step(loss=loss)
        fail_with(part, None)
        optimizer.zero_grad()
        gc.collect()
        assert not [r for r in references if r() is not None], make.__name__

"""Each mistake a user can make meets a message that says what to write, and moves nothing."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from momo_wrap import (
    Adapter,
    Averaging,
    ModelStats,
    MoMo,
    MoMoStar,
    MoMoWrapper,
    ProposingAdapter,
    ReadingAdapter,
    StepDecision,
    StepRule,
    register_adapter,
)
from momo_wrap.adapters import AdamAdapter, Reading, RMSpropAdapter, SGDAdapter
from momo_wrap.checks.arguments import (
    check_compiled,
    check_decay_form,
    check_nonfinite,
    check_rule,
    check_unknown_arguments,
)
from tests.problems import Problem, flat, kept


def parameter(*values: float) -> Tensor:
    """A parameter with a gradient."""
    param = torch.tensor(values or (1.0, 2.0), requires_grad=True)
    param.grad = torch.ones_like(param)
    return param


def sparse_parameter() -> Tensor:
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.tensor([1.0, 0.0, 0.0]).to_sparse()
    return param


def wrapped(**settings: Any) -> MoMoWrapper:
    return MoMoWrapper(SGD([parameter()], **{"lr": 0.1, **settings}))


def after(optimizer: MoMoWrapper, **settings: Any) -> MoMoWrapper:
    """Change settings of the first group, as a scheduler or a slip would."""
    optimizer.param_groups[0].update(settings)
    return optimizer


def of_package(package: str, name: str) -> Optimizer:
    kind = getattr(pytest.importorskip(package), name)
    made: Optimizer = kind([parameter()], base_optimizer=SGD, lr=0.1)
    return made


def twice() -> Optimizer:
    param = parameter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of the same
        return SGD([param, param], lr=0.1)


class MyAdam(Adam):
    """A subclass that is not registered."""


class ForgetfulRule(StepRule):
    """Declares a count in its memory, and does not return it."""

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        return {"count": 0.0}

    def __call__(self, stats: ModelStats, memory: Any) -> StepDecision:
        return StepDecision(stats.loss, stats.loss, 0.0)


class NumberRule(StepRule):
    """Answers with a Python number."""

    def __call__(self, stats: ModelStats, memory: Any) -> StepDecision:
        return StepDecision(0.5, stats.loss, 0.0)  # type: ignore[arg-type]


class VectorRule(StepRule):
    """Answers with a vector, where there are two groups."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self.name, self.size = name, size

    def __call__(self, stats: ModelStats, memory: Any) -> StepDecision:
        values: dict[str, Any] = {self.name: stats.loss.expand(self.size)}
        return replace(StepDecision(stats.loss, stats.loss, 0.0), **values)


class SilentRule(StepRule):
    """Forgets to answer."""

    def __call__(self, stats: ModelStats, memory: Any) -> StepDecision:
        return None  # type: ignore[return-value]


class ChattyRule(StepRule):
    """Remembers more than it said."""

    def __call__(self, stats: ModelStats, memory: Any) -> StepDecision:
        return StepDecision(stats.loss, stats.loss, 0.0, {"count": stats.loss})


class _Decaying(MoMo):
    weight_decay_form = 0.1  # type: ignore[assignment]


class CarelessAdapter(ReadingAdapter):
    """Reads the momentum buffers of SGD as if they were Adam's."""

    def __init__(self, tensors: dict[str, list[Tensor]]) -> None:
        self.tensors = tensors

    def averaging(self, group: Any, state: Any) -> Averaging:
        return Averaging(0.9, 0.1, bias_corrected=True)

    def read(self, group: Any, params: Any, state: Any) -> Reading:
        return Reading([state[p]["momentum_buffer"] for p in params], self.tensors)


def two_groups(kind: type[Optimizer], first: dict[str, Any], second: dict[str, Any]) -> Optimizer:
    groups = [{"params": [parameter()], **first}, {"params": [parameter()], **second}]
    return kind(groups, lr=0.1)  # type: ignore[call-arg]


def _in_one_memory() -> Optimizer:
    values = torch.ones(2)
    return SGD([{"params": [torch.nn.Parameter(values)]} for _ in range(2)], lr=0.1)


def _sharing() -> list[Optimizer]:
    shared = parameter()
    return [SGD([shared], lr=0.1), SGD([parameter(), shared], lr=0.1)]


Row = tuple[Callable[[], Any], type[Exception], str]

AT_CONSTRUCTION: dict[str, Row] = {
    "not an optimizer": (
        lambda: MoMoWrapper([parameter()]),  # type: ignore[list-item]
        TypeError,
        "Entry 0 of the list is a Tensor, expected a torch.optim.Optimizer. Write "
        "MoMoWrapper(torch.optim.AdamW(parameters)), or MoMoWrapper([muon, adamw]) for several; "
        "the class that takes parameters is momo_wrap.optim.MoMoAdamW, or MoMoWrapper.of(torch.",
    ),
    "not an optimizer either": (
        lambda: MoMoWrapper(parameter()),  # type: ignore[arg-type]
        TypeError,
        "expects a torch.optim.Optimizer, got Tensor. Write MoMoWrapper(torch.optim.AdamW("
        "model.parameters(), lr=1e-2)); the class that takes parameters is momo_wrap.optim.MoMo",
    ),
    "two parameters in one memory": (
        lambda: MoMoWrapper(_in_one_memory()),
        ValueError,
        "Parameters 0 of group 0 and 0 of group 1, of shape [2], share memory but are two "
        "parameters, so each would move the other. Tie them: second.weight = ",
    ),
    "no optimizers": (
        lambda: MoMoWrapper([]),
        ValueError,
        "The list of optimizers is empty, expected at least one. Write MoMoWrapper([muon, adamw])",
    ),
    "a parameter in two optimizers": (
        lambda: MoMoWrapper(_sharing()),
        ValueError,
        "Optimizers 0 and 1 share a parameter of shape [2], which would be moved twice. Give it to "
        "one of them",
    ),
    "a wrapper among several": (
        lambda: MoMoWrapper([SGD([parameter()], lr=0.1), wrapped()]),
        TypeError,
        "already wrapped; its steps would be shortened twice. Wrap the base:",
    ),
    "LBFGS among several": (
        lambda: MoMoWrapper([SGD([parameter()], lr=0.1), torch.optim.LBFGS([parameter()])]),
        TypeError,
        "can't wrap LBFGS: it evaluates its closure several times",
    ),
    "too few adapters": (
        lambda: MoMoWrapper(
            [SGD([parameter()], lr=0.1), Adam([parameter()])], adapter=[SGDAdapter()]
        ),
        ValueError,
        "got 2 optimizers and 1 adapters. Give one for each, with None for the registered one: "
        "adapter=[None, MyAdapter()]",
    ),
    "an adapter class among several": (
        lambda: MoMoWrapper(
            [SGD([parameter()], lr=0.1), Adam([parameter()])],
            adapter=[None, AdamAdapter],  # type: ignore[list-item]
        ),
        TypeError,
        "adapter must be an instance of Adapter, got <class",
    ),
    "a list of adapters for one optimizer": (
        lambda: MoMoWrapper(SGD([parameter()], lr=0.1), adapter=[None, None]),
        ValueError,
        "got 1 optimizers and 2 adapters",
    ),
    "NaN lr in the second optimizer": (
        lambda: MoMoWrapper([SGD([parameter()], lr=0.1), SGD([parameter()], lr=math.nan)]),
        ValueError,
        "Group 1 has lr=nan",
    ),
    "maximize in the second optimizer": (
        lambda: MoMoWrapper([SGD([parameter()], lr=0.1), Adam([parameter()], maximize=True)]),
        ValueError,
        "Groups have maximize=[False, True], but all groups share one loss",
    ),
    "an adapter that can't read": (
        lambda: MoMoWrapper(RMSprop([parameter()], momentum=0.9), adapter=RMSpropAdapter()),
        ValueError,
        "RMSpropAdapter() can't read RMSprop: with momentum its buffer averages preconditioned "
        "gradients, not gradients. Change that, or write MoMoWrapper(optimizer, "
        "adapter=ProposingAdapter())",
    ),
    "beta out of range": (
        lambda: ProposingAdapter(beta=1.0),
        ValueError,
        "beta must be at least 0 and below 1, got 1.0. Write ProposingAdapter(beta=0.9)",
    ),
    "beta and averaging": (
        lambda: ProposingAdapter(beta=0.5, averaging=lambda *_: Averaging(0.9, 0.1)),
        ValueError,
        "got beta and averaging, expected one of them. Put the decay into averaging",
    ),
    "momentum is a number": (
        lambda: ProposingAdapter(0.9),  # type: ignore[arg-type]
        TypeError,
        "momentum must name an entry of the optimizer state, got float. Write ProposingAdapter(mom",
    ),
    "a wrapper": (
        lambda: MoMoWrapper(wrapped()),
        TypeError,
        "already wrapped; its steps would be shortened twice. Wrap the base:",
    ),
    "SAM": (
        lambda: MoMoWrapper(of_package("pytorch_optimizer", "SAM")),
        TypeError,
        "can't wrap SAM: it evaluates its closure at two places per step, so there is no single "
        "loss and gradient to build the model from. Wrap its base instead: SAM(params, "
        "base_optimizer=momo_wrap.optim.MoMoSGD, lr=1.0), and, before each of its steps",
    ),
    "one parameter twice": (
        lambda: MoMoWrapper(twice()),
        ValueError,
        "Parameters 0 of group 0 and 1 of group 0 are the same tensor, which would move twice. "
        "Pass it once: dict.fromkeys(parameters) instead of parameters.",
    ),
    "a beta1 of 1": (
        lambda: after(MoMoWrapper(Adam([parameter()])), betas=(1.0, 0.999)).step(loss=1.0),
        ValueError,
        "AdamAdapter() can't read Adam: with betas[0]=1.0 no gradient enters its average, and the "
        "base divides by the sum of their weights, which is 0. Change that, or write",
    ),
    "LBFGS": (
        lambda: MoMoWrapper(torch.optim.LBFGS([parameter()])),
        TypeError,
        "can't wrap LBFGS: it evaluates its closure several times",
    ),
    "SparseAdam": (
        lambda: MoMoWrapper(torch.optim.SparseAdam([parameter()])),
        TypeError,
        "can't wrap SparseAdam: it needs sparse gradients",
    ),
    "rule is a class": (
        lambda: MoMoWrapper(SGD([parameter()], lr=0.1), MoMo),  # type: ignore[arg-type]
        TypeError,
        "rule must be a StepRule, got <class 'momo_wrap.rules.momo.MoMo'>. Write "
        "MoMoWrapper(optimizer, MoMo(lower_bound=0.0))",
    ),
    "adapter is a class": (
        lambda: MoMoWrapper(SGD([parameter()], lr=0.1), adapter=AdamAdapter),  # type: ignore[arg-type]
        TypeError,
        "adapter must be an instance of Adapter",
    ),
    "form of weight decay": (
        lambda: MoMoWrapper(SGD([parameter()], lr=0.1), weight_decay_form=0.1),  # type: ignore[arg-type]
        ValueError,
        "weight_decay_form must be 'base', 'proximal', 'decoupled' or 'scaled', got 0.1. It is the "
        "form of the decay; for its strength, set the weight_decay of the base",
    ),
    "form of weight decay of a rule": (
        lambda: MoMoWrapper(SGD([parameter()], lr=0.1), _Decaying()),
        ValueError,
        "_Decaying.weight_decay_form must be 'base', 'proximal', 'decoupled' or 'scaled', got 0.1.",
    ),
    "NaN lr": (
        lambda: wrapped(lr=math.nan),
        ValueError,
        "Group 0 has lr=nan, expected a finite number of at least 0",
    ),
    "NaN tensor lr": (
        lambda: wrapped(lr=torch.tensor(math.nan)),
        ValueError,
        "Group 0 has lr=nan, expected a finite number of at least 0",
    ),
    "infinite lr": (
        lambda: wrapped(lr=math.inf),
        ValueError,
        "Group 0 has lr=inf, expected a finite number of at least 0. For no cap, choose a large",
    ),
    "no lr": (
        lambda: MoMoWrapper(_without_lr(), adapter=AdamAdapter()),
        ValueError,
        "Group 0 has no 'lr'",
    ),
    "differentiable": (
        lambda: MoMoWrapper(Adam([parameter()], differentiable=True)),
        ValueError,
        "Group 0 has differentiable=True",
    ),
    "maximize in one group": (
        lambda: MoMoWrapper(two_groups(SGD, {}, {"maximize": True})),
        ValueError,
        "Groups have maximize=[False, True], but all groups share one loss",
    ),
    "bound is a tensor": (
        lambda: MoMo(torch.tensor(0.0)),  # type: ignore[arg-type]
        TypeError,
        "lower_bound must be a Python number, got Tensor. Write MoMo(lower_bound=0.0)",
    ),
    "bound above every loss": (
        lambda: MoMoWrapper(SGD([parameter()], lr=0.1), MoMo(math.inf)),
        ValueError,
        "no step would ever be taken. For no bound, write MoMo(-math.inf)",
    ),
    "bound below every objective": (
        lambda: MoMoWrapper(SGD([parameter()], lr=0.1, maximize=True), MoMo(-math.inf)),
        ValueError,
        "or MoMo(math.inf) for a base with maximize=True",
    ),
    "conjugated parameter": (
        lambda: MoMoWrapper(SGD([torch.ones(2, dtype=torch.complex64).conj().requires_grad_()])),
        ValueError,
        "Parameter 0 of group 0 is a view that is conjugated or negated",
    ),
    "bound is NaN": (
        lambda: MoMo(math.nan),
        ValueError,
        "MoMo got lower_bound=nan, expected a number below every loss, or -math.inf for no bound. "
        "Write MoMo(lower_bound=0.0)",
    ),
    "no parameters": (
        lambda: MoMoWrapper(SGD([{"params": []}], lr=0.1)),
        ValueError,
        "The optimizer has no parameters",
    ),
    "buffer without weight": (
        lambda: Averaging(0.9, 0.1, buffer_scale=0.0),
        ValueError,
        "Averaging got buffer_scale=0, expected another number",
    ),
    "registering an instance": (
        lambda: register_adapter(SGD([parameter()]), AdamAdapter()),  # type: ignore[arg-type]
        TypeError,
        "expects an optimizer class as its first argument",
    ),
    "registering an adapter class": (
        lambda: register_adapter(MyAdam, AdamAdapter),  # type: ignore[arg-type]
        TypeError,
        "Write register_adapter(MyAdam, MyAdapter())",
    ),
}

# Called with an optimizer after two good steps, and must change nothing.
AT_STEP: dict[str, tuple[Callable[[MoMoWrapper], Any], type[Exception], str]] = {
    "no loss": (
        lambda o: o.step(),
        TypeError,
        "step() needs the loss that the gradients belong to. After loss.backward(), write "
        "optimizer.step(loss=loss)",
    ),
    "both": (
        lambda o: o.step(lambda: 1.0, loss=1.0),  # type: ignore[call-overload]
        TypeError,
        "got a closure and a loss, expected one of them. After loss.backward(), write "
        "optimizer.step(loss=loss)",
    ),
    "loss as positional argument": (
        lambda o: o.step(torch.tensor(1.0)),  # type: ignore[call-overload]
        TypeError,
        "takes a closure as its positional argument, got Tensor. To pass a loss, write "
        "optimizer.step(loss=loss)",
    ),
    "loss with several elements": (
        lambda o: o.step(loss=torch.ones(3)),
        ValueError,
        "got as loss a tensor of shape [3], expected one element. Reduce it as for backward(), "
        "e.g. optimizer.step(loss=loss.mean())",
    ),
    "loss without elements": (
        lambda o: o.step(loss=torch.ones(0)),
        ValueError,
        "a tensor of shape [0], expected one element",
    ),
    "wrong type": (
        lambda o: o.step(loss="1.0"),  # type: ignore[call-overload]
        TypeError,
        "got as loss str, expected a one-element tensor or a number. Write optimizer.step(loss=",
    ),
    "complex loss": (
        lambda o: o.step(loss=torch.ones((), dtype=torch.complex64)),
        TypeError,
        "complex tensor, expected a real number. Write optimizer.step(loss=loss.real)",
    ),
    "closure without result": (
        lambda o: o.step(lambda: None),  # type: ignore[arg-type,return-value]
        TypeError,
        "the closure returned None, expected a one-element tensor or a number",
    ),
    "closure with several elements": (
        lambda o: o.step(lambda: torch.ones(2)),
        ValueError,
        "the closure returned a tensor of shape [2]",
    ),
    "NaN lr": (
        lambda o: after(o, lr=math.nan).step(loss=1.0),
        ValueError,
        "Group 0 has lr=nan",
    ),
    "negative lr": (
        lambda o: after(o, lr=-0.1).step(loss=1.0),
        ValueError,
        "Group 0 has lr=-0.1, expected a finite number of at least 0",
    ),
    "lr is text": (
        lambda o: after(o, lr="0.1").step(loss=1.0),
        ValueError,
        "Group 0 has lr='0.1', expected a finite number",
    ),
    "negative weight decay": (
        lambda o: after(o, weight_decay=-0.1).step(loss=1.0),
        ValueError,
        "Group 0 has weight_decay=-0.1, expected a finite number of at least 0. Write "
        "weight_decay=0.0",
    ),
    "infinite bound": (
        lambda o: _with_rule(o, _unchecked_rule(math.inf)).step(loss=1.0),
        ValueError,
        "no step would ever be taken",
    ),
    "closure that sets a NaN lr": (
        lambda o: o.step(_closure_that_sets(o, lr=math.nan)),
        ValueError,
        "Group 0 has lr=nan",
    ),
    "a group with a NaN tensor lr": (
        lambda o: o.add_param_group({"params": [parameter()], "lr": torch.tensor(math.nan)}),
        ValueError,
        "Group 2 has lr=nan",
    ),
    "a group with a NaN lr": (
        lambda o: o.add_param_group({"params": [parameter()], "lr": math.nan}),
        ValueError,
        "Group 2 has lr=nan",
    ),
}


# Mistakes of a rule: the base has taken in the gradients by then, but nothing moved.
AFTER_UPDATING: dict[str, tuple[Callable[[MoMoWrapper], Any], type[Exception], str]] = {
    "a rule that forgets": (
        lambda o: _with_rule(o, ForgetfulRule()).step(loss=1.0),
        ValueError,
        "initial_memory names ['count'], but its decision has memory for []",
    ),
    "a rule that answers a number": (
        lambda o: _with_rule(o, NumberRule()).step(loss=1.0),
        TypeError,
        "The rule's theta must be a 0-dim tensor, or one of shape [2] with a value for each "
        "parameter group, got float. Compute it from the tensors in stats",
    ),
    "a rule that answers one of two thetas": (
        lambda o: _with_rule(o, VectorRule("theta", 1)).step(loss=1.0),
        TypeError,
        "The rule's theta must be a 0-dim tensor, or one of shape [2] with a value for each "
        "parameter group, got [1]. Compute it from the tensors in stats, or from those in "
        "stats.by_group.",
    ),
    "a rule that answers three of two thetas": (
        lambda o: _with_rule(o, VectorRule("theta", 3)).step(loss=1.0),
        TypeError,
        "The rule's theta must be a 0-dim tensor, or one of shape [2]",
    ),
    "a rule with another number of uncapped thetas": (
        lambda o: _with_rule(o, VectorRule("theta_uncapped", 3)).step(loss=1.0),
        TypeError,
        "The rule's theta_uncapped must be a 0-dim tensor, or one of shape [2]",
    ),
    "a rule with a bound for each group": (
        lambda o: _with_rule(o, VectorRule("lower_bound", 2)).step(loss=1.0),
        TypeError,
        "The rule's lower_bound must be a number or a 0-dim tensor, got [2]: one loss has one "
        "bound",
    ),
    "a rule that answers nothing": (
        lambda o: _with_rule(o, SilentRule()).step(loss=1.0),
        TypeError,
        "The rule returned NoneType, expected a StepDecision",
    ),
}


def _closure_that_sets(optimizer: MoMoWrapper, **settings: Any) -> Callable[[], float]:
    def closure() -> float:
        after(optimizer, **settings)
        return 1.0

    return closure


def _unchecked_rule(lower_bound: float) -> StepRule:
    rule = MoMo()
    rule.lower_bound = lower_bound
    return rule


def _without_lr() -> Optimizer:
    optimizer = Adam([parameter()])
    del optimizer.param_groups[0]["lr"]
    return optimizer


def _with_rule(optimizer: MoMoWrapper, rule: StepRule) -> MoMoWrapper:
    optimizer.rule = rule
    return optimizer


@pytest.mark.parametrize(
    ("make", "error", "message"), AT_CONSTRUCTION.values(), ids=AT_CONSTRUCTION
)
def test_at_construction(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [*AT_STEP.values(), *AFTER_UPDATING.values()],
    ids=[*AT_STEP, *AFTER_UPDATING],
)
def test_in_a_run(call: Callable[[MoMoWrapper], Any], error: type[Exception], message: str) -> None:
    problem = Problem()
    halves: list[dict[str, Any]] = [{"params": problem.params[:2]}, {"params": problem.params[2:]}]
    optimizer = MoMoWrapper(SGD(halves, lr=0.1, momentum=0.9))
    for _ in range(2):
        optimizer.step(loss=problem.gradients())
    params = flat(problem.params)
    settings = [dict(group) for group in optimizer.param_groups]
    scalars = kept(optimizer)
    buffers = [entry["momentum_buffer"].clone() for entry in optimizer.state.values()]
    record, rule = optimizer.last_step, optimizer.rule

    with pytest.raises(error, match=re.escape(message)):
        call(optimizer)

    assert torch.equal(flat(problem.params), params)
    for before, after in zip(scalars, kept(optimizer), strict=True):
        assert {name: after[name] for name in before} == before
    if (call, error, message) in AT_STEP.values():
        now = [entry["momentum_buffer"] for entry in optimizer.state.values()]
        assert all(torch.equal(new, old) for new, old in zip(now, buffers, strict=True))
    assert optimizer.last_step == record
    assert len(optimizer.param_groups) == 2
    # Correct the mistake, and continue.
    optimizer.rule = rule
    for group, good in zip(optimizer.param_groups, settings, strict=True):
        group.update(good)
    optimizer.step(loss=problem.gradients())
    assert not torch.equal(flat(problem.params), params)


ADAPTERS: dict[str, tuple[Adapter, str]] = {
    "an adapter that takes a name": (
        CarelessAdapter(tensors={"param": []}),
        "read() returned tensors named ['param'], which every block already has",
    ),
    "a momentum that the base does not have": (
        ProposingAdapter("exp_avg"),
        "ProposingAdapter(momentum='exp_avg') found no tensor of that name and of shape [5, 8] in "
        "the state of SGD, which has ['momentum_buffer']. Write ProposingAdapter(), which keeps an "
        "average",
    ),
    "an adapter without bias corrections": (CarelessAdapter(tensors={}), "'buffer_scale'"),
}


@pytest.mark.parametrize(("adapter", "message"), ADAPTERS.values(), ids=ADAPTERS)
def test_mistakes_of_an_adapter(adapter: Adapter, message: str) -> None:
    """The base has taken in the gradients by then, but nothing moves."""
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.1, momentum=0.9), adapter=adapter)
    params, loss = flat(problem.params), problem.gradients()
    settings, before = dict(optimizer.param_groups[0]), kept(optimizer)
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.step(loss=loss)
    assert torch.equal(flat(problem.params), params)
    assert optimizer.param_groups[0] == settings
    assert kept(optimizer) == before
    assert optimizer.last_step is None


def test_sparse_gradients() -> None:
    param = sparse_parameter()
    optimizer = MoMoWrapper(SGD([param], lr=0.1))
    message = "Parameter 0 of group 0, of shape [3], has a torch.sparse_coo gradient"
    with pytest.raises(TypeError, match=re.escape(message)):
        optimizer.step(loss=1.0)
    assert torch.equal(param.detach(), torch.ones(3))


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_settings_are_put_back_when_the_base_fails(kind: type[Optimizer]) -> None:
    """The very objects that were there come back, and a retry works."""
    lr = torch.tensor(0.1)
    param = parameter()
    optimizer = MoMoWrapper(kind([param], lr=lr, weight_decay=0.1, foreach=False))  # type: ignore[call-arg]
    before = dict(optimizer.param_groups[0])

    def fail(*_: Any) -> None:
        assert optimizer.param_groups[0]["lr"] == 0.0
        raise RuntimeError("out of memory")

    handle = optimizer.base.register_step_post_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(loss=1.0)
    group = optimizer.param_groups[0]
    assert list(group) == list(before)
    assert all(group[name] is before[name] for name in before)
    assert torch.equal(param.detach(), torch.tensor([1.0, 2.0]))
    assert optimizer.last_step is None
    handle.remove()
    optimizer.step(loss=1.0)
    assert not torch.equal(param.detach(), torch.tensor([1.0, 2.0]))


def test_sparse_gradients_from_a_closure() -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = MoMoWrapper(SGD([param], lr=0.1, momentum=0.9))

    def closure() -> float:
        param.grad = sparse_parameter().grad
        return 1.0

    with pytest.raises(TypeError, match=r"has a torch\.sparse_coo gradient"):
        optimizer.step(closure)
    assert len(optimizer.state) == 0


def test_settings_that_an_adapter_adds_are_taken_away() -> None:
    class AddingAdapter(SGDAdapter):
        def while_updating(self, group: Any) -> dict[str, Any]:
            return {**super().while_updating(group), "extra": 1}

    seen = []
    base = SGD([parameter()], lr=0.1)
    base.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0].get("extra")))
    MoMoWrapper(base, adapter=AddingAdapter()).step(loss=1.0)
    assert seen == [1]
    assert "extra" not in base.param_groups[0]


def test_failing_closure_changes_nothing() -> None:
    optimizer = wrapped(momentum=0.9)
    before = copy.deepcopy(optimizer.state_dict())

    def closure() -> Tensor:
        raise KeyError("batch")

    with pytest.raises(KeyError, match="batch"):
        optimizer.step(closure)
    assert str(optimizer.state_dict()) == str(before)


def test_sparse_gradient_of_a_later_parameter() -> None:
    groups = [{"params": [parameter()]}, {"params": [parameter(), sparse_parameter()]}]
    optimizer = MoMoWrapper(SGD(groups, lr=0.1))
    message = "Parameter 1 of group 1, of shape [3], has a torch.sparse_coo gradient"
    with pytest.raises(TypeError, match=re.escape(message)):
        optimizer.step(loss=1.0)


def test_maximize_in_the_first_group_only() -> None:
    with pytest.raises(ValueError, match=re.escape("Groups have maximize=[True, False]")):
        MoMoWrapper(two_groups(SGD, {"maximize": True}, {}))


def test_rule_that_remembers_too_much() -> None:
    optimizer = MoMoWrapper(SGD([parameter()], lr=0.1), ChattyRule())
    with pytest.raises(
        ValueError, match=re.escape("names [], but its decision has memory for ['count']")
    ):
        optimizer.step(loss=1.0)


def test_differentiable_in_a_later_group() -> None:
    with pytest.raises(ValueError, match="Group 1 has differentiable=True"):
        MoMoWrapper(two_groups(Adam, {}, {"differentiable": True}))


@pytest.mark.parametrize("name", ["param", "buffer", "grad"])
def test_names_that_are_taken(name: str) -> None:
    class Taken(SGDAdapter):
        def read(self, group: Any, params: Any, state: Any) -> Reading:
            return Reading(None, {name: list(params)})

    optimizer = MoMoWrapper(SGD([parameter()], lr=0.1), adapter=Taken())
    with pytest.raises(ValueError, match=re.escape(f"named ['{name}']")):
        optimizer.step(loss=1.0)


UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "of the rule": (
        {"lower_bound": 1.5},
        "MoMoWrapper takes no lower_bound; write MoMoWrapper(optimizer, MoMo(lower_bound=1.5)).",
    ),
    "of another rule": (
        {"required": 0.3},
        "takes no required; write MoMoWrapper(optimizer, TrustedMoMo(required=0.3)).",
    ),
    "of the base": (
        {"lr": 0.1},
        "takes no lr; it is an argument of the base. Write "
        "MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=...)); the class that takes it is "
        "momo_wrap.optim.MoMoAdamW, or MoMoWrapper.of(torch.optim.AdamW).",
    ),
    "the strength of weight decay": (
        {"weight_decay": 0.1},
        "takes no weight_decay; it is an argument of the base",
    ),
    "the form of weight decay": (
        {"weight_decay": "decoupled"},
        "write MoMoWrapper(optimizer, weight_decay_form='decoupled').",
    ),
    "of nothing": ({"theta": 1.0}, "MoMoWrapper takes no theta. For its arguments, see help("),
}


@pytest.mark.parametrize(("arguments", "message"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_arguments(arguments: dict[str, Any], message: str) -> None:
    check_unknown_arguments({})
    with pytest.raises(TypeError, match=re.escape(message)):
        check_unknown_arguments(arguments)


GOOD: dict[Callable[[Any], object], list[Any]] = {
    check_rule: [MoMo(), MoMoStar()],
    check_nonfinite: ["propagate", "skip", "raise"],
    check_compiled: ["auto", True, False],
    check_decay_form: ["base", "proximal", "decoupled", "scaled"],
}


@pytest.mark.parametrize("check", GOOD)
def test_choices_are_distinguished_from_other_values(check: Callable[[Any], object]) -> None:
    for value in GOOD[check]:
        check(value)
    for wrong in [None, 1, "skp", MoMo]:
        with pytest.raises((TypeError, ValueError), match=re.escape(f"got {wrong!r}")):
            check(wrong)


ARRAY = np.zeros((6, 4), dtype=np.float32)
MATRIX = torch.from_numpy(ARRAY)
OVERLAP: dict[str, tuple[list[Tensor], bool]] = {
    "the same": ([MATRIX, MATRIX], True),
    "transposed": ([MATRIX, MATRIX.t()], True),
    "another dtype": ([MATRIX[:3], MATRIX.view(torch.bfloat16)[2:]], True),
    "rows": ([MATRIX[:4], MATRIX[3:]], True),
    "columns": ([MATRIX[:, :3], MATRIX[:, 2:]], True),
    "a column and a row": ([MATRIX[:, 1], torch.ones(2), MATRIX[5, 1:]], True),
    "another storage": ([MATRIX[:4], torch.from_numpy(ARRAY[3:])], True),
    "other rows": ([MATRIX[:3], MATRIX[3:]], False),
    "other columns": ([MATRIX[:, :2], MATRIX[:, 2:]], False),
    "every other element": ([MATRIX.view(-1)[::2], MATRIX.view(-1)[1::2]], False),
    "nothing": ([MATRIX[:0], MATRIX], False),
}


@pytest.mark.parametrize(("views", "overlap"), OVERLAP.values(), ids=OVERLAP)
def test_memory_is_shared_where_an_element_is(views: list[Tensor], overlap: bool) -> None:
    """As written to one and read from the others, for any starting state."""
    MATRIX.zero_()
    views[-1].fill_(1.0)
    assert overlap == any(bool(view.count_nonzero()) for view in views[:-1])
    params = [view.detach().requires_grad_() for view in views]
    expected: Any = pytest.raises(ValueError, match="share") if overlap else nullcontext()
    with expected:
        MoMoWrapper(SGD(params, lr=0.1))


def test_parameter_that_shares_memory_with_a_frozen_one() -> None:
    """It is one that can move, and does."""
    param = MATRIX.clone().requires_grad_()
    optimizer = MoMoWrapper(SGD([param, param.detach(), param.detach()[1:]], lr=0.1))
    param.grad, before = torch.ones_like(param), param.detach().clone()
    optimizer.step(loss=100.0)
    torch.testing.assert_close(param.detach(), before - 0.1)

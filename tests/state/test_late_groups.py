"""Groups that join late have the level of the model, and a displacement of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from momo_wrap import ModelStats, MoMo, MoMoWrapper, StepDecision
from tests.problems import Problem, flat, last_step
from tests.reference import AdamBase, Array, SGDBase

JOINS, STEPS = 8, 24
FIRST_DECAYS = 0.05  # weight decay, so that it is in the model


@dataclass
class Block:
    """A group with all its past, from which the model is built by its definition."""

    x: Array
    lr: float
    base: SGDBase | AdamBase
    weight_decay: float = 0.0
    losses: list[float] = field(default_factory=list)
    gradients: list[Array] = field(default_factory=list)
    points: list[Array] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    loss_weights: list[float] = field(default_factory=list)

    def join(self, other: Block) -> None:
        """Take the losses, and their weights, from a group that was there."""
        self.losses, self.loss_weights = list(other.losses), list(other.loss_weights)

    def take_in(self, loss: float, g: Array) -> None:
        """Give each step so far the weight that it has in d; b for the newest."""
        self.base.step += 1
        a, b, _, _ = self.base.weights()
        later = type(self.base)(**{**vars(self.base), "step": 2}).weights()[1]
        joined = len(self.losses) > len(self.gradients)
        self.weights = [a * w for w in self.weights] + [b]
        self.loss_weights = [a * w for w in self.loss_weights] + [later if joined else b]
        self.losses.append(loss)
        self.gradients.append(g)
        self.points.append(self.x.copy())

    def model(self) -> tuple[float, float, Array, Array]:
        """Return the mean loss, the mean of ⟨g_j, x - x_j⟩, the mean of g_j, and u."""
        _, _, p, q = self.base.weights()
        weights = p * np.array(self.weights)
        loss_weights = p * np.array(self.loss_weights)
        weights[-1] += q
        loss_weights[-1] += q
        rho = weights.sum()
        mean_loss = float(loss_weights @ np.array(self.losses) / loss_weights.sum())
        moved = [float(g @ (self.x - x)) for g, x in zip(self.gradients, self.points, strict=True)]
        d = weights @ np.stack(self.gradients)
        u = d / self.base.preconditioner(self.gradients[-1])
        return mean_loss, float(weights @ np.array(moved) / rho), d / rho, u


@dataclass
class Expected:
    """The reference's values of a step."""

    theta: float
    value: float
    levels: list[float]


def reference_step(blocks: list[Block], loss: float, gradients: list[Array]) -> Expected:
    """Take a step of (2'), with proximal decay and the bound 0."""
    for block, g in zip(blocks, gradients, strict=True):
        block.take_in(loss, g)
    models = [block.model() for block in blocks]
    cs = [1 / (1 + block.lr * block.weight_decay) for block in blocks]
    decreases = [
        c * block.lr * float(d @ u)
        for c, block, (_, _, d, u) in zip(cs, blocks, models, strict=True)
    ]
    total = sum(decreases)
    level = sum(n / total * mean for n, (mean, _, _, _) in zip(decreases, models, strict=True))
    value = level + sum(e for _, e, _, _ in models)
    value += sum(
        (c - 1) * float(d @ block.x)
        for c, block, (_, _, d, _) in zip(cs, blocks, models, strict=True)
    )
    theta = min(max(value / total, 0.0), 1.0)
    for c, block, (_, _, _, u) in zip(cs, blocks, models, strict=True):
        block.x = c * (block.x - theta * block.lr * u)
    return Expected(theta, value, [mean for mean, _, _, _ in models])


class Watched(MoMo):
    """MoMo that keeps its statistics."""

    seen: ModelStats

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        self.seen = stats
        return super().__call__(stats, memory)


@dataclass(frozen=True)
class Case:
    """An optimizer, with other settings for the newcomer, and the reference of both."""

    make: Callable[..., Optimizer]
    base: Callable[[], SGDBase | AdamBase]
    late: dict[str, Any] = field(default_factory=dict)
    late_base: Callable[[], SGDBase | AdamBase] | None = None

    @property
    def averages_alike(self) -> bool:
        return self.late_base is None


SAME: dict[str, Case] = {
    "SGD-M": Case(lambda p: SGD(p, lr=0.05, momentum=0.9), lambda: SGDBase(0.9)),
    "SGD-M at a large rate": Case(lambda p: SGD(p, lr=3.0, momentum=0.9), lambda: SGDBase(0.9)),
    "dampening": Case(
        lambda p: SGD(p, lr=1.0, momentum=0.9, dampening=0.9), lambda: SGDBase(0.9, 0.9)
    ),
    "Nesterov": Case(
        lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
        lambda: SGDBase(0.9, nesterov=True),
    ),
    "AdamW": Case(lambda p: AdamW(p, lr=0.3, weight_decay=0.0), AdamBase),
    "AdamW at a large rate": Case(lambda p: AdamW(p, lr=100.0, weight_decay=0.0), AdamBase),
}
DIFFERENT: dict[str, Case] = {
    "SGD-M, less": Case(
        lambda p: SGD(p, lr=0.05, momentum=0.9),
        lambda: SGDBase(0.9),
        {"momentum": 0.5},
        lambda: SGDBase(0.5),
    ),
    "SGD-M, more": Case(
        lambda p: SGD(p, lr=0.05, momentum=0.5),
        lambda: SGDBase(0.5),
        {"momentum": 0.9},
        lambda: SGDBase(0.9),
    ),
    "SGD-M, none": Case(
        lambda p: SGD(p, lr=0.05, momentum=0.9), lambda: SGDBase(0.9), {"momentum": 0.0}, SGDBase
    ),
    "Nesterov": Case(
        lambda p: SGD(p, lr=0.05, momentum=0.9),
        lambda: SGDBase(0.9),
        {"momentum": 0.7, "nesterov": True},
        lambda: SGDBase(0.7, nesterov=True),
    ),
    "AdamW": Case(
        lambda p: AdamW(p, lr=0.3, weight_decay=0.0),
        AdamBase,
        {"betas": (0.5, 0.99)},
        lambda: AdamBase(0.5, 0.99),
    ),
}
CASES = {**SAME, **{f"{name} for the newcomer": case for name, case in DIFFERENT.items()}}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_same = pytest.mark.parametrize("case", SAME.values(), ids=SAME)


def vector(tensors: list[Tensor]) -> Array:
    values: Array = flat(tensors).numpy().copy()
    return values


@every_case
def test_against_the_model_by_its_definition(case: Case) -> None:
    problem, rule = Problem(), Watched()
    first, late = problem.params[:2], problem.params[2:]
    optimizer = MoMoWrapper(
        case.make([{"params": first, "weight_decay": FIRST_DECAYS}]),
        rule,
        weight_decay_form="proximal",
    )
    lr = optimizer.param_groups[0]["lr"]
    blocks = [Block(vector(first), lr, case.base(), FIRST_DECAYS)]
    for step in range(STEPS):
        if step == JOINS:
            optimizer.add_param_group({"params": late, "lr": 0.7 * lr, **case.late})
            blocks.append(Block(vector(late), 0.7 * lr, (case.late_base or case.base)()))
            blocks[1].join(blocks[0])
        loss = problem.gradients()
        groups = [first, late][: len(blocks)]
        gradients = [vector([p.grad for p in group if p.grad is not None]) for group in groups]
        optimizer.step(loss=loss)
        expected = reference_step(blocks, float(loss), gradients)
        assert float(rule.seen.value_after_decay) == pytest.approx(expected.value, rel=1e-8), step
        assert float(last_step(optimizer).theta) == pytest.approx(expected.theta, rel=1e-8), step
        for block, group in zip(blocks, groups, strict=True):
            np.testing.assert_allclose(block.x, vector(group), rtol=1e-9, atol=1e-11)
            block.x = vector(group)  # so that rounding is not amplified
        if len(blocks) > 1:
            assert rule.seen.groups is not None
            levels = rule.seen.groups.mean_loss.tolist()
            assert levels == pytest.approx(expected.levels, rel=1e-9)
            if case.averages_alike:
                assert levels[0] == pytest.approx(levels[1], rel=1e-12), step
                assert float(rule.seen.mean_loss) == pytest.approx(levels[0], rel=1e-12), step


def shrinking(params: list[Tensor]) -> Tensor:
    """A loss that has fallen far when the newcomer joins, and is never negative."""
    together = torch.cat([param.reshape(-1) for param in params])
    return 0.5 * (together.square() * torch.linspace(0.5, 1.5, len(together))).sum()


@every_case
@pytest.mark.parametrize("joins", [2, 5, 20])
def test_steps_go_on_at_a_positive_loss(case: Case, joins: int) -> None:
    """Of a convex loss the model is a mean of lower bounds, and not negative here."""
    torch.manual_seed(0)
    first = torch.randn(6, dtype=torch.float64).mul(10).requires_grad_()
    late = torch.randn(4, dtype=torch.float64).requires_grad_()
    optimizer = MoMoWrapper(case.make([first]), MoMo())
    for step in range(joins + 15):
        if step == joins:
            optimizer.add_param_group({"params": [late], **case.late})
        loss = shrinking([first, late])
        params = [first, late] if step >= joins else [first]
        for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
            param.grad = grad
        optimizer.step(loss=loss)
        record = last_step(optimizer)
        assert float(loss.detach()) > 0
        if step >= joins:
            assert float(record.theta) > 0, (step - joins, record)
            assert float(record.value_after_decay) > 0, (step - joins, record)


@every_same
def test_two_that_join_are_one_that_joins(case: Case) -> None:
    """At once, or one of them when the other is there already."""

    def run(parts: list[list[int]]) -> list[float]:
        problem, values = Problem(), []
        optimizer = MoMoWrapper(case.make(problem.params[:2]), MoMo())
        for step in range(STEPS):
            if step == JOINS:
                for part in parts:
                    optimizer.add_param_group({"params": [problem.params[i] for i in part]})
            optimizer.step(loss=problem.gradients())
            values += flat(problem.params).tolist()
        return values

    assert run([[2], [3]]) == pytest.approx(run([[2, 3]]), rel=1e-7, abs=1e-9)


@every_case
@pytest.mark.parametrize("before_the_step", [True, False])
def test_resumes_bit_for_bit(case: Case, before_the_step: bool) -> None:
    """Saved between joining and the first step with the newcomer, or after it."""
    problem = Problem()
    first, late = problem.params[:2], problem.params[2:]
    optimizer = MoMoWrapper(case.make(first), MoMo())
    for _ in range(JOINS):
        optimizer.step(loss=problem.gradients())
    optimizer.add_param_group({"params": late, **case.late})
    if not before_the_step:
        optimizer.step(loss=problem.gradients())
    saved = copy.deepcopy(optimizer.state_dict())
    other = copy.deepcopy(problem)
    settings = optimizer.param_groups[1]
    base = case.make(other.params[:2])
    base.add_param_group({"params": other.params[2:], "lr": settings["lr"], **case.late})
    resumed = MoMoWrapper(base, MoMo())
    resumed.load_state_dict(saved)
    for _ in range(6):
        optimizer.step(loss=problem.gradients())
        resumed.step(loss=other.gradients())
        assert torch.equal(last_step(optimizer).theta, last_step(resumed).theta)
    assert torch.equal(flat(problem.params), flat(other.params))


@every_same
def test_a_group_that_joins_before_the_first_step_is_there_from_the_start(case: Case) -> None:
    ends = []
    for late in (False, True):
        problem = Problem()
        groups = [{"params": problem.params[:2]}, {"params": problem.params[2:]}]
        optimizer = MoMoWrapper(case.make(groups[:1] if late else groups), MoMo())
        if late:
            optimizer.state_dict()
            optimizer.add_param_group(groups[1])
        for _ in range(5):
            optimizer.step(loss=problem.gradients())
        ends.append(flat(problem.params))
    assert torch.equal(*ends)


def test_a_newcomer_without_gradients_changes_nothing() -> None:
    ends = []
    for joins in (False, True):
        problem = Problem()
        optimizer = MoMoWrapper(SGD(problem.params, lr=0.05, momentum=0.9), MoMo())
        late = torch.ones(3, dtype=torch.float64, requires_grad=True)
        for step in range(STEPS):
            if step == JOINS and joins:
                optimizer.add_param_group({"params": [late]})
            optimizer.step(loss=problem.gradients())
        ends.append(flat(problem.params))
        assert torch.equal(late.detach(), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-11)


def test_a_newcomer_of_one_of_several_optimizers() -> None:
    """Its losses are those of a group that averages as it does, whichever optimizer has it."""
    problem, rule = Problem(), Watched()
    bases = [SGD(problem.params[:1], lr=0.05, momentum=0.5), AdamW(problem.params[1:2], lr=0.05)]
    optimizer = MoMoWrapper(bases, rule)
    for step in range(STEPS):
        if step == JOINS:
            bases[1].add_param_group({"params": problem.params[2:]})
        optimizer.step(loss=problem.gradients())
        if step >= JOINS:
            assert rule.seen.groups is not None
            levels = rule.seen.groups.mean_loss.tolist()
            assert levels[1] == pytest.approx(levels[2], rel=1e-12)

"""(3) and (4) minimise the truncated model plus the proximal terms, over all groups at once.

The objective is built from its definition: the weights of past losses and gradients are expanded
one by one, nothing is averaged recursively. Each group i has weights w_ij with the sum ρ_i and a
share ω_i of the predicted decrease; its proximal terms are divided by ρ_i, which is what makes the
base's own step the untruncated minimiser,

    max{ Σ_i Σ_j w_ij/ρ_i (ω_i f_j + ⟨g_ij, x_i - x_ij⟩), f* }
        + Σ_i 1/ρ_i [ ‖x_i - x_{k,i}‖²_{D_i}/(2 α_i) + (λ_i/2) ‖x_i‖²_{D_i} ].

With equal weights the shares do not matter, and this is ρ times the model (2) in the form of the
paper, divided by ρ. `PerGroup` minimises this for each group without the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from momo_wrap import MoMo, MoMoWrapper, StepRule
from momo_wrap.research import PerGroup

SIZE = 4  # parameters of a group

Weights = Callable[[int], list[float]]
Params = Sequence[Tensor]
Groups = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Base:
    """A base optimizer, with w_1 ... w_k and D written out."""

    make: Callable[[list[dict[str, object]]], Optimizer]
    weights: Weights
    preconditioner: Callable[[Optimizer, Tensor], Tensor]


def sgd_weights(momentum: float, dampening: float, nesterov: bool) -> Weights:
    def weights(k: int) -> list[float]:
        fresh = [1.0] + [1.0 - dampening] * (k - 1)
        buffer = [momentum ** (k - 1 - j) * fresh[j] for j in range(k)]
        if nesterov:
            return [momentum * b + (j == k - 1) for j, b in enumerate(buffer)]
        return buffer

    return weights


def sgd(momentum: float, dampening: float = 0.0, nesterov: bool = False) -> Base:
    return Base(
        lambda groups: SGD(groups, momentum=momentum, dampening=dampening, nesterov=nesterov),
        sgd_weights(momentum, dampening, nesterov),
        lambda _, x: torch.ones_like(x),
    )


def adam_preconditioner(optimizer: Optimizer, x: Tensor) -> Tensor:
    state: dict[str, Tensor] = optimizer.state[x]
    variance = state["exp_avg_sq"] / (1 - 0.9 ** float(state["step"]))
    return torch.add(variance.sqrt(), 1e-3)


BASES = {
    "plain": sgd(0.0),
    "momentum": sgd(0.9),
    "dampening": sgd(0.7, 0.7),
    "nesterov": sgd(0.6, nesterov=True),
    "Adam": Base(
        lambda groups: Adam(groups, betas=(0.8, 0.9), eps=1e-3),
        lambda k: [0.2 * 0.8 ** (k - 1 - j) / (1 - 0.8**k) for j in range(k)],
        adam_preconditioner,
    ),
}

log_rates = st.floats(-3, 2)
group_settings = st.tuples(log_rates, st.one_of(st.just(0.0), st.floats(0.01, 2.0)))


@dataclass
class History:
    """Random losses and gradients, and where they were met."""

    losses: list[float]
    gradients: list[list[Tensor]]
    positions: list[list[Tensor]]

    def of_group(self, index: int) -> History:
        """Return what a single group has met."""
        gradients = [[of_groups[index]] for of_groups in self.gradients]
        return History(self.losses, gradients, [[x[index]] for x in self.positions])

    def objective(
        self,
        optimizer: MoMoWrapper,
        groups: Groups,
        bases: Sequence[Base],
        at: Params,
        bound: float,
    ) -> Tensor:
        """The function that the last step is to have minimised."""
        model = torch.zeros((), dtype=torch.float64)
        proximal = torch.zeros((), dtype=torch.float64)
        shares = self.shares(optimizer, groups, bases)
        for i, (base, group, y) in enumerate(zip(bases, groups, at, strict=True)):
            weights = base.weights(len(self.losses))
            rho = sum(weights)
            for w, f, g, x in zip(
                weights, self.losses, self.gradients, self.positions, strict=True
            ):
                model += w / rho * (shares[i] * f + (g[i] * (y - x[i])).sum())
            d = base.preconditioner(optimizer, group["params"][0])
            old = self.positions[-1][i]
            proximal += (d * (y - old) ** 2).sum() / (2 * group["lr"] * rho)
            proximal += group["weight_decay"] / 2 * (d * y**2).sum() / rho
        return model.clamp(min=bound) + proximal

    def shares(self, optimizer: MoMoWrapper, groups: Groups, bases: Sequence[Base]) -> list[float]:
        """ω, from the predicted decrease of the full step of each group."""
        decreases = []
        for i, (base, group) in enumerate(zip(bases, groups, strict=True)):
            weights = base.weights(len(self.losses))
            pairs = zip(weights, self.gradients, strict=True)
            average = torch.stack([w * g[i] for w, g in pairs]).sum(dim=0)
            u = average / base.preconditioner(optimizer, group["params"][0])
            c = 1 / (1 + group["lr"] * group["weight_decay"])
            decreases.append(float(c * group["lr"] * (average * u).sum() / sum(weights)))
        return [decrease / sum(decreases) for decrease in decreases]


Settings = list[tuple[float, float]]


def check_minimality(
    bases: list[Base], settings: Settings, steps: int, bound: float, seed: int
) -> None:
    """Take random steps with an optimizer for each group, and perturb the last one."""
    optimizer, history = random_steps(bases, settings, steps, MoMo(bound), seed)
    check_last_step(optimizer, optimizer.param_groups, bases, history, bound)


def random_steps(
    bases: list[Base], settings: Settings, steps: int, rule: StepRule, seed: int
) -> tuple[MoMoWrapper, History]:
    generator = torch.Generator().manual_seed(seed)

    def random(scale: float = 1.0) -> Tensor:
        return scale * torch.randn(SIZE, generator=generator, dtype=torch.float64)

    params = [random().requires_grad_() for _ in settings]
    groups: list[dict[str, object]] = [
        {"params": [p], "lr": 10.0**log_lr, "weight_decay": decay}
        for p, (log_lr, decay) in zip(params, settings, strict=True)
    ]
    if all(base is bases[0] for base in bases):
        optimizer = MoMoWrapper(bases[0].make(groups), rule, weight_decay_form="proximal")
    else:
        members = [base.make([group]) for base, group in zip(bases, groups, strict=True)]
        optimizer = MoMoWrapper(members, rule, weight_decay_form="proximal")
    history = History([], [], [])
    for _ in range(steps):
        history.losses.append(float(random().abs().sum()))
        history.gradients.append([random() for _ in params])
        history.positions.append([p.detach().clone() for p in params])
        for param, gradient in zip(params, history.gradients[-1], strict=True):
            param.grad = gradient.clone()
        optimizer.step(loss=history.losses[-1])
    return optimizer, history


def check_last_step(
    optimizer: MoMoWrapper, groups: Groups, bases: list[Base], history: History, bound: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    reached = [group["params"][0].detach() for group in groups]
    best = history.objective(optimizer, groups, bases, reached, bound)
    slack = 1e-9 * (1 + best.abs())
    moves = [y - x for y, x in zip(reached, history.positions[-1], strict=True)]
    for scale in (1e-4, 1e-2, 1.0):
        noise = torch.randn(4, len(groups), SIZE, generator=generator, dtype=torch.float64)
        trials = [list(trial.unbind()) for trial in scale * noise]
        trials += [[sign * scale * move for move in moves] for sign in (-1.0, 1.0)]
        for trial in trials:
            other = [y + t for y, t in zip(reached, trial, strict=True)]
            assert history.objective(optimizer, groups, bases, other, bound) >= best - slack


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@given(
    settings=st.lists(group_settings, min_size=1, max_size=3),
    steps=st.integers(1, 4),
    bound=st.floats(-3, 3),
    seed=st.integers(0, 2**31),
)
def test_step_is_the_minimiser(
    base: Base, settings: list[tuple[float, float]], steps: int, bound: float, seed: int
) -> None:
    check_minimality([base] * len(settings), settings, steps, bound, seed)


@given(
    choices=st.lists(
        st.tuples(st.sampled_from(list(BASES)), group_settings), min_size=2, max_size=4
    ),
    steps=st.integers(1, 4),
    bound=st.floats(-3, 3),
    seed=st.integers(0, 2**31),
)
def test_step_of_several_optimizers_is_the_minimiser(
    choices: list[tuple[str, tuple[float, float]]], steps: int, bound: float, seed: int
) -> None:
    bases = [BASES[name] for name, _ in choices]
    check_minimality(bases, [settings for _, settings in choices], steps, bound, seed)


@given(
    choices=st.lists(
        st.tuples(st.sampled_from(list(BASES)), group_settings), min_size=1, max_size=4
    ),
    alike=st.booleans(),
    steps=st.integers(1, 4),
    bound=st.floats(-3, 3),
    seed=st.integers(0, 2**31),
)
def test_per_group_minimises_the_model_of_each_group(
    choices: list[tuple[str, tuple[float, float]]], alike: bool, steps: int, bound: float, seed: int
) -> None:
    bases = [BASES[choices[0][0] if alike else name] for name, _ in choices]
    settings = [settings for _, settings in choices]
    optimizer, history = random_steps(bases, settings, steps, PerGroup(bound), seed)
    for i, (base, group) in enumerate(zip(bases, optimizer.param_groups, strict=True)):
        check_last_step(optimizer, [group], [base], history.of_group(i), bound)


def test_objective_tells_another_theta() -> None:
    """The objective above is not minimal where θ is off by a little."""
    base = BASES["momentum"]
    param = torch.ones(SIZE, dtype=torch.float64, requires_grad=True)
    param.grad = torch.full_like(param, 2.0)
    optimizer = MoMoWrapper(base.make([{"params": [param], "lr": 1.0, "weight_decay": 0.1}]))
    history = History([3.0], [[param.grad.clone()]], [[param.detach().clone()]])
    optimizer.step(loss=3.0)
    assert optimizer.last_step is not None
    assert 0 < optimizer.last_step.theta < 1
    reached = param.detach()
    groups = optimizer.param_groups
    best = history.objective(optimizer, groups, [base], [reached], 0.0)
    off = copy.copy(reached) - 0.01 * optimizer.last_step.theta * param.grad
    assert history.objective(optimizer, groups, [base], [off], 0.0) > best + 1e-6

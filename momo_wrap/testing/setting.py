"""The training run of the laws, and the optimizers that they compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters import Adapter, ProposingAdapter, ReadingAdapter, adapter_for
from momo_wrap.adapters.proposing import AveragingOfGroup
from momo_wrap.checks.arguments import Compiled
from momo_wrap.rules import ModelStats, StepDecision, StepRule
from momo_wrap.wrapper import MoMoWrapper

MakeOptimizer: TypeAlias = Callable[[Any], Optimizer]
Prepare: TypeAlias = Callable[[int, "Run"], None]

STEPS = 100
FEWER_STEPS = 40


@dataclass
class Run:
    """A two-layer network on a generated regression, with an optimizer that trains it."""

    make: MakeOptimizer
    dtype: torch.dtype = torch.float64
    sign: float = 1.0  # -1 to maximize the negative of the loss
    permuted: bool = False  # whether parameters have reverse order and transposed memory
    # 2 for a first group of one parameter, whose state is not packed with others, and a second one
    # with 0.8 of the learning rate.
    groups: int = 1
    thetas: list[float] = field(default_factory=list)  # of each step of a wrapped optimizer

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(self.dtype)

        self.inputs, self.targets = random(64, 5), random(64, 3)
        params = [0.5 * random(*shape) for shape in [(5, 8), (1, 8), (8, 3), (1, 3)]]
        self.late = torch.zeros(1, 3, dtype=self.dtype, requires_grad=True)
        if self.permuted:
            params = [param.t().contiguous().t() for param in params]
        self.params = [param.requires_grad_() for param in params]
        torch.manual_seed(0)  # some optimizers draw random numbers
        given = self.params[::-1] if self.permuted else self.params
        if self.groups == 2:
            given = [{"params": given[:1]}, {"params": given[1:]}]  # type: ignore[list-item]
        self.optimizer = self.make(given)
        if self.groups == 2:
            group = self.optimizer.param_groups[1]
            group["lr"] = group["lr"] * 0.8  # not in place: a tensor may be shared

    def whole_loss(self) -> float:
        """Return the loss on all data."""
        return float(self.loss(None).detach()) * self.sign

    def loss(self, step: int | None) -> Tensor:
        """Return the objective on the minibatch of a step, or on all data."""
        rows = slice(None) if step is None else slice(16 * (step % 4), 16 * (step % 4 + 1))
        weight1, bias1, weight2, bias2 = self.params
        hidden = torch.tanh(self.inputs[rows] @ weight1 + bias1)
        residual = hidden @ weight2 + bias2 + self.late - self.targets[rows]
        return self.sign * residual.square().mean()

    def step(self, step: int, prepare: Prepare | None = None) -> None:
        """Take one step; `prepare` may change gradients and groups before it."""
        params = [*self.params, self.late]
        loss = self.loss(step)
        for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
            param.grad = grad.clone()
        if prepare is not None:
            prepare(step, self)
        if isinstance(self.optimizer, MoMoWrapper):
            self.optimizer.step(loss=loss)
            assert self.optimizer.last_step is not None
            self.thetas.append(float(self.optimizer.last_step.theta))
        else:
            self.optimizer.step()

    def train(self, prepare: Prepare | None = None, steps: int = FEWER_STEPS) -> Tensor:
        """Return the parameters after each step, shape [steps, parameters]."""
        trajectory = []
        for step in range(steps):
            self.step(step, prepare)
            trajectory.append(self.flat())
        return torch.stack(trajectory)

    def flat(self) -> Tensor:
        """Return all parameters as one vector, float64."""
        return torch.cat([p.detach().double().reshape(-1) for p in [*self.params, self.late]])


class Soft(StepRule):
    """θ = h / (h + N): a fraction in every step, which differs for different models."""

    decreases = (0.0, 0.0)

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ, and store the decreases of the step."""
        gap = (stats.value_after_decay - stats.lower_bound).clamp(min=0.0)
        total = gap + stats.predicted_decrease.clamp(min=0.0)
        theta = torch.where(total > 0, gap / total, 0.0)
        self.decreases = (float(stats.predicted_decrease), float(stats.gradient_decrease))
        return StepDecision(theta, theta, stats.lower_bound)


@dataclass(frozen=True)
class Setting:
    """The unwrapped optimizer, the adapter to check, and the adapter to compare with."""

    bare: MakeOptimizer
    adapter: Adapter
    oracle: ProposingAdapter

    @classmethod
    def of(
        cls, make: MakeOptimizer, adapter: Adapter | None, averaging: AveragingOfGroup | None
    ) -> Setting:
        """Create a setting, and check that the unwrapped optimizer trains; see `check_adapter`."""

        def bare(params: Any) -> Optimizer:
            optimizer = make(params)
            for group in optimizer.param_groups:
                if isinstance(adapter, ReadingAdapter) and "weight_decay" in group:
                    group["weight_decay"] = 0.0
            return optimizer

        run = Run(make)
        adapter = adapter_for(run.optimizer) if adapter is None else adapter
        reason = adapter.obstacle(run.optimizer)
        if reason is not None:
            raise AssertionError(f"{adapter!r} says that it can't read this optimizer: {reason}.")
        run = Run(bare)
        start = run.whole_loss()
        run.train(steps=STEPS)
        end = run.whole_loss()
        if not end < 0.9 * start:
            raise AssertionError(
                f"The unwrapped optimizer changed the loss from {start:.4g} to {end:.4g} in "
                f"{STEPS} steps, expected less than 0.9 of the start. Choose a learning rate at "
                "which it trains."
            )
        if averaging is None:
            averaging = getattr(adapter, "averaging", None)
        return cls(bare, adapter, ProposingAdapter(averaging=averaging))

    def wrapped(
        self,
        rule: StepRule | None = None,
        adapter: Adapter | None = None,
        compiled: Compiled = False,
    ) -> Callable[[Any], MoMoWrapper]:
        """Return a function that creates the wrapped optimizer; None: with the checked adapter."""
        rule = Soft() if rule is None else rule
        chosen = self.adapter if adapter is None else adapter
        return lambda params: MoMoWrapper(
            self.bare(params), rule, adapter=chosen, compiled=compiled
        )

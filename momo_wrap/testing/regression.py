"""The small training run that adapters are checked on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.wrapper import MoMoWrapper

MakeOptimizer: TypeAlias = Callable[[Any], Optimizer]
Prepare: TypeAlias = Callable[[int, "Run"], None]

STEPS = 100
FEWER_STEPS = 40


@dataclass
class Run:
    """A two-layer network on a generated regression, with an optimizer that trains it.

    Attributes:
        make: Makes the optimizer from parameters or groups.
        dtype: The dtype of parameters and data.
        sign: -1 to maximise the negative of the loss.
        permuted: Whether parameters come in reverse order and in transposed memory.
        groups: 2 for a first group of one parameter, whose state is not packed with that of others,
            and a second one with 0.8 of the learning rate.
        losses: The loss before each step so far.
        thetas: θ of each step so far, of a wrapped optimizer.
    """

    make: Callable[[Any], Optimizer]
    dtype: torch.dtype = torch.float64
    sign: float = 1.0
    permuted: bool = False
    groups: int = 1
    losses: list[float] = field(default_factory=list)
    thetas: list[float] = field(default_factory=list)

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

    def loss(self, step: int) -> Tensor:
        """Return the objective on the minibatch of a step."""
        return self._loss(slice(16 * (step % 4), 16 * (step % 4 + 1)))

    def whole_loss(self) -> float:
        """Return the loss on all data."""
        return float(self._loss(slice(None)).detach()) * self.sign

    def _loss(self, rows: slice) -> Tensor:
        weight1, bias1, weight2, bias2 = self.params
        hidden = torch.tanh(self.inputs[rows] @ weight1 + bias1)
        residual = hidden @ weight2 + bias2 + self.late - self.targets[rows]
        return self.sign * residual.square().mean()

    def step(self, step: int, prepare: Prepare | None = None) -> None:
        """Take one step; `prepare` may change gradients and groups before."""
        params = [*self.params, self.late]
        loss = self.loss(step)
        for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
            param.grad = grad.clone()
        if prepare is not None:
            prepare(step, self)
        self.losses.append(float(loss.detach()) * self.sign)
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

"""Small problems to train on, the same for every optimizer that is compared."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap import MoMoWrapper, StepRecord

MakeOptimizer = Callable[[list[Tensor]], Optimizer]


@dataclass
class Problem:
    """A two-layer network on generated regression data, trained on minibatches.

    Args:
        dtype: The dtype of data and parameters, real or complex.
        seed: Decides data, initial parameters and batches.
        sign: -1 to maximise the negative of the loss.
    """

    dtype: torch.dtype = torch.float64
    seed: int = 0
    sign: float = 1.0
    params: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.inputs, self.targets = self._random(64, 5), self._random(64, 3)
        shapes = [(5, 8), (8,), (8, 3), (3,)]
        self.params = [(0.5 * self._random(*shape)).requires_grad_() for shape in shapes]

    def _random(self, *shape: int) -> Tensor:
        wide = torch.complex128 if self.dtype.is_complex else torch.float64
        return torch.randn(*shape, generator=self.generator, dtype=wide).to(self.dtype)

    def next_batch(self) -> Tensor:
        """Draw the rows of the next minibatch."""
        return torch.randperm(64, generator=self.generator)[:16]

    def loss(self, params: Sequence[Tensor], rows: Tensor) -> Tensor:
        """The objective of the optimizer on a minibatch."""
        weight1, bias1, weight2, bias2 = params
        hidden = torch.tanh(self.inputs[rows] @ weight1 + bias1)
        residual = hidden @ weight2 + bias2 - self.targets[rows]
        return self.sign * (residual * residual.conj()).real.mean()

    def gradients(self) -> Tensor:
        """Set the gradients on the next minibatch, and return the loss."""
        loss = self.loss(self.params, self.next_batch())
        for param, grad in zip(self.params, torch.autograd.grad(loss, self.params), strict=True):
            param.grad = grad
        return loss.detach()

    def train(self, make: MakeOptimizer, steps: int) -> Iterator[Optimizer]:
        """Train, and hand over the optimizer after each step."""
        optimizer = make(self.params)
        for _ in range(steps):
            take_step(optimizer, self.gradients())
            yield optimizer


def take_step(optimizer: Optimizer, loss: Tensor) -> None:
    """Step with the loss or the closure that the optimizer needs."""
    if "loss" in inspect.signature(type(optimizer).step).parameters:
        optimizer.step(loss=loss)  # type: ignore[call-overload]
    else:
        optimizer.step()


def flat(params: Sequence[Tensor]) -> Tensor:
    """All parameters as one detached vector."""
    return torch.cat([p.detach().reshape(-1) for p in params])


def trajectory(make: MakeOptimizer, steps: int, problem: Problem | None = None) -> Tensor:
    """The parameters after each step, shape [steps, parameters]."""
    problem = Problem() if problem is None else problem
    return torch.stack([flat(problem.params) for _ in problem.train(make, steps)])


def thetas(make: MakeOptimizer, steps: int, problem: Problem | None = None) -> Tensor:
    """θ at each step of a wrapped optimizer, shape [steps]."""
    problem = Problem() if problem is None else problem
    return torch.stack([last_step(o).theta for o in problem.train(make, steps)])


def last_step(optimizer: Optimizer) -> StepRecord:
    """The record of a wrapper's last step, which there must be."""
    assert isinstance(optimizer, MoMoWrapper)
    assert optimizer.last_step is not None
    return optimizer.last_step


def goes_on_from_a_file(
    make: MakeOptimizer, make_problem: Callable[[], Problem], steps: int = 15
) -> Optimizer:
    """Check that a run resumes bit for bit with all saved entries, and return its optimizer."""
    problem, fresh = make_problem(), make_problem()
    optimizer, other = make(problem.params), make(fresh.params)
    for _ in range(steps):
        take_step(optimizer, problem.gradients())
    torch.save(optimizer.state_dict(), file := io.BytesIO())
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    fresh.generator.set_state(problem.generator.get_state())
    with torch.no_grad():
        for param, value in zip(fresh.params, problem.params, strict=True):
            param.copy_(value)
    for _ in range(steps):
        take_step(optimizer, problem.gradients())
        take_step(other, fresh.gradients())
        found, expected = vars(last_step(other)), vars(last_step(optimizer))
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert torch.equal(flat(fresh.params), flat(problem.params))
    return other


def kept(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The wrapper's averages of each group, under the names of its state dict."""
    groups = optimizer.state_dict()["param_groups"]
    return [{n: v for n, v in group.items() if n.startswith("momo_")} for group in groups]


def relative_distance(left: Tensor, right: Tensor) -> float:
    """The largest distance of two trajectories in norm, relative to the parameters' own norm."""
    return float(((left - right).norm(dim=-1) / right.norm(dim=-1)).max())

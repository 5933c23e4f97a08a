"""Regression: heavy tails in the targets, differential equations, coordinates, deep linear nets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from docs.evidence.further.situations import Situation
from docs.evidence.problems import Batch


def perceptron(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return a perceptron with these widths, from input to output."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [activation()] * (i > 0) + [nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    loss: Tensor = (model(inputs) - targets).square().mean()
    return loss


def _student(degrees: float, shape: tuple[int, ...]) -> Tensor:
    return torch.distributions.StudentT(degrees).sample(shape)


def heavy_tails_perceptron() -> Situation:
    """Targets of a random network, with noise of Student's t with 1.8 degrees of freedom."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(10, 4, generator=generator) / 10**0.5

    def truth(x: Tensor) -> Tensor:
        return torch.sin(2.0 * x @ mixing).sum(dim=1, keepdim=True)

    def batches() -> Iterator[Batch]:
        for _ in range(500):
            x = torch.randn(64, 10)
            yield x, truth(x) + 0.5 * _student(1.8, (64, 1))

    test = torch.randn(1000, 10, generator=generator)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return {"loss": squared_error(model, (test, truth(test)))}

    return Situation(perceptron(10, 64, 64, 1), batches(), 500, [squared_error], evaluate)


def heavy_tails_linear() -> Situation:
    """A linear model of 40 features, with Pareto noise of either sign, of infinite variance."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(40, 1, generator=generator)
    scales = torch.logspace(0, -1, 40)

    def batches() -> Iterator[Batch]:
        for _ in range(400):
            x = torch.randn(32, 40) * scales
            noise = torch.distributions.Pareto(0.3, 1.8).sample((32, 1))
            yield x, x @ weights + noise * torch.randn(32, 1).sign()

    test = torch.randn(1000, 40, generator=generator) * scales

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return {"loss": squared_error(model, (test, test @ weights))}

    return Situation(nn.Linear(40, 1), batches(), 400, [squared_error], evaluate)


def _slope(outputs: Tensor, inputs: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
    return slope


def poisson() -> Situation:
    """A network that solves u'' = -9 π² sin(3 π x), u = 0 at both ends."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.enable_grad():
            x = batch[0].clone().requires_grad_()
            residual = _slope(_slope(model(x), x), x) + 9 * torch.pi**2 * torch.sin(
                3 * torch.pi * x
            )
            ends = model(torch.tensor([[0.0], [1.0]]))
            total: Tensor = 1e-2 * residual.square().mean() + 10.0 * ends.square().mean()
            return total

    test = torch.linspace(0, 1, 200)[:, None]

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        error = (model(test) - torch.sin(3 * torch.pi * test)).square().mean()
        return {"loss": error.sqrt()}

    batches = ((torch.rand(64, 1),) for _ in range(600))
    model = perceptron(1, 32, 32, 1, activation=nn.Tanh)
    return Situation(model, batches, 600, [loss], evaluate)


def heat() -> Situation:
    """u_t = 0.1 u_xx from sin(2 π x), 0 at both ends: a network that solves it."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.enable_grad():
            x, t = (column.clone().requires_grad_() for column in batch)
            u = model(torch.cat([x, t], dim=1))
            residual = _slope(u, t) - 0.1 * _slope(_slope(u, x), x)
            zero = torch.zeros_like(batch[0])
            first = model(torch.cat([batch[0], zero], dim=1)) - torch.sin(2 * torch.pi * batch[0])
            ends = model(torch.cat([(batch[0] > 0.5).float(), batch[1]], dim=1))
            parts = residual, first, ends
            return sum((part.square().mean() for part in parts), start=torch.zeros(()))

    grid = torch.cartesian_prod(torch.linspace(0, 1, 30), torch.linspace(0, 1, 30))

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        decay = torch.exp(-0.4 * torch.pi**2 * grid[:, 1:])
        exact = torch.sin(2 * torch.pi * grid[:, :1]) * decay
        return {"loss": (model(grid) - exact).square().mean().sqrt()}

    batches = ((torch.rand(64, 1), torch.rand(64, 1)) for _ in range(500))
    model = perceptron(2, 32, 32, 1, activation=nn.Tanh)
    return Situation(model, batches, 500, [loss], evaluate)


def coordinates() -> Situation:
    """A network from coordinates to a picture, with random Fourier features."""
    generator = torch.Generator().manual_seed(2)
    frequencies = 4.0 * torch.randn(2, 32, generator=generator)

    def features(places: Tensor) -> Tensor:
        angles = places @ frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def picture(places: Tensor) -> Tensor:
        x, y = places.T
        rings = torch.sin(12 * ((x - 0.3) ** 2 + (y - 0.6) ** 2))
        values: Tensor = (rings + ((x + y) % 0.5 > 0.25).float())[:, None]
        return values

    def batches() -> Iterator[Batch]:
        for _ in range(500):
            places = torch.rand(256, 2)
            yield features(places), picture(places)

    test = torch.rand(1000, 2, generator=generator)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return {"loss": squared_error(model, (features(test), picture(test)))}

    return Situation(perceptron(64, 64, 64, 1), batches(), 500, [squared_error], evaluate)


def deep_linear() -> Situation:
    """Eight linear layers, which are to be a given matrix."""
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(16, 16, generator=generator) / 4.0

    def batches() -> Iterator[Batch]:
        for _ in range(500):
            x = torch.randn(32, 16)
            yield x, x @ target + 0.1 * torch.randn(32, 16)

    test = torch.randn(1000, 16, generator=generator)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return {"loss": squared_error(model, (test, test @ target)) + 0.01}

    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(8)))
    return Situation(model, batches(), 500, [squared_error], evaluate)

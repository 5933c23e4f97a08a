"""Regression to judge rules on: outliers, an equation, an adapter, and weights that rotate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence.further.regression import perceptron, squared_error
from docs.evidence.further.situations import Situation
from docs.evidence.problems import Batch, epochs


def explained(outputs: Tensor, truth: Tensor) -> Mapping[str, Tensor]:
    """Return the part of the standard deviation that is explained, at least 0."""
    error = (outputs - truth).square().mean().sqrt() / truth.std()
    return {"score": (1 - error).clamp(min=0)}


def outliers() -> Situation:
    """Friedman's first function; a twentieth of the targets is off by ten, either way."""

    def truth(x: Tensor) -> Tensor:
        a, b, c, d, e = x[:, :5].T
        y: Tensor = 10 * torch.sin(torch.pi * a * b) + 20 * (c - 0.5) ** 2 + 10 * d + 5 * e
        return y[:, None]

    def batches() -> Iterator[Batch]:
        for _ in range(800):
            x = torch.rand(256, 10)
            off = 10.0 * (torch.rand(256, 1) < 0.05) * torch.randn(256, 1)
            yield 4 * x - 2, truth(x) + torch.randn(256, 1) + off

    test = torch.rand(3000, 10, generator=torch.Generator().manual_seed(101))

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return explained(model(4 * test - 2), truth(test))

    model = perceptron(10, 64, 64, 1, activation=nn.GELU)
    return Situation(model, batches(), 800, [squared_error], evaluate)


class ZeroAtEdges(nn.Module):
    """A perceptron of two coordinates, times a function that is 0 at the edges of a square."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = perceptron(2, width, width, 1, activation=nn.SiLU)

    def forward(self, places: Tensor) -> Tensor:
        x, y = places[:, :1], places[:, 1:]
        outputs: Tensor = 16 * x * (1 - x) * y * (1 - y) * self.inner(4 * places - 2)
        return outputs


def screened_poisson() -> Situation:
    """Δu - 10 u = f in the unit square, u = 0 at its edges: a network that solves it."""
    frequencies = torch.pi * torch.tensor([1.0, 3.0])

    def truth(places: Tensor) -> Tensor:
        return torch.sin(frequencies * places).prod(dim=1, keepdim=True)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.enable_grad():
            places = batch[0].clone().requires_grad_()
            u = model(places)
            (slope,) = torch.autograd.grad(u.sum(), places, create_graph=True)
            curvature = torch.zeros_like(u)
            for i in range(2):
                (second,) = torch.autograd.grad(slope[:, i].sum(), places, create_graph=True)
                curvature = curvature + second[:, i : i + 1]
            force = -(frequencies.square().sum() + 10) * truth(batch[0])
            total: Tensor = (curvature - 10 * u - force).square().mean()
            return total

    test = torch.cartesian_prod(torch.linspace(0, 1, 40), torch.linspace(0, 1, 40))

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return explained(model(test), truth(test))

    batches = ((torch.rand(100, 2),) for _ in range(400))
    return Situation(ZeroAtEdges(24), batches, 400, [loss], evaluate)


class Adapted(nn.Module):
    """A frozen perceptron; to each of its matrices, a product of two thin ones is added.

    Args:
        weights: The frozen matrices.
        rank: The rank of what is added, at most. The second factor begins at 0.
    """

    def __init__(self, weights: list[Tensor], rank: int) -> None:
        super().__init__()
        self.weights = weights
        self.down = nn.ParameterList([torch.randn(len(w), rank) / len(w) ** 0.5 for w in weights])
        self.up = nn.ParameterList([torch.zeros(rank, w.shape[1]) for w in weights])

    def forward(self, x: Tensor) -> Tensor:
        factors = zip(self.weights, self.down, self.up, strict=True)
        for i, (weight, down, up) in enumerate(factors):
            x = torch.relu(x) if i else x
            x = x @ weight + x @ down @ up
        return x


def adapter() -> Situation:
    """Adapters of rank 4 on a frozen network, which are to change it; batches of 4."""
    generator = torch.Generator().manual_seed(102)
    widths = [(16, 48), (48, 48), (48, 4)]
    frozen = [torch.randn(shape, generator=generator) * (2 / shape[0]) ** 0.5 for shape in widths]
    changed = []
    for weight in frozen:
        rows, columns = weight.shape
        one = torch.randn(rows, 2, generator=generator)
        other = torch.randn(2, columns, generator=generator)
        changed.append(weight + 0.4 * one @ other / rows**0.5)

    def apply(weights: list[Tensor], x: Tensor) -> Tensor:
        for weight in weights[:-1]:
            x = torch.relu(x @ weight)
        return x @ weights[-1]

    def batches() -> Iterator[Batch]:
        for _ in range(800):
            x = torch.randn(4, 16)
            truth = apply(changed, x)
            yield x, truth + 0.1 * torch.randn_like(truth)

    test = torch.randn(3000, 16, generator=generator)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return explained(model(test), apply(changed, test))

    return Situation(Adapted(frozen, 4), batches(), 800, [squared_error], evaluate)


def rotating_weights() -> Situation:
    """Features of tumours from others: four groups, one of which weighs most for 75 steps."""
    features = torch.tensor(StandardScaler().fit_transform(load_breast_cancer().data)).float()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(103))
    train, test = features[order[:400]], features[order[400:]]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets, weights = batch
        errors = functional.smooth_l1_loss(model(inputs), targets, reduction="none")
        return (weights * errors.mean(dim=0).view(4, 5).mean(dim=1)).sum()

    def batches() -> Iterator[Batch]:
        for step, (chosen,) in enumerate(epochs((train,), 40, 600)):
            weights = torch.full((4,), 0.3)
            weights[step // 75 % 4] = 6.0
            yield chosen[:, :10], chosen[:, 10:], weights

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return {"loss": loss(model, (test[:, :10], test[:, 10:], torch.full((4,), 0.25)))}

    model = perceptron(10, 32, 20, activation=nn.Tanh)
    return Situation(model, batches(), 600, [loss], evaluate)

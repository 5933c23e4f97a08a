"""New regression to judge rules on: quantiles, lifetimes, densities, a wave, noise that scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from docs.evidence.further.judged_regression import explained
from docs.evidence.further.regression import perceptron, squared_error
from docs.evidence.further.situations import Situation
from docs.evidence.problems import Batch, epochs


def multiplicative_noise() -> Situation:
    """Targets that are multiplied with noise of mean 1: where they are large, so is the noise.

    Its logarithm is normal, with a standard deviation of 0.8.
    """
    directions = torch.randn(6, 2, generator=torch.Generator().manual_seed(201)) / 6**0.5

    def truth(x: Tensor) -> Tensor:
        return torch.exp(torch.sin(2.0 * x @ directions).sum(dim=1, keepdim=True))

    def batches() -> Iterator[Batch]:
        for _ in range(600):
            x = torch.randn(128, 6)
            yield x, truth(x) * torch.exp(0.8 * torch.randn(128, 1) - 0.32)

    test = torch.randn(3000, 6, generator=torch.Generator().manual_seed(202))

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return explained(model(test), truth(test))

    model = perceptron(6, 64, 64, 1, activation=nn.SiLU)
    return Situation(model, batches(), 600, [squared_error], evaluate)


def quantiles() -> Situation:
    """Five quantiles at once, by the pinball loss; the noise is skewed, its scale depends on x."""
    shares = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        middle = 2 * torch.sin(2 * x[:, :1]) + x[:, 1:2].abs()
        return middle, 0.1 + 0.8 * (2 * x[:, 2:3] + x[:, :1]).sigmoid()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        missing = targets - model(inputs)
        total: Tensor = torch.maximum(shares * missing, (shares - 1) * missing).mean()
        return total

    def batches() -> Iterator[Batch]:
        for _ in range(600):
            x = torch.randn(48, 4)
            middle, scale = parts(x)
            yield x, middle + scale * torch.empty(48, 1).exponential_()

    test = torch.randn(3000, 4, generator=torch.Generator().manual_seed(203))
    middle, scale = parts(test)
    exact = middle - scale * (1 - shares).log()

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return explained(model(test), exact)

    model = perceptron(4, 48, 48, 5, activation=nn.ELU)
    return Situation(model, batches(), 600, [loss], evaluate)


def survival() -> Situation:
    """Cox's partial likelihood of lifetimes, about half of which are censored; measured by order.

    A batch is compared with itself only, so the loss depends on who is in it.
    """
    generator = torch.Generator().manual_seed(204)
    factors = torch.randn(12, 3, generator=generator) / 12**0.5

    def risk(x: Tensor) -> Tensor:
        one, two, three = (x @ factors).T
        log_risk: Tensor = 2 * one * two + torch.sin(3 * three)
        return log_risk

    def drawn(count: int) -> Batch:
        x = torch.randn(count, 12, generator=generator)
        lives = torch.empty(count).exponential_(generator=generator) * torch.exp(-risk(x))
        ends = torch.empty(count).exponential_(generator=generator)
        return x, torch.minimum(lives, ends), lives <= ends

    train, (test, test_times, test_died) = drawn(3000), drawn(1500)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs, times, died = batch
        order = times.argsort(descending=True)
        log_risk = model(inputs)[order, 0]
        of_the_living = log_risk.logcumsumexp(dim=0)
        total: Tensor = (of_the_living - log_risk)[died[order]].sum() / died.sum().clamp(min=1)
        return total

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        log_risk = model(test)[:, 0]
        counts = test_died[:, None] & (test_times[:, None] < test_times)
        ordered = (log_risk[:, None] - log_risk).sign()[counts]
        return {"score": (1 + ordered.mean()) / 2}

    model = perceptron(12, 48, 48, 1)
    model[-1] = nn.Linear(48, 1, bias=False)  # a constant added to each risk changes no loss
    return Situation(model, epochs(train, 32, 500), 500, [loss], evaluate)


PARTS = 6  # of a density


def log_density(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the logarithm of a mixture's density.

    Args:
        outputs: Logits of the parts, their means, and the logarithms of their scales, [n, 3 parts].
        targets: Shape [n, 1].
    """
    logits, means, log_scales = outputs.chunk(3, dim=1)
    parts = torch.distributions.Normal(means, log_scales.exp()).log_prob(targets)
    total: Tensor = (logits.log_softmax(dim=1) + parts).logsumexp(dim=1)
    return total


def mixture_density() -> Situation:
    """A network that gives the density of a target with three narrow branches; the loss is below 0.

    The score is the geometric mean of the density, as a share of what the true one gives.
    """

    def truth(x: Tensor) -> Tensor:
        one, two = x[:, :1], x[:, 1:]
        logits = torch.cat([one, two, torch.zeros_like(one)], dim=1)
        means = torch.cat([torch.sin(2 * one), 1.5 + 0.5 * two, -1.5 + 0.4 * one * two], dim=1)
        return torch.cat([logits, means, torch.full_like(means, -2.8)], dim=1)

    def drawn(count: int, generator: torch.Generator | None = None) -> Batch:
        x = torch.randn(count, 2, generator=generator)
        logits, means, log_scales = truth(x).chunk(3, dim=1)
        which = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)
        noise = torch.randn(count, 1, generator=generator)
        return x, means.gather(1, which) + log_scales.gather(1, which).exp() * noise

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return -log_density(model(batch[0]), batch[1]).mean()

    test = drawn(4000, torch.Generator().manual_seed(205))

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        at_best = log_density(truth(test[0]), test[1]).mean()
        return {"score": torch.exp(-loss(model, test) - at_best)}

    model = perceptron(2, 48, 48, 3 * PARTS, activation=nn.Tanh)
    batches = (drawn(64) for _ in range(600))
    return Situation(model, batches, 600, [loss], evaluate)


class FixedEnds(nn.Module):
    """A perceptron of place and time, times a function that is 0 at both ends."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = perceptron(2, width, width, 1, activation=nn.Tanh)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        u: Tensor = 4 * x * (1 - x) * self.inner(torch.cat([4 * x - 2, 4 * t - 2], dim=1))
        return u


def wave() -> Situation:
    """u_tt = u_xx, from a string at rest with two overtones: a network that solves it."""

    def truth(x: Tensor, t: Tensor) -> Tensor:
        waves = ((1, 1.0), (2, 0.5))
        return sum(
            (a * torch.sin(k * torch.pi * x) * torch.cos(k * torch.pi * t) for k, a in waves),
            start=torch.zeros(()),
        )

    def slope(outputs: Tensor, inputs: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
        return found

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.enable_grad():
            x, t = (column.clone().requires_grad_() for column in batch)
            u = model(x, t)
            residual = slope(slope(u, t), t) - slope(slope(u, x), x)
            zero = torch.zeros_like(t).requires_grad_()
            first = model(x, zero)
            speed = slope(first, zero)
            start = (first - truth(batch[0], torch.zeros(()))).square().mean()
            total: Tensor = 0.05 * residual.square().mean() + 10 * start + speed.square().mean()
            return total

    x, t = torch.cartesian_prod(torch.linspace(0, 1, 30), torch.linspace(0, 1, 30)).split(1, dim=1)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return explained(model(x, t), truth(x, t))

    batches = ((torch.rand(64, 1), torch.rand(64, 1)) for _ in range(500))
    return Situation(FixedEnds(32), batches, 500, [loss], evaluate)

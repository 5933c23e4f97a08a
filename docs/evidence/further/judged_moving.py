"""Losses that move, to judge rules on: a teacher, a policy, an attacker, and sampled codes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence.further.regression import perceptron
from docs.evidence.further.situations import Situation
from docs.evidence.further.vision import accuracy
from docs.evidence.images import cross_entropy
from docs.evidence.problems import Batch

SIDE = 10  # pixels of an image


def gratings(labels: Tensor, noise: float, generator: torch.Generator | None = None) -> Tensor:
    """Return noisy stripes whose direction is the label, in 8 parts of half a turn.

    Args:
        labels: Shape [n].
        noise: The standard deviation of the noise.
        generator: Where phase, frequency and noise come from; None: torch's default.

    Returns:
        Images of shape [n, 100].
    """
    count = len(labels)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    angles = labels[:, None] * torch.pi / 8
    along = angles.cos() * x.flatten() + angles.sin() * y.flatten()
    frequency = 0.8 + 0.8 * torch.rand(count, 1, generator=generator)
    phase = 2 * torch.pi * torch.rand(count, 1, generator=generator)
    added = noise * torch.randn(count, SIDE * SIDE, generator=generator)
    return torch.sin(frequency * along + phase) + added


class Bootstrapped(nn.Module):
    """A student with a predictor, and a teacher that is the moving average of the student."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(100, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 48)]
        self.student = nn.Sequential(*layers)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.predictor = perceptron(48, 64, 48)


def bootstrap() -> Situation:
    """A student that predicts its own moving average, of another view; judged by its features.

    The method is BYOL, Grill et al., arXiv 2006.07733. Both views have the same direction.
    """
    model = Bootstrapped()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Bootstrapped)
        predicted = model.predictor(model.student(batch[0]))
        return 2 - 2 * functional.cosine_similarity(predicted, batch[1], dim=1).mean()

    def batches() -> Iterator[Batch]:
        for _ in range(300):
            labels = torch.randint(8, (128,))
            with torch.no_grad():
                targets = model.teacher(gratings(labels, 0.5))
            yield gratings(labels, 0.5), targets

    def follow(model: nn.Module) -> None:
        assert isinstance(model, Bootstrapped)
        with torch.no_grad():
            for own, new in zip(
                model.teacher.parameters(), model.student.parameters(), strict=True
            ):
                own.lerp_(new, 0.05)

    generator = torch.Generator().manual_seed(110)
    labels = torch.randint(8, (7000,), generator=generator)
    images = gratings(labels, 0.5, generator)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        assert isinstance(model, Bootstrapped)
        features = model.student[:-1](images)
        features = functional.normalize(features - features.mean(dim=0), dim=1)
        own, other = features[:3000], features[3000:]
        gram = own.T @ own + 0.1 * torch.eye(own.shape[1])
        weights = torch.linalg.solve(gram, own.T @ functional.one_hot(labels[:3000]).float())
        return {"score": ((other @ weights).argmax(dim=1) == labels[3000:]).float().mean()}

    players = [nn.ModuleList([model.student, model.predictor])]
    return Situation(model, batches(), 300, [loss], evaluate, players=players, after_step=follow)


class Policy(nn.Module):
    """A normal distribution of forces, whose mean is a network's."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = perceptron(2, 32, 1, activation=nn.Tanh)
        self.log_scale = nn.Parameter(torch.zeros(1))

    def forward(self, states: Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(self.mean(states), self.log_scale.exp())


HORIZON = 15


def moved(states: Tensor, forces: Tensor) -> tuple[Tensor, Tensor]:
    """Return where a mass is after a step of time, and what that costs."""
    place, speed = states[:, :1], states[:, 1:]
    speed = speed + 0.3 * forces
    new = torch.cat([place + 0.3 * speed, speed], dim=1)
    return new, (new.square().sum(dim=1, keepdim=True) + 0.1 * forces.square())


def least_cost(starts: Tensor) -> Tensor:
    """Return the least mean cost from these starts, by the Riccati equation."""
    dynamics, control = torch.tensor([[1.0, 0.3], [0.0, 1.0]]), torch.tensor([[0.09], [0.3]])
    to_go = torch.zeros(2, 2)
    for _ in range(HORIZON):
        after = torch.eye(2) + to_go
        mixed = control.T @ after @ dynamics
        spent = mixed.T @ mixed / (0.1 + control.T @ after @ control)
        to_go = dynamics.T @ after @ dynamics - spent
    return ((starts @ to_go) * starts).sum(dim=1).mean()


def steering() -> Situation:
    """Policy gradients: a mass is to be brought to rest at 0; the loss is around 0, often below."""
    model = Policy()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        states, forces, advantages = batch
        chosen: Tensor = model(states).log_prob(forces)
        return -(advantages * chosen).mean()

    @torch.no_grad()
    def played(states: Tensor, *, greedy: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        record = []
        for _ in range(HORIZON):
            policy = model(states)
            forces = policy.mean if greedy else policy.sample()
            new, costs = moved(states, forces)
            record.append((states, forces, costs))
            states = new
        first, second, costs = (torch.stack(list(x)) for x in zip(*record, strict=True))
        return first, second, costs

    def batches() -> Iterator[Batch]:
        for _ in range(300):
            states, forces, costs = played(torch.randn(64, 2))
            to_go = costs.flip(0).cumsum(dim=0).flip(0)
            centred = to_go.mean(dim=1, keepdim=True) - to_go
            yield states, forces, centred / centred.std()

    starts = torch.randn(1000, 2, generator=torch.Generator().manual_seed(111))

    def evaluate(_model: nn.Module) -> Mapping[str, Tensor]:
        costs = played(starts, greedy=True)[2].sum(dim=0).mean()
        return {"score": least_cost(starts) / costs}

    return Situation(model, batches(), 300, [loss], evaluate)


class Attacked(nn.Module):
    """A classifier, and a network that shifts each of its inputs by at most 0.4."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = perceptron(100, 64, 8)
        self.attacker = perceptron(100, 64, 100)

    def shifted(self, images: Tensor) -> Tensor:
        shifted: Tensor = images + 0.4 * torch.tanh(self.attacker(images))
        return shifted


def attacked() -> Situation:
    """A classifier of gratings against an attacker; judged against shifts along its gradient."""

    def classifying(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Attacked)
        images, labels = batch
        return cross_entropy(model.classifier, (model.shifted(images).detach(), labels))

    def attacking(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Attacked)
        images, labels = batch
        logits = model.classifier(model.shifted(images))
        others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)
        loss: Tensor = (logits.logsumexp(dim=1) - others).mean()
        return loss  # -log(1 - p), with p the probability of the true class

    generator = torch.Generator().manual_seed(112)
    labels = torch.randint(8, (4000,), generator=generator)
    images = gratings(labels, 0.7, generator)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        assert isinstance(model, Attacked)
        with torch.enable_grad():
            inputs = images.clone().requires_grad_()
            logits = model.classifier(inputs)
            others = logits.scatter(1, labels[:, None], -torch.inf).max(dim=1).values
            margins = logits.gather(1, labels[:, None])[:, 0] - others
            (gradient,) = torch.autograd.grad(margins.sum(), inputs)
        return accuracy(model.classifier, images - 0.2 * gradient.sign(), labels)

    def batches() -> Iterator[Batch]:
        for _ in range(500):
            chosen = torch.randint(8, (64,))
            yield gratings(chosen, 0.7), chosen

    model = Attacked()
    players = [model.classifier, model.attacker]
    return Situation(model, batches(), 500, [classifying, attacking], evaluate, players=players)


class Blobs(nn.Module):
    """A variational autoencoder of images of a blob."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = perceptron(100, 48, 8, activation=nn.SiLU)
        self.decoder = perceptron(4, 48, 100, activation=nn.SiLU)


def blobs(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Return noisy images, shape [count, 100], of a blob at a random place, of random width."""
    axis = torch.linspace(-1, 1, SIDE)
    places = 1.2 * torch.rand(2, count, 1, generator=generator) - 0.6
    width = 0.25 + 0.35 * torch.rand(count, 1, generator=generator)
    x, y = torch.exp(-(((axis - places) / width) ** 2))
    images = (y[:, :, None] * x[:, None, :]).flatten(1)
    noise = torch.randn(count, SIDE * SIDE, generator=generator)
    noisy: Tensor = images + 0.1 * noise
    return noisy


def blobs_variational() -> Situation:
    """A variational autoencoder with a normal distribution of pixels, of standard deviation 0.1."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Blobs)
        images, noise = batch
        mean, log_variance = model.encoder(images).chunk(2, dim=1)
        made = model.decoder(mean + (log_variance / 2).exp() * noise)
        kept = (made - images).square().sum() / (2 * 0.1**2)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        total: Tensor = (kept + divergence) / len(images)
        return total

    generator = torch.Generator().manual_seed(113)
    test = blobs(3000, generator), torch.randn(3000, 4, generator=generator)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return {"loss": loss(model, test)}

    batches = ((blobs(64), torch.randn(64, 4)) for _ in range(500))
    return Situation(Blobs(), batches, 500, [loss], evaluate)

"""Losses that change over time: curricula, changing weights, rewards, and two players."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence.further.regression import perceptron
from docs.evidence.further.situations import Situation
from docs.evidence.further.vision import accuracy, flat_digits
from docs.evidence.images import cross_entropy
from docs.evidence.problems import Batch, epochs


def curriculum() -> Situation:
    """Images that get noisier from step to step."""
    train, test, labels, test_labels = flat_digits()
    steps = 500

    def batches() -> Iterator[Batch]:
        for step, (images, targets) in enumerate(epochs((train, labels), 64, steps)):
            yield images + 0.5 * step / steps * torch.randn_like(images), targets

    noise = 0.5 * torch.randn(test.shape, generator=torch.Generator().manual_seed(7))
    return Situation(
        perceptron(64, 64, 64, 10),
        batches(),
        steps,
        [cross_entropy],
        lambda model: accuracy(model, test + noise, test_labels),
    )


def changing_weights() -> Situation:
    """Two tasks for one network; the weight of the second grows from 0.1 to 10 in mid-run."""
    train, test, labels, test_labels = flat_digits()
    steps = 500

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        images, targets, weight = batch
        outputs = model(images)
        missing = (outputs[:, 10:] - images).square().mean()
        total: Tensor = functional.cross_entropy(outputs[:, :10], targets) + weight * missing
        return total

    def batches() -> Iterator[Batch]:
        for step, (images, targets) in enumerate(epochs((train, labels), 64, steps)):
            yield images, targets, torch.tensor(10.0 if step > steps // 3 else 0.1)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return {"loss": loss(model, (test, test_labels, torch.tensor(10.0)))}

    return Situation(perceptron(64, 48, 48, 74), batches(), steps, [loss], evaluate)


def bandit() -> Situation:
    """REINFORCE in a contextual bandit: the loss is around 0, often below."""
    generator = torch.Generator().manual_seed(8)
    values = torch.randn(8, 5, generator=generator)
    model = perceptron(8, 32, 5, activation=nn.Tanh)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        contexts, actions, advantages = batch
        chosen = model(contexts).log_softmax(dim=1).gather(1, actions[:, None])[:, 0]
        total: Tensor = -(advantages * chosen).mean()
        return total

    def batches() -> Iterator[Batch]:
        baseline = torch.zeros(())
        for _ in range(400):
            contexts = torch.randn(64, 8)
            with torch.no_grad():
                actions = torch.distributions.Categorical(logits=model(contexts)).sample()
            rewards = (contexts @ values).gather(1, actions[:, None])[:, 0] + torch.randn(64)
            yield contexts, actions, rewards - baseline
            baseline = 0.9 * baseline + 0.1 * rewards.mean()

    contexts = torch.randn(1000, 8, generator=generator)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        rewards = contexts @ values
        chosen = rewards.gather(1, model(contexts).argmax(dim=1, keepdim=True))
        return {"score": chosen.mean() / rewards.max(dim=1).values.mean()}

    return Situation(model, batches(), 400, [loss], evaluate)


SIZE = 5  # of the grid, in which one walks from a corner to the other


def actor_critic() -> Situation:
    """One network for policy and value, in a small grid with a goal."""
    model = perceptron(SIZE * SIZE, 64, 5, activation=nn.Tanh)
    moves = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]])
    goal, horizon, count = SIZE * SIZE - 1, 16, 32

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        states, actions, returns = batch
        outputs = model(functional.one_hot(states, SIZE * SIZE).float())
        log_policy, values = outputs[:, :4].log_softmax(dim=1), outputs[:, 4]
        advantages = returns - values.detach()
        chosen = log_policy.gather(1, actions[:, None])[:, 0]
        entropy = -(log_policy.exp() * log_policy).sum(dim=1).mean()
        critic = (returns - values).square().mean()
        total: Tensor = -(advantages * chosen).mean() + 0.5 * critic - 0.01 * entropy
        return total

    @torch.no_grad()
    def played(*, greedy: bool, generator: torch.Generator | None = None) -> list[Tensor]:
        states, done = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.bool)
        record = []
        for _ in range(horizon):
            policy = model(functional.one_hot(states, SIZE * SIZE).float())[:, :4].softmax(dim=1)
            drawn = torch.multinomial(policy, 1, generator=generator)[:, 0]
            actions = policy.argmax(dim=1) if greedy else drawn
            places = torch.stack([states // SIZE, states % SIZE], dim=1) + moves[actions]
            places = places.clamp(0, SIZE - 1)
            new = places[:, 0] * SIZE + places[:, 1]
            rewards = ((new == goal) & ~done).float()
            record.append((states, actions, rewards, ~done))
            done = done | (new == goal)
            states = torch.where(done, states, new)
        returns, last = [], torch.zeros(count)
        for _, _, rewards, _ in reversed(record):
            last = rewards + 0.95 * last
            returns.append(last)
        alive = torch.cat([entry[3] for entry in record])
        columns = [torch.cat([entry[i] for entry in record]) for i in (0, 1)]
        return [x[alive] for x in (*columns, torch.cat(returns[::-1]))]

    def evaluate(_model: nn.Module) -> Mapping[str, Tensor]:
        _, _, returns = played(greedy=False, generator=torch.Generator().manual_seed(9))
        return {"score": returns[:count].mean() / 0.95 ** (2 * SIZE - 3)}

    batches = (tuple(played(greedy=False)) for _ in range(200))
    return Situation(model, batches, 200, [loss], evaluate)


class Players(nn.Module):
    """A generator and a discriminator."""

    def __init__(self, noise: int, width: int, dimension: int) -> None:
        super().__init__()
        self.discriminator = perceptron(dimension, width, width, 1, activation=nn.SiLU)
        self.generator = perceptron(noise, width, width, dimension, activation=nn.SiLU)


def _adversarial(
    noise: int, width: int, steps: int, samples: torch.distributions.Distribution
) -> Situation:
    dimension = samples.sample((1,)).shape[1]
    model = Players(noise, width, dimension)

    def judged(model: nn.Module, x: Tensor, label: float) -> Tensor:
        assert isinstance(model, Players)
        logits = model.discriminator(x)
        return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

    def discriminating(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Players)
        real, noises = batch
        return judged(model, real, 1.0) + judged(model, model.generator(noises).detach(), 0.0)

    def generating(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Players)
        return judged(model, model.generator(batch[1]), 1.0)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        assert isinstance(model, Players)
        generator = torch.Generator().manual_seed(10)
        with torch.random.fork_rng():
            torch.manual_seed(11)
            real = samples.sample((2000,))
        made = model.generator(torch.randn(2000, noise, generator=generator))
        directions = torch.randn(dimension, 50, generator=generator)
        directions = directions / directions.norm(dim=0)
        one, other = ((x @ directions).sort(dim=0).values for x in (real, made))
        return {"loss": (one - other).abs().mean()}  # the sliced Wasserstein distance

    batches = ((samples.sample((128,)), torch.randn(128, noise)) for _ in range(steps))
    players = [model.discriminator, model.generator]
    losses = [discriminating, generating]
    return Situation(model, batches, steps, losses, evaluate, players=players)


def ring() -> Situation:
    """Two networks against each other: eight clusters on a ring."""
    angles = torch.arange(8) * torch.pi / 4
    centres = 2.0 * torch.stack([angles.cos(), angles.sin()], dim=1)
    parts = torch.distributions.Independent(torch.distributions.Normal(centres, 0.1), 1)
    which = torch.distributions.Categorical(torch.ones(8))
    return _adversarial(4, 48, 800, torch.distributions.MixtureSameFamily(which, parts))


def correlated() -> Situation:
    """Two networks against each other: a normal distribution of eight dimensions."""
    factor = torch.randn(8, 8, generator=torch.Generator().manual_seed(12)).tril()
    factor.diagonal().abs_()
    samples = torch.distributions.MultivariateNormal(torch.ones(8), scale_tril=factor)
    return _adversarial(8, 48, 500, samples)

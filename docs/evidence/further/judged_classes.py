"""Classification to judge rules on: clipping, random labels, dropout, a convex problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from docs.evidence.further.situations import Situation
from docs.evidence.further.vision import accuracy
from docs.evidence.images import cross_entropy
from docs.evidence.problems import Batch, epochs


def waves(count: int, generator: torch.Generator | None = None) -> Batch:
    """Return Breiman's waveforms, mixtures of two of three triangles with noise, and their class.

    Args:
        count: The number of waves.
        generator: Where they come from; None: torch's default.

    Returns:
        Waves, shape [count, 21], and labels from 0 to 2.
    """
    places = torch.arange(21.0)
    triangles = torch.stack([(6 - (places - c).abs()).clamp(min=0) for c in (6, 14, 10)])
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    labels = torch.randint(3, (count,), generator=generator)
    shares = torch.rand(count, 1, generator=generator)
    one, other = triangles[pairs[labels]].unbind(dim=1)
    noise = torch.randn(count, 21, generator=generator)
    return shares * one + (1 - shares) * other + noise, labels


def clipped_waves() -> Situation:
    """A convolutional network over waves; gradients are clipped to a norm of 0.02."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 21))]
    for inputs, outputs in [(1, 8), (8, 12)]:
        layers += [nn.Conv1d(inputs, outputs, 5, padding=2), nn.LeakyReLU(0.1)]
    model = nn.Sequential(*layers, nn.AvgPool1d(3), nn.Flatten(), nn.Linear(84, 3))
    test, labels = waves(5000, torch.Generator().manual_seed(104))
    batches = (waves(24) for _ in range(400))
    return Situation(
        model, batches, 400, [cross_entropy], lambda m: accuracy(m, test, labels), clip=0.02
    )


class Residual(nn.Module):
    """A perceptron with one hidden layer, after normalisation, around which the input is passed."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = x + self.inner(x)
        return outputs


def random_labels() -> Situation:
    """Six classes of three clusters each; half of the labels are drawn at random."""
    generator = torch.Generator().manual_seed(105)
    centres = 1.1 * torch.randn(18, 16, generator=generator)

    def drawn(count: int) -> Batch:
        cluster = torch.randint(18, (count,), generator=generator)
        noise = torch.randn(count, 16, generator=generator)
        return centres[cluster] + noise, cluster % 6

    (train, labels), (test, test_labels) = drawn(6000), drawn(4000)
    wrong = torch.rand(6000, generator=generator) < 0.5
    labels = torch.where(wrong, torch.randint(6, (6000,), generator=generator), labels)
    blocks = [Residual(32, 64) for _ in range(3)]
    model = nn.Sequential(nn.Linear(16, 32), *blocks, nn.LayerNorm(32), nn.Linear(32, 6))
    batches = epochs((train, labels), 100, 300)
    return Situation(model, batches, 300, [cross_entropy], lambda m: accuracy(m, test, test_labels))


def documents_dropout() -> Situation:
    """Documents as counts of words, from twelve mixed topics; dropout of 0.5 and 0.6."""
    generator = torch.Generator().manual_seed(106)
    words, topics = 200, 12
    topic_words = (1.0 * torch.randn(topics, words, generator=generator)).softmax(dim=1)

    def drawn(count: int) -> Batch:
        labels = torch.randint(topics, (count,), generator=generator)
        others = torch.rand(count, topics, generator=generator)
        others = 0.7 * others / others.sum(dim=1, keepdim=True)
        mixture = others + 0.3 * nn.functional.one_hot(labels, topics)
        chosen = torch.multinomial(mixture @ topic_words, 60, replacement=True, generator=generator)
        counts = torch.zeros(count, words).scatter_add_(1, chosen, torch.ones(count, 60))
        return counts.log1p(), labels

    (train, labels), (test, test_labels) = drawn(2000), drawn(4000)
    model = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(words, 64), nn.ELU(), nn.Dropout(0.6), nn.Linear(64, topics)
    )
    batches = epochs((train, labels), 50, 500)
    return Situation(model, batches, 500, [cross_entropy], lambda m: accuracy(m, test, test_labels))


def separable() -> Situation:
    """Multinomial logistic regression of classes that a linear map separates; wide scales."""
    generator = torch.Generator().manual_seed(107)
    truth = torch.randn(30, 8, generator=generator)
    scales = torch.logspace(1.0, -0.5, 30)

    def drawn(count: int) -> Batch:
        x = torch.randn(count, 30, generator=generator)
        return x * scales, (x @ truth).argmax(dim=1)

    train, (test, test_labels) = drawn(4000), drawn(4000)

    def batches() -> Iterator[Batch]:
        yield from epochs(train, 48, 500)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return accuracy(model, test, test_labels)

    return Situation(nn.Linear(30, 8), batches(), 500, [cross_entropy], evaluate)

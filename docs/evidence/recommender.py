"""Clicks: a recommender in the manner of DLRM, on a generated log whose best loss is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence.problems import Batch, Problem, epochs

CATEGORIES = (100, 60, 40, 20, 10, 5)  # the number of values that each feature takes
NUMBERS = 4  # features that are numbers
CLICKS, TEST_CLICKS = 30_000, 5_000
BATCH_SIZE, STEPS = 128, 400


@dataclass(frozen=True)
class ClickLog:
    """The impressions, the probability of a click, and whether there was one."""

    numbers: Tensor
    categories: Tensor
    probabilities: Tensor
    clicks: Tensor

    def __getitem__(self, rows: slice) -> ClickLog:
        return ClickLog(
            self.numbers[rows], self.categories[rows], self.probabilities[rows], self.clicks[rows]
        )


@cache
def click_log() -> ClickLog:
    """Return a log that a factorisation machine has generated.

    The log-odds of a click are a constant, a linear function of the numbers, a term for each
    category, and the inner products of all pairs of the categories' vectors.
    """
    generator = torch.Generator().manual_seed(0)
    count = CLICKS + TEST_CLICKS

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    numbers = normal(count, NUMBERS)
    # Small numbers are frequent: the square of a uniform variable.
    uniform = torch.rand(count, len(CATEGORIES), generator=generator)
    categories = (uniform.square() * torch.tensor(CATEGORIES)).long()
    log_odds = numbers @ normal(NUMBERS) * 0.5 - 1.0
    vectors = torch.stack(
        [normal(size, 4)[categories[:, i]] for i, size in enumerate(CATEGORIES)], dim=1
    )
    for i, size in enumerate(CATEGORIES):
        log_odds += 0.6 * normal(size)[categories[:, i]]
    squares = vectors.sum(dim=1).square() - vectors.square().sum(dim=1)
    probabilities = torch.sigmoid(log_odds + 0.08 * squares.sum(dim=1))
    clicks = torch.bernoulli(probabilities, generator=generator)
    return ClickLog(numbers, categories, probabilities, clicks)


def best_loss() -> float:
    """Return the log-loss that the true probabilities have on the test clicks, in expectation."""
    probabilities = click_log()[CLICKS:].probabilities
    return functional.binary_cross_entropy(probabilities, probabilities).item()


class Recommender(nn.Module):
    """Embeddings of categories, a perceptron for numbers, their inner products, a perceptron."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(size, width) for size in CATEGORIES])
        for table in self.embeddings:
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=0.1)
        self.bottom = nn.Sequential(nn.Linear(NUMBERS, 16), nn.ReLU(), nn.Linear(16, width))
        count = len(CATEGORIES) + 1
        pairs = torch.triu_indices(count, count, offset=1)
        self.pairs: Tensor
        self.register_buffer("pairs", pairs)
        inputs = width + pairs.shape[1]
        self.top = nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        dense = self.bottom(numbers)
        embedded = [table(categories[:, i]) for i, table in enumerate(self.embeddings)]
        vectors = torch.stack([dense, *embedded], dim=1)
        products = vectors @ vectors.transpose(1, 2)
        features = torch.cat([dense, products[:, self.pairs[0], self.pairs[1]]], dim=1)
        log_odds: Tensor = self.top(features).squeeze(1)
        return log_odds


def log_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean log-loss of numbers, categories, and clicks or their probabilities."""
    numbers, categories, clicks = batch
    return functional.binary_cross_entropy_with_logits(model(numbers, categories), clicks)


def recommender() -> Problem:
    """Return the problem; its loss is the expectation over clicks, which removes their noise."""
    log = click_log()
    train, test = log[:CLICKS], log[CLICKS:]

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return {"loss": log_loss(model, (test.numbers, test.categories, test.probabilities))}

    batches = epochs((train.numbers, train.categories, train.clicks), BATCH_SIZE, STEPS)
    return Problem(Recommender(), batches, STEPS, log_loss, evaluate)

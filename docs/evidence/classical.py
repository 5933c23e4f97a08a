"""Two problems without a network: matrix completion, and logistic regression."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence.images import cross_entropy
from docs.evidence.problems import Batch, Problem, epochs

ROWS, COLUMNS, RANK = 80, 60, 4
MATRIX_BATCH, MATRIX_STEPS = 128, 600


@cache
def entries() -> tuple[Batch, Batch]:
    """Return the places and values of half of a matrix, to train on, and of the other half.

    The matrix has rank 4 and entries of variance 1; noise of standard deviation 0.1 is added.
    """
    # No run's own seed: its first numbers are the initial factors, half of the solution's.
    generator = torch.Generator().manual_seed(12345)
    left = torch.randn(ROWS, RANK, generator=generator)
    right = torch.randn(COLUMNS, RANK, generator=generator)
    matrix = left @ right.T / RANK**0.5
    matrix = matrix + 0.1 * torch.randn(ROWS, COLUMNS, generator=generator)
    places = torch.randperm(ROWS * COLUMNS, generator=generator)
    found = [(p // COLUMNS, p % COLUMNS, matrix.flatten()[p]) for p in places.chunk(2)]
    return found[0], found[1]


class Factorisation(nn.Module):
    """A product of two thin matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(0.5 * torch.randn(ROWS, RANK))
        self.right = nn.Parameter(0.5 * torch.randn(COLUMNS, RANK))

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (self.left[rows] * self.right[columns]).sum(dim=1)


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean squared error of rows, columns and values."""
    *places, values = batch
    loss: Tensor = (model(*places) - values).square().mean()
    return loss


def matrix_completion() -> Problem:
    """Return the problem; its score is the part of the standard deviation that is explained."""
    train, test = entries()

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        loss = squared_error(model, test)
        return {"loss": loss, "score": 1.0 - loss.sqrt() / test[-1].std()}

    batches = epochs(train, MATRIX_BATCH, MATRIX_STEPS)
    return Problem(Factorisation(), batches, MATRIX_STEPS, squared_error, evaluate)


@cache
def tumours() -> tuple[Batch, Batch]:
    """Return features and labels to train on, and to test with."""
    features, labels = load_breast_cancer(return_X_y=True)
    split = train_test_split(features, labels, test_size=0.3, random_state=0, stratify=labels)
    scaler = StandardScaler().fit(split[0])
    train, test = (torch.tensor(scaler.transform(x), dtype=torch.float32) for x in split[:2])
    return (train, torch.tensor(split[2])), (test, torch.tensor(split[3]))


def logistic_regression() -> Problem:
    train, (features, labels) = tumours()

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        logits = model(features)
        hits = (logits.argmax(dim=1) == labels).float()
        return {"loss": functional.cross_entropy(logits, labels), "score": hits.mean()}

    steps = 300
    return Problem(nn.Linear(30, 2), epochs(train, 32, steps), steps, cross_entropy, evaluate)

"""New classification to judge rules on: a graph with few labels, and rare classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence.further.regression import perceptron
from docs.evidence.further.situations import Situation
from docs.evidence.further.vision import accuracy
from docs.evidence.problems import Batch

COMMUNITIES, NODES = 6, 420


class Graph(nn.Module):
    """Two convolutions on a graph, with dropout between them."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, COMMUNITIES)
        self.dropout = nn.Dropout(0.5)

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        degrees = edges.sum(dim=1, keepdim=True)
        hidden = torch.relu(edges @ self.first(features) / degrees)
        logits: Tensor = edges @ self.second(self.dropout(hidden)) / degrees
        return logits


def communities() -> Situation:
    """A graph of six communities; 60 of 420 nodes have a label, and half of the edges are hidden.

    Other edges are hidden in each step.
    """
    generator = torch.Generator().manual_seed(231)
    labels = torch.arange(NODES) % COMMUNITIES
    likely = torch.where(labels[:, None] == labels, 0.08, 0.016)
    edges = torch.rand(NODES, NODES, generator=generator) < likely
    edges = edges.triu(1) | edges.triu(1).T
    centres = 0.35 * torch.randn(COMMUNITIES, 32, generator=generator)
    features = centres[labels] + torch.randn(NODES, 32, generator=generator)
    known, unknown = torch.randperm(NODES, generator=generator).split([60, 360])

    def connected(edges: Tensor) -> Tensor:
        return edges.float() + torch.eye(NODES)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(features, batch[0])[known], labels[known])

    def batches() -> Iterator[Batch]:
        for _ in range(300):
            kept = (torch.rand(NODES, NODES) < 0.5).triu(1)
            yield (connected(edges & (kept | kept.T)),)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        hits = model(features, connected(edges)).argmax(dim=1) == labels
        return {"score": hits[unknown].float().mean()}

    return Situation(Graph(32, 32), batches(), 300, [loss], evaluate)


def focal() -> Situation:
    """Six classes, each half as frequent as the one before, by the focal loss; judged evenly."""
    generator = torch.Generator().manual_seed(232)
    centres = 1.3 * torch.randn(12, 10, generator=generator)
    frequency = 0.5 ** torch.arange(6.0)

    def drawn(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        count = len(labels)
        cluster = labels + 6 * torch.randint(2, (count,), generator=generator)
        return centres[cluster] + torch.randn(count, 10, generator=generator)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        missing = functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        total: Tensor = ((1 - torch.exp(-missing)) ** 2 * missing).mean()
        return total

    def batches() -> Iterator[Batch]:
        for _ in range(500):
            labels = torch.multinomial(frequency, 32, replacement=True)
            yield drawn(labels), labels

    test_labels = torch.arange(6000) % 6
    test = drawn(test_labels, generator)
    return Situation(
        perceptron(10, 64, 64, 6),
        batches(),
        500,
        [loss],
        lambda model: accuracy(model, test, test_labels),
    )

"""Sequences to test rules on: a network with a memory, and a transformer that sorts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from docs.evidence.further.situations import Situation
from docs.evidence.problems import Batch
from docs.evidence.sequences import token_loss

KINDS = 10  # of symbols
DELAY = 5  # steps
NUMBERS, LENGTH = 16, 10  # to be sorted


class Remembering(nn.Module):
    """A plain recurrent network over symbols, with a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(KINDS, width)
        self.memory = nn.RNN(width, width, batch_first=True)
        self.head = nn.Linear(width, KINDS)

    def forward(self, symbols: Tensor) -> Tensor:
        logits: Tensor = self.head(self.memory(self.embedding(symbols))[0])[:, DELAY:]
        return logits


def delayed(count: int, generator: torch.Generator | None = None) -> Batch:
    """Return symbols, and those of five steps before.

    Args:
        count: The number of sequences.
        generator: Where they come from; None: torch's default.
    """
    symbols = torch.randint(KINDS, (count, 16), generator=generator)
    return symbols, symbols[:, :-DELAY]


def _hits(model: nn.Module, test: Batch) -> Mapping[str, Tensor]:
    return {"score": (model(test[0]).argmax(dim=2) == test[1]).float().mean()}


def memory() -> Situation:
    """A plain recurrent network that must output the symbol that it read five steps before."""
    test = delayed(500, torch.Generator().manual_seed(108))
    batches = (delayed(32) for _ in range(400))
    return Situation(Remembering(64), batches, 400, [token_loss], lambda model: _hits(model, test))


class Sorter(nn.Module):
    """A transformer without a mask, over numbers in any order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUMBERS, width)
        self.positions = nn.Parameter(0.3 * torch.randn(LENGTH, width))
        layer = nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, NUMBERS)

    def forward(self, numbers: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.embedding(numbers) + self.positions))
        return logits


def ordered(count: int, generator: torch.Generator | None = None) -> Batch:
    """Return numbers, and the same in ascending order.

    Args:
        count: The number of sequences.
        generator: Where they come from; None: torch's default.
    """
    numbers = torch.randint(NUMBERS, (count, LENGTH), generator=generator)
    return numbers, numbers.sort(dim=1).values


def sorting() -> Situation:
    """A small transformer that sorts ten numbers."""
    test = ordered(1000, torch.Generator().manual_seed(109))
    batches = (ordered(64) for _ in range(300))
    return Situation(Sorter(32), batches, 300, [token_loss], lambda model: _hits(model, test))

"""New sequences to judge rules on: an invented language, and sums from afar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence.further.judged_regression import explained
from docs.evidence.further.regression import squared_error
from docs.evidence.further.situations import Situation
from docs.evidence.problems import Batch
from docs.evidence.sequences import CONTEXT, LanguageModel

LETTERS = 12  # of the invented language; one more character is the space
WORDS = 80


@cache
def invented_text() -> Tensor:
    """Return 60,000 characters of a language in which each word has six successors."""
    generator = torch.Generator().manual_seed(211)
    lengths = torch.randint(2, 7, (WORDS,), generator=generator).tolist()
    space = torch.tensor([LETTERS])
    words = [
        torch.cat([torch.randint(LETTERS, (length,), generator=generator), space])
        for length in lengths
    ]
    successors = torch.randint(WORDS, (WORDS, 6), generator=generator)
    choices = torch.multinomial(0.6 ** torch.arange(6.0), 15000, True, generator=generator).tolist()
    parts, word = [], 0
    for choice in choices:
        word = int(successors[word, choice])
        parts.append(words[word])
    return torch.cat(parts)[:60000]


def smoothed_text() -> Situation:
    """A small GPT of an invented language; a tenth of each target is spread over all characters."""
    train, test = invented_text().split([50000, 10000])

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch[0]).flatten(end_dim=1)
        return functional.cross_entropy(logits, batch[1].flatten(), label_smoothing=0.1)

    def batches() -> Iterator[Batch]:
        window = torch.arange(CONTEXT + 1)
        for _ in range(400):
            chosen = train[torch.randint(len(train) - CONTEXT, (12, 1)) + window]
            yield chosen[:, :-1], chosen[:, 1:]

    windows = test[: 300 * (CONTEXT + 1)].view(300, CONTEXT + 1)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        hits = model(windows[:, :-1]).argmax(dim=2) == windows[:, 1:]
        return {"score": hits.float().mean()}

    return Situation(LanguageModel(LETTERS + 1, depth=1), batches(), 400, [loss], evaluate)


class LastState(nn.Module):
    """A GRU with a head on its last state."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.memory = nn.GRU(inputs, width, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, sequences: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.memory(sequences)[1][0])
        return outputs


def marked(count: int, generator: torch.Generator | None = None) -> Batch:
    """Return 16 numbers with marks at two of them, one in each half, and the sum of these.

    Args:
        count: The number of sequences.
        generator: Where they come from; None: torch's default.
    """
    numbers = torch.rand(count, 16, generator=generator)
    places = torch.randint(8, (count, 2), generator=generator) + torch.tensor([0, 8])
    marks = torch.zeros(count, 16).scatter_(1, places, 1.0)
    return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(dim=1, keepdim=True)


def adding() -> Situation:
    """A GRU that adds two marked numbers of sixteen; gradients are clipped to a norm of 0.05."""
    test, sums = marked(2000, torch.Generator().manual_seed(212))
    batches = (marked(48) for _ in range(500))
    return Situation(
        LastState(2, 24, 1),
        batches,
        500,
        [squared_error],
        lambda model: explained(model(test), sums),
        clip=0.05,
    )

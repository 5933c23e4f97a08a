"""Text, character by character, by networks with a memory and by a small GPT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from docs.evidence.further.situations import Situation
from docs.evidence.problems import Batch
from docs.evidence.sequences import CONTEXT, LanguageModel, text, token_loss


class Recurrent(nn.Module):
    """An embedding, a recurrent layer and a head."""

    def __init__(self, layer: type[nn.GRU | nn.LSTM], characters: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.memory = layer(width, width, batch_first=True)
        self.head = nn.Linear(width, characters)

    def forward(self, characters: Tensor) -> Tensor:
        logits: Tensor = self.head(self.memory(self.embedding(characters))[0])
        return logits


def _text(model: nn.Module, steps: int, clip: float = float("inf")) -> Situation:
    train_text, test_text, _ = text()

    def batches() -> Iterator[Batch]:
        window = torch.arange(CONTEXT + 1)
        for _ in range(steps):
            starts = torch.randint(len(train_text) - CONTEXT, (16, 1))
            chosen = train_text[starts + window]
            yield chosen[:, :-1], chosen[:, 1:]

    windows = test_text[: 200 * (CONTEXT + 1)].view(200, CONTEXT + 1)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return {"loss": token_loss(model, (windows[:, :-1], windows[:, 1:]))}

    return Situation(model, batches(), steps, [token_loss], evaluate, clip=clip)


def gru() -> Situation:
    return _text(Recurrent(nn.GRU, text()[2], 48), 400)


def clipped_lstm() -> Situation:
    """An LSTM, with gradients clipped to a norm of 0.25."""
    return _text(Recurrent(nn.LSTM, text()[2], 64), 400, clip=0.25)


def tied_gpt() -> Situation:
    """A GPT whose head is its embedding."""
    model = LanguageModel(text()[2], depth=1)
    nn.init.normal_(model.embedding.weight, std=0.1)
    linear = model.head[1]
    assert isinstance(linear, nn.Linear)
    linear.weight = model.embedding.weight
    return _text(model, 400)

"""Sequences: English text, character by character, and a generated transduction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pydoc_data import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence.problems import Batch, Problem

CONTEXT = 32  # characters
TEXT_STEPS = 200
LANGUAGE_BATCH = 16

SYMBOLS = 10
LENGTH = 6
BEGIN = SYMBOLS  # the first symbol of the output
SHIFT = 3
SEQUENCE_STEPS = 200
SEQUENCE_BATCH = 64


@cache
def text() -> tuple[Tensor, Tensor, int]:
    """Return characters to train on and to test with, as numbers, and how many there are.

    The text is Python's own documentation, which every Python brings. Letters are lower case, and
    what is rare is one character.
    """
    whole = "\n".join(topics.topics[name] for name in sorted(topics.topics)).lower()
    alphabet = "\n abcdefghijklmnopqrstuvwxyz0123456789.,:;()[]{}'\"`*_-+=/<>|#@!?"
    number = {character: i for i, character in enumerate(alphabet)}
    numbers = torch.tensor([number.get(character, len(alphabet)) for character in whole])
    held_out = len(numbers) // 10
    return numbers[:-held_out], numbers[-held_out:], len(alphabet) + 1


class LanguageModel(nn.Module):
    """A causal transformer over characters."""

    def __init__(self, characters: int, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 3 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, characters))
        self.mask: Tensor
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, characters: Tensor) -> Tensor:
        hidden = self.embedding(characters) + self.positions
        logits: Tensor = self.head(self.encoder(hidden, mask=self.mask, is_causal=True))
        return logits


def language_model() -> Problem:
    train_text, test_text, characters = text()

    def batches() -> Iterator[Batch]:
        window = torch.arange(CONTEXT + 1)
        for _ in range(TEXT_STEPS):
            starts = torch.randint(len(train_text) - CONTEXT, (LANGUAGE_BATCH, 1))
            chosen = train_text[starts + window]
            yield chosen[:, :-1], chosen[:, 1:]

    windows = test_text[: 200 * (CONTEXT + 1)].view(200, CONTEXT + 1)

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        return {"loss": token_loss(model, (windows[:, :-1], windows[:, 1:]))}

    return Problem(LanguageModel(characters), batches(), TEXT_STEPS, token_loss, evaluate)


def token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the tokens that the last entry of the batch holds."""
    *inputs, targets = batch
    return functional.cross_entropy(model(*inputs).flatten(end_dim=1), targets.flatten())


class Transducer(nn.Module):
    """An encoder and a decoder over symbols."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS + 1, width)
        self.positions = nn.Parameter(torch.randn(LENGTH, width))
        settings: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        encoder = nn.TransformerEncoderLayer(width, 4, 2 * width, **settings)
        decoder = nn.TransformerDecoderLayer(width, 4, 2 * width, **settings)
        norms = nn.LayerNorm(width), nn.LayerNorm(width)
        self.encoder = nn.TransformerEncoder(encoder, 1, norms[0], enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, 1, norms[1])
        self.head = nn.Linear(width, SYMBOLS)
        self.mask: Tensor
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, sources: Tensor, so_far: Tensor) -> Tensor:
        source, target = (self.embedding(x) + self.positions for x in (sources, so_far))
        hidden = self.decoder(target, self.encoder(source), tgt_mask=self.mask, tgt_is_causal=True)
        logits: Tensor = self.head(hidden)
        return logits


def transduced(count: int, generator: torch.Generator | None = None) -> Batch:
    """Return sources, targets shifted by one, and targets: the source backwards, each symbol + 3.

    Args:
        count: The number of sequences.
        generator: Where they come from; None: torch's default.
    """
    sources = torch.randint(SYMBOLS, (count, LENGTH), generator=generator)
    targets = (sources.flip(1) + SHIFT) % SYMBOLS
    begin = torch.full((count, 1), BEGIN)
    return sources, torch.cat([begin, targets[:, :-1]], dim=1), targets


def sequence_to_sequence() -> Problem:
    test = transduced(500, torch.Generator().manual_seed(0))
    batches = (transduced(SEQUENCE_BATCH) for _ in range(SEQUENCE_STEPS))

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        hits = model(*test[:-1]).argmax(dim=2) == test[-1]
        return {"loss": token_loss(model, test), "score": hits.float().mean()}

    return Problem(Transducer(), batches, SEQUENCE_STEPS, token_loss, evaluate)

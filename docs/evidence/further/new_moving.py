"""New losses that move, to judge rules on: when to stop, and classes that change their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence.further.regression import perceptron
from docs.evidence.further.situations import Situation
from docs.evidence.further.vision import accuracy
from docs.evidence.images import cross_entropy
from docs.evidence.problems import Batch

OFFERS = 10


def stopping() -> Situation:
    """Policy gradients: one of ten offers is to be taken, each when it comes; the loss is around 0.

    Rewards are the offer taken; their mean in a batch is the baseline.
    """
    model = perceptron(2, 32, 32, 1, activation=nn.Tanh)

    def logits(model: nn.Module, offers: Tensor) -> Tensor:
        left = torch.linspace(1, 0, OFFERS).expand_as(offers)
        found: Tensor = model(torch.stack([4 * offers - 2, 4 * left - 2], dim=-1))[..., 0]
        return found

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        offers, taken, decided, advantages = batch
        signs = 2.0 * taken.float() - 1
        chosen = functional.logsigmoid(signs * logits(model, offers))
        total: Tensor = -(advantages[:, None] * chosen)[decided].mean()
        return total

    def first(taken: Tensor) -> Tensor:
        """Return at which offer each stops; the last one is taken in any case."""
        return torch.cat([taken[:, :-1], torch.ones(len(taken), 1)], dim=1).argmax(dim=1)

    def batches() -> Iterator[Batch]:
        for _ in range(400):
            offers = torch.rand(32, OFFERS)
            with torch.no_grad():
                taken = torch.rand(32, OFFERS) < logits(model, offers).sigmoid()
            stops = first(taken.float())
            rewards = offers.gather(1, stops[:, None])[:, 0]
            places = torch.arange(OFFERS)
            decided = (places <= stops[:, None]) & (places < OFFERS - 1)
            advantages = (rewards - rewards.mean()) / rewards.std().clamp(min=1e-3)
            yield offers, taken, decided, advantages

    offers = torch.rand(5000, OFFERS, generator=torch.Generator().manual_seed(241))
    threshold = 0.5  # the expected value of later offers
    for _ in range(OFFERS - 1):
        threshold = (1 + threshold**2) / 2

    def evaluate(model: nn.Module) -> Mapping[str, Tensor]:
        stops = first((logits(model, offers) > 0).float())
        gained = offers.gather(1, stops[:, None]).mean() - 0.5
        return {"score": gained / (threshold - 0.5)}

    return Situation(model, batches(), 400, [loss], evaluate)


def renamed() -> Situation:
    """Six classes of two clusters each, which change their names after each 100 steps.

    Judged at the end of the fifth hundred, by the names of then.
    """
    generator = torch.Generator().manual_seed(242)
    centres = 1.2 * torch.randn(12, 10, generator=generator)

    def drawn(count: int, names: int, generator: torch.Generator | None = None) -> Batch:
        clusters = torch.randint(12, (count,), generator=generator)
        noise = torch.randn(count, 10, generator=generator)
        return centres[clusters] + noise, (clusters + names) % 6

    test, labels = drawn(4000, 4, generator)
    batches = (drawn(48, step // 100) for step in range(500))
    return Situation(
        perceptron(10, 64, 64, 6),
        batches,
        500,
        [cross_entropy],
        lambda model: accuracy(model, test, labels),
    )

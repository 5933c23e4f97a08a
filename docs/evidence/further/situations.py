"""The parts of a situation, and its training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from docs.evidence.problems import Batch
from momo_wrap import MoMoWrapper
from momo_wrap.sweep import OptimizerFactory

Loss = Callable[[nn.Module, Batch], Tensor]


def nothing(_model: nn.Module) -> None:
    """Do nothing after a step."""


@dataclass(frozen=True)
class Situation:
    """A model to train in a way that is hard on a rule for step sizes.

    Attributes:
        model: The model, freshly initialised.
        batches: The training batches, one for each step; they may be made with the model as it is.
        steps: Their number.
        losses: Maps the model and a batch to the 0-dim loss: one for each of `players`.
        evaluate: Maps the trained model to `"loss"` or `"score"` on the held-out data.
        players: The parts of the model that have an optimizer each, and that move in turn; empty:
            the model is the only one.
        clip: The norm that gradients are clipped to.
        after_step: Is called with the model after each step.
    """

    model: nn.Module
    batches: Iterator[Batch]
    steps: int
    losses: Sequence[Loss]
    evaluate: Callable[[nn.Module], Mapping[str, Tensor | float]]
    players: Sequence[nn.Module] = ()
    clip: float = math.inf
    after_step: Callable[[nn.Module], None] = field(default=nothing)


def train(
    lr: float,
    make_optimizer: OptimizerFactory,
    seed: int,
    *,
    make_situation: Callable[[], Situation],
    observe: Callable[[Any], object] | None = None,
) -> dict[str, Any]:
    """Train once at a constant learning rate.

    Args:
        lr: The learning rate.
        make_optimizer: Makes an optimizer from parameters and a learning rate.
        seed: Seeds initial parameters and batches.
        make_situation: Makes the situation, from torch's seeded generator.
        observe: Is called with the first player's optimizer after each step.

    Returns:
        What `Situation.evaluate` returns, and `"steps"`, the number of steps of all optimizers.

    Raises:
        FloatingPointError: A training loss is not finite.
    """
    torch.manual_seed(seed)
    situation = make_situation()
    model = situation.model.train()
    players = situation.players or [model]
    optimizers: list[Any] = [make_optimizer(player.parameters(), lr) for player in players]
    steps = 0
    for batch in situation.batches:
        for player, loss_of, optimizer in zip(players, situation.losses, optimizers, strict=True):
            loss = loss_of(model, batch)
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the training loss is {loss.item()}")
            model.zero_grad()
            loss.backward()
            if situation.clip < math.inf:
                nn.utils.clip_grad_norm_(player.parameters(), situation.clip)
            if isinstance(optimizer, MoMoWrapper):
                optimizer.step(loss=loss)
            else:
                optimizer.step()
            steps += 1
        situation.after_step(model)
        if observe is not None:
            observe(optimizers[0])
    model.eval()
    with torch.no_grad():
        found = situation.evaluate(model)
    return {**found, "steps": steps}

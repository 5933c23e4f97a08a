"""A rule that has steps probed, and its expected statistics by an independent computation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from momo_wrap import ModelStats, MoMo, MoMoWrapper, StepDecision

EVERY = 3


class Watching(MoMo):
    """MoMo that has every third step probed, and only records the measurements."""

    def __init__(self, lower_bound: float = 0.1) -> None:
        super().__init__(lower_bound)
        self.seen: list[float] = []

    def wants_probe(self, stats: ModelStats) -> bool:
        """Those of number 3, 6, ..."""
        return stats.step % EVERY == 0

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Note the measurements."""
        self.seen.append(float(stats.probed_decrease))
        return super().__call__(stats, memory)


Losses = Callable[[nn.Module, Sequence[Any]], list[Tensor]]


def by_hand(
    model: nn.Module, optimizer: MoMoWrapper, steps: Sequence[Sequence[Any]], losses_of: Losses
) -> list[float]:
    """Train without a trainer, and return the expected probe of each step, from 0 on.

    The number of each step is its seed.

    Args:
        model: The model.
        optimizer: Of its parameters, with a rule that asks for no probe.
        steps: The batches of each step.
        losses_of: Their losses, of which the sum is that of the step.

    Returns:
        The difference of the losses of the same batches, evaluated in a copy of the model that
        had the parameters from before the last step, and in one that has those of now, both with
        the same random numbers; NaN where the step before was not to be probed.
    """
    found, before = [], copy.deepcopy(model)
    for number, batches in enumerate(steps):
        optimizer.zero_grad()
        torch.manual_seed(number)
        losses = losses_of(model, batches)
        for loss in losses:
            loss.backward()
        expected = math.nan
        if number and number % EVERY == 0:
            state = torch.get_rng_state()
            values = []
            for each in (before, copy.deepcopy(model)):
                torch.set_rng_state(state)
                with torch.no_grad():
                    values.append(float(torch.stack(losses_of(each, batches)).sum()))
            torch.set_rng_state(state)
            expected = values[0] - values[1]
        found.append(expected)
        before = copy.deepcopy(model)
        optimizer.step(loss=torch.stack(losses).detach().sum())
    return found


def assert_same(seen: Sequence[float], expected: Sequence[float], tolerance: float = 1e-9) -> None:
    """The rule's statistics are the expected ones, and its moves differ from no move."""
    assert seen == pytest.approx(expected, rel=tolerance, abs=1e-3 * tolerance, nan_ok=True)
    assert len([value for value in expected if abs(value) > 1e-4]) >= 2

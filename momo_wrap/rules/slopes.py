"""What the slope at the end of a step tells: whether steps may be longer, or have to be shorter."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from momo_wrap.rules.stats import ModelStats

# Each of so many steps at first is measured, and none of them is annealed.
FIRST = 100
# Below which average of z the step size shrinks fast.
_RISES = -0.5

# What is remembered between steps, 0 before the first: j, and the averages of z and z².
REMEMBERED = ("slopes", "slope", "slope_square")


def is_due(step: int, every: float) -> bool:
    """Return whether a step is measured."""
    return step <= FIRST or step % every == 0


def judged(
    stats: ModelStats,
    memory: Mapping[str, Tensor],
    required: float,
    rate: float,
    window: float,
    every: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the step size that is trusted after a measurement, (12), and what is remembered.

    Args:
        stats: The model, with a slope.
        memory: What was remembered, by the names of `REMEMBERED`, the step size that is `trusted`,
            `last_step_size` and `last_lr`.
        required: c.
        rate: κ.
        window: How many measurements the averages are over.
        every: Each how many steps are measured.
    """
    measured = stats.step - 1
    taken, trusted = memory["last_step_size"], memory["trusted"]
    slope, predicted = stats.probed_slope, stats.probed_prediction
    counts = (torch.minimum(predicted, taken) > 0) & (slope.abs() < math.inf)

    z = torch.where(counts, (slope / predicted).clamp(-1.0, 1.0), 0.0)
    number = (memory["slopes"] + counts).clamp(max=2.0 * window - 1.0)
    weight = counts / number.clamp(1.0, window)
    mean = torch.lerp(memory["slope"], z, weight)
    square = torch.lerp(memory["slope_square"], z * z, weight)
    # The standard error, NaN after one measurement: nothing is known then.
    error = ((square - mean * mean).clamp(min=0.0) / (number - 1.0)).sqrt()
    at_least = mean - error

    since = 1.0 if measured <= FIRST else float(every)
    change = rate * math.sqrt(since)
    grows = (at_least > required) | ((number < 3.0) & (z > 0))
    # Where a schedule lowers the learning rate, it anneals.
    anneals = (at_least < 0) & (stats.learning_rate >= memory["last_lr"])
    slow = min(change, since / measured) if measured > FIRST else 0.0

    # From the step that was taken, if it did not hold that back, but not below half of what it was.
    start = torch.maximum(torch.minimum(trusted, taken), trusted / 2.0)
    shorter = torch.where(anneals, trusted * math.exp(-slow), trusted)
    shorter = torch.where(mean + error < _RISES, start * math.exp(-change), shorter)
    longer = torch.maximum(trusted, taken * math.exp(change))
    after = torch.where(counts, torch.where(grows, longer, shorter), trusted)
    return after, dict(zip(REMEMBERED, (number, mean, square), strict=True))

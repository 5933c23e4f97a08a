"""What probes tell of a step size: whether steps may be longer, or have to be shorter."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from momo_wrap.rules.stats import ModelStats

# What must have come true of a prediction for steps to grow.
_REQUIRED = 0.4
# r grows by e^κ at most for each step, and as a random walk would where not each is probed.
_RATE = 0.06
# By how much it grows, for each step, where losses show that it may.
BY_LOSSES = _RATE / 2.0
# The number of probes that averages are over.
_WINDOW = 8
# Of how many roundings of the loss a decrease must be.
_ROUNDINGS = 16.0
_MEANS = ("came_true", "falls_on", "comes_near")
_SQUARES = tuple(f"{name}_square" for name in _MEANS)

# What is remembered between steps, 0 before the first.
REMEMBERED = ("probes", *_MEANS, *_SQUARES)


def is_due(step: int, every: int) -> bool:
    """Return whether a step is to be probed: each of the first 4 `every`, then each `every`-th."""
    return step <= 4 * every or step % every == 0


def judged(
    stats: ModelStats, memory: Mapping[str, Tensor], every: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the step size that is trusted after a probe, equation (16), and what is remembered.

    Args:
        stats: The model, with a probe.
        memory: What was remembered, by the names of `REMEMBERED`, the step size that is `trusted`,
            `last_step_size` and `last_lr`.
        every: Each how many steps are probed.
    """
    probed = stats.step - 1
    taken, trusted = memory["last_step_size"], memory["trusted"]
    decrease, slope, foretold = stats.probed_decrease, stats.probed_slope, stats.probed_prediction
    # A decrease that rounding of the loss hides says nothing.
    resolution = stats.loss.abs() * (_ROUNDINGS * torch.finfo(stats.loss.dtype).eps)
    counts = (foretold > resolution) & (taken > 0) & (decrease + slope).isfinite()

    seen = torch.stack([decrease, slope - decrease * (2.0 / 3.0), slope + decrease]) / foretold
    seen = seen.clamp(-1.0, 1.0)
    number = (memory["probes"] + 1.0).clamp(max=2.0 * _WINDOW - 1.0)
    weight = 1.0 / number.clamp(max=float(_WINDOW))
    means = torch.lerp(torch.stack([memory[name] for name in _MEANS]), seen, weight)
    squares = torch.lerp(torch.stack([memory[name] for name in _SQUARES]), seen * seen, weight)
    # The standard error, NaN after one probe: nothing is known then.
    error = ((squares - means * means).clamp(min=0.0) / (number - 1.0)).sqrt()
    at_least, at_most = means - error, means + error

    first = (number < 3.0) & (seen[0] > 0) & (seen[1] > 0)
    falls = (at_least[0] > 0) & (at_least[1] > 0)
    grows = (at_least[0] > _REQUIRED) | falls | first
    # Where a schedule lowers the learning rate, it anneals.
    anneals = (at_least[2] < 0) & (stats.learning_rate >= memory["last_lr"])
    since = 1 if probed <= 4 * every else every
    change = _RATE * math.sqrt(since)
    slow = min(change, since / probed) if probed > 2 * every else 0.0

    # From the step that was taken, if it did not hold that back, but not below half of what it was.
    start = torch.maximum(torch.minimum(trusted, taken), trusted / 2.0)
    shorter = torch.where(anneals, trusted * math.exp(-slow), trusted)
    shorter = torch.where(at_most[0] < 0, start * math.exp(-change), shorter)
    longer = torch.maximum(trusted, taken * math.exp(change))
    after = torch.where(counts, torch.where(grows, longer, shorter), trusted)
    new = dict(zip((*_MEANS, *_SQUARES), (*means, *squares), strict=True))
    new["probes"] = number
    return after, {name: torch.where(counts, new[name], memory[name]) for name in REMEMBERED}

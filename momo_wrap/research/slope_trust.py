"""A limit on the step size by the slope of the loss at the end of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from momo_wrap.rules import ModelStats, TrustedMoMo
from momo_wrap.rules.arguments import (
    ABOVE_0_TO_1,
    AT_LEAST_0,
    AT_LEAST_1,
    FROM_0_BELOW_1,
    FROM_2,
    Setting,
)

# Each of so many steps at first is measured, and none of them is annealed.
_FIRST = 100
# Below which average of z the step size shrinks fast.
_RISES = -0.5
# Losses let steps grow where Z is not below.
_LEAST_SLOPE = -0.1
# What is remembered between steps, 0 before the first: j, and the averages of z and z².
_REMEMBERED = ("slopes", "slope", "slope_square")
_OF_LOSSES = ("weight", "observed", "predicted", "observed_square")


@dataclass(eq=False, repr=False)
class SlopeTrust(TrustedMoMo):
    """TrustedMoMo whose steps are judged by the next gradient along them, with no probe.

    The step size r that is trusted, and what is made of it, are those of `TrustedMoMo`. But step k,
    from x to x', is judged by the gradient of the next batch ξ at x', which had no part in it:

        σ = ⟨∇f(x'; ξ), x - x'⟩ ,    π what the model predicted for that move,    z = σ/π

    With Z the average of z over the last 10 measurements, s its standard error, t = θ_k α_k the
    step size that was taken, n the steps between two measurements, c = 0.1, and q the larger of 1
    and sqrt(2 log(k/100)), since of many verdicts some are noise,

        grow, if Z - q s > c:                      r <- max( r , t e^{κ √n} )
        else shrink, if Z + s < -1/2:              r <- max( min(r, t) , r/2 ) e^{-κ √n}
        else anneal, if Z - s < 0 and k > 100:     r <- r e^{-min(κ √n, n/k)}
        grow at any step where losses fall:        r <- max( r , t e^{3κ/5} )

    the last beyond 3 standard errors, equations (18) to (20) of docs/algorithm.md. So noise of
    losses between batches, clipped gradients, and losses that move by themselves matter little, and
    where nothing shows that steps still descend, they fall as 1/k. At first r is a hundredth of the
    step size to the bound.

    The rule needs a copy of the parameters, in float32 at least, from a step that is measured to
    the next. A state dict has it too, so that a resumed run goes on bit for bit.

    Source: the gradient at the new parameters along the last step is that of hypergradient descent
    (Baydin, Cornish, Martínez Rubio, Schmidt and Wood, ICLR 2018, arXiv 1703.04782). The units, the
    test, the bound and the annealing are this library's. Measured in docs/evidence.md.

    Args:
        lower_bound: f*, see `StepRule`. With `-math.inf` nothing is ever cut.
        required: The share of the predicted decrease that losses must show for r to grow by them,
            at least 0 and below 1.
        rate: κ, how fast r grows and shrinks, above 0 and at most 1: by a factor of at most e^κ in
            a step.
        window: The number of steps that averages of losses are over, at least 2.
        confidence: How many standard errors beyond that share losses must fall, at least 0.
        start: The fraction of the step size to the bound that r is at first, above 0 and at most 1.
        every: Each how many steps are measured, at least 1; the first 100 all are.
        measurements: The number of measurements that Z is over, at least 2.
        descends: c, the share of the predicted decrease that the slope must still be for r to grow,
            at least 0 and below 1.

    Raises:
        TypeError: A setting is not a number.
        ValueError: A setting is out of range.
    """

    _: KW_ONLY
    rate: Setting = Setting(ABOVE_0_TO_1, 0.05)
    confidence: Setting = Setting(AT_LEAST_0, 3.0)
    start: Setting = Setting(ABOVE_0_TO_1, 0.01)
    every: Setting = Setting(AT_LEAST_1, 3.0)
    measurements: Setting = Setting(FROM_2, 10.0)
    descends: Setting = Setting(FROM_0_BELOW_1, 0.1)

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return zeros: no step size is trusted yet, and nothing was judged."""
        names = ("trusted", *_OF_LOSSES, "last_mean_loss", "prediction", "last_step_size")
        return dict.fromkeys((*names, "last_lr", *_REMEMBERED), 0.0)

    def wants_probe(self, step: int) -> bool:
        """Return False: slopes are enough."""
        return False

    def wants_slope(self, step: int) -> bool:
        """Return whether a step is to be measured; see `every`."""
        return math.isfinite(self.lower_bound) and (step <= _FIRST or step % self.every == 0)

    def _by_probes(self, stats: ModelStats) -> bool:
        return False

    def _trusted(
        self, stats: ModelStats, averages: Mapping[str, Tensor], memory: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the step size that is trusted, and what is remembered of slopes."""
        trusted, known = memory["trusted"], {name: memory[name] for name in _REMEMBERED}
        if stats.was_probed:
            trusted, known = self._judged(stats, memory)
        # A fall over many steps is more than what the ends of steps show, where they oscillate.
        surplus = torch.sub(averages["observed"], averages["predicted"], alpha=self.required)
        error = self._error(averages, memory)
        falls = (surplus > self.confidence * error) & (averages["predicted"] > 0)
        falls &= known["slope"] >= _LEAST_SLOPE
        longer = torch.maximum(trusted, memory["last_step_size"] * math.exp(0.6 * self.rate))
        return torch.where(falls, longer, trusted), known

    def _judged(
        self, stats: ModelStats, memory: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the step size that is trusted after a measurement, (19), and what it leaves."""
        measured = stats.step - 1
        taken, trusted = memory["last_step_size"], memory["trusted"]
        slope, predicted = stats.probed_slope, stats.probed_prediction
        counts = (torch.minimum(predicted, taken) > 0) & (slope.abs() < math.inf)

        z = torch.where(counts, (slope / predicted).clamp(-1.0, 1.0), 0.0)
        number = (memory["slopes"] + counts).clamp(max=2.0 * self.measurements - 1.0)
        weight = counts / number.clamp(1.0, self.measurements)
        mean = torch.lerp(memory["slope"], z, weight)
        square = torch.lerp(memory["slope_square"], z * z, weight)
        # The standard error, NaN after one measurement: nothing is known then.
        error = ((square - mean * mean).clamp(min=0.0) / (number - 1.0)).sqrt()
        at_least = mean - error

        since = 1.0 if measured <= _FIRST else self.every
        change = self.rate * math.sqrt(since)
        # Of many verdicts some are noise.
        doubt = math.sqrt(max(1.0, 2.0 * math.log(measured / _FIRST)))
        grows = (mean - doubt * error > self.descends) | ((number < 3.0) & (z > 0))
        # Where a schedule lowers the learning rate, it anneals.
        anneals = (at_least < 0) & (stats.learning_rate >= memory["last_lr"])
        slow = min(change, since / measured) if measured > _FIRST else 0.0

        # From the step that was taken, if r did not hold that back, but not below half of r.
        start = torch.maximum(torch.minimum(trusted, taken), trusted / 2.0)
        shorter = torch.where(anneals, trusted * math.exp(-slow), trusted)
        shorter = torch.where(mean + error < _RISES, start * math.exp(-change), shorter)
        longer = torch.maximum(trusted, taken * math.exp(change))
        after = torch.where(counts, torch.where(grows, longer, shorter), trusted)
        return after, dict(zip(_REMEMBERED, (number, mean, square), strict=True))

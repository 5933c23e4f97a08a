"""A step rule that limits the step size by how steep the loss still is where steps end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from momo_wrap.rules.arguments import (
    ABOVE_0_TO_1,
    AT_LEAST_0,
    AT_LEAST_1,
    FROM_0_BELOW_1,
    FROM_2,
    Setting,
)
from momo_wrap.rules.base import StepDecision, StepRule, gap_to_bound, truncate
from momo_wrap.rules.by_losses import AVERAGED, averages, followed, standard_error
from momo_wrap.rules.stats import ModelStats

# Each of so many steps at first is measured, and none of them is annealed.
_FIRST = 100
# Below which average of z the step size shrinks fast, and above which it must be for losses alone
# to let it grow.
_RISES, _HOLDS = -0.5, -0.1
# By how much it grows in a step where losses fall.
_BY_LOSSES = math.exp(0.03)
# Where a schedule anneals: how many times as long the first step is, how many times as fast the
# step size changes, and how many standard errors losses must be short for it to shrink.
_LONGER, _FASTER, _SHORT = 5.0, 2.0, 2.0

_ADVICE = {
    "no_progress": (
        "Step after step was predicted to bring the loss at least halfway to the lower bound, and "
        "the loss has not fallen: the bound is nearer to the loss than the noise of batches. Give "
        "a lower bound that is below the loss by more, lower the learning rate, which limits the "
        "steps, or do nothing if the loss is as low as it gets."
    ),
    "rising_loss": (
        "The loss rises, beyond what the noise of batches explains, while its gradients say that "
        "it falls. Pass the loss that the gradients are of, step(loss=loss), with the same sign "
        "and of the same kind at each step. If it rises by itself, as from harder data, do nothing "
        "without a learning rate schedule, which has the rule go by gradients; with one, write "
        "MoMoWrapper(optimizer, MoMo())."
    ),
    "tiny_steps": (
        "The step size that the rule trusts is next to nothing, because the loss rose again where "
        "steps end. Pass the loss that the gradients are of, step(loss=loss); if it is, write "
        "MoMoWrapper(optimizer, MoMo()), or set the rule anew, optimizer.rule = TrustedMoMo(), to "
        "start over."
    ),
    "limited_by_lr": (
        "The learning rate limits the steps, and the loss still falls where they end, at more than "
        "half of the slope that was predicted, so that longer ones would be better. Raise it, to "
        "100 say, and the rule finds the step size, or do nothing if it was lowered on purpose."
    ),
}

# What is averaged of slopes.
_SLOPES = ("slopes", "slope", "slope_square")


@dataclass(eq=False, repr=False)
class TrustedMoMo(StepRule):
    """MoMo with a limit on the step size, which follows the slope of the loss where steps end.

    MoMo's step is as long as the model of the loss lasts. Where the loss can't be brought down to
    the bound, or bends on the way there, that is too far, and only the learning rate α holds it
    back. This rule holds it back itself: α may be set far too high, to 100 say, and be forgotten.

        θ_k = min( θ of (3) , r_k/α_k )

    where r_k is the step size that is trusted. Step k, from x to x', is judged by the gradient of
    the next batch ξ at x', which is there anyway and had no part in it:

        σ = ⟨∇f(x'; ξ), x - x'⟩ ,    π what the model predicted for that move,    z = σ/π

    With Z the average of z over the last 10 measurements, s its standard error, t = θ_k α_k the
    step size that was taken, n the steps between two measurements, c = 0.1, and q the larger of 1
    and sqrt(2 log(k/100)), since of many verdicts some are noise,

        grow, if Z - q s > c:                      r <- max( r , t e^{κ √n} )
        else shrink, if Z + s < -1/2:              r <- max( min(r, t) , r/2 ) e^{-κ √n}
        else anneal, if Z - s < 0 and k > 100:     r <- r e^{-min(κ √n, n/k)}
        grow at any step where losses fall:        r <- max( r , t e^{0.03} )

    the last by more than a fifth of what was predicted, beyond 3 standard errors. So steps grow
    only on evidence, and where nothing shows that they still descend, they fall as 1/k. Noise of
    losses between batches, clipped gradients, and losses that move by themselves matter little.

    Where a schedule sets α (it differs from a scheduler's `initial_lr`, or has changed between two
    steps), it is the schedule that anneals, and steps which are right then are longer than slopes
    let them be. So r then goes by losses alone. With A the observed and P the predicted decrease,
    in the average over 20 steps, and s' the standard error of A, equation (17):

        surplus = A - P/5
        grow, if surplus > 0:           r <- max( r , t e^{2κ q} ) ,    q = surplus / |P|
        shrink, if surplus < -2 s':     r <- max( min(r, t) , r/2 ) e^{2κ q} ,
                                        q = (surplus + 2 s') / (|P| + 2 s')

    with q cut to [-1, 1], and the first r is five times as long.

    At first r is a hundredth of the step size to the bound; until there is one (the model is flat,
    or at the bound), θ is 0. Where α is lowered, by a schedule, r is lowered in proportion; where
    it is raised, as in a warm-up, r is not, and where it is 0, r waits. With several groups, α is
    the largest learning rate. Equations (10) to (17) of docs/algorithm.md.

    The rule needs a copy of the parameters, in float32 at least, from a step that is measured to
    the next. A state dict has it too, so that a resumed run goes on bit for bit.

    Source: the gradient at the new parameters along the last step is that of hypergradient descent
    (Baydin, Cornish, Martínez Rubio, Schmidt and Wood, ICLR 2018, arXiv 1703.04782); the ratio of
    actual to predicted reduction that of trust regions (Nocedal and Wright, Numerical Optimization,
    2nd edition, Algorithm 4.1). The units, the tests, the bound and the annealing are this
    library's. Chosen and judged in docs/evidence.md.

    Args:
        lower_bound: f*, see `StepRule`. With `-math.inf` nothing is ever cut.
        required: The share of the predicted decrease that losses must show for r to grow by them,
            at least 0 and below 1.
        rate: κ, how fast r grows and shrinks, above 0 and at most 1: by a factor of at most e^κ in
            a step.
        window: The number of steps that averages of losses are over, at least 2: their weights
            fall by 1 - 1/window per step.
        confidence: How many standard errors beyond that share losses must fall, at least 0.
        start: The fraction of the step size to the bound that r is at first, above 0 and at most 1.
        every: Each how many steps are measured, at least 1; the first 100 all are. With `math.inf`
            no later one is.
        measurements: The number of measurements that Z is over, at least 2.
        descends: c, the share of the predicted slope that must be left for r to grow, at least 0
            and below 1.

    Raises:
        TypeError: A setting is not a number.
        ValueError: A setting is out of range.
    """

    _: KW_ONLY
    required: Setting = Setting(FROM_0_BELOW_1, 0.2)
    rate: Setting = Setting(ABOVE_0_TO_1, 0.05)
    window: Setting = Setting(FROM_2, 20.0)
    confidence: Setting = Setting(AT_LEAST_0, 3.0)
    start: Setting = Setting(ABOVE_0_TO_1, 0.01)
    every: Setting = Setting(AT_LEAST_1, 3.0)
    measurements: Setting = Setting(FROM_2, 10.0)
    descends: Setting = Setting(FROM_0_BELOW_1, 0.1)
    needs_momentum: ClassVar[bool] = True
    advice: ClassVar[Mapping[str, str]] = {**StepRule.advice, **_ADVICE}

    def wants_slope(self, stats: ModelStats) -> bool:
        """Return whether a step is to be measured; see `every`."""
        is_due = stats.step <= _FIRST or stats.step % self.every == 0
        return is_due and not stats.is_scheduled and math.isfinite(self.lower_bound)

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return zeros: no step size is trusted yet, and nothing was judged."""
        names = ("trusted", "last_mean_loss", "prediction", "last_step_size", "last_lr")
        return dict.fromkeys((*names, *AVERAGED, *_SLOPES), 0.0)

    def symptoms(self, stats: ModelStats, decision: StepDecision) -> Mapping[str, Tensor]:
        """Return also what is wrong with the loss, with tiny steps, or with steps that α limits.

        "rising_loss" is A < -2 s', P > 0 and, without a schedule, Z > 0; "tiny_steps" a θ below
        1e-9 that closes less than a 1e-6th of what the first step did of the gap to the bound;
        "limited_by_lr" is θ = 1 with Z > 1/2.
        """
        memory, decrease = decision.memory, stats.predicted_decrease
        gap, theta = gap_to_bound(stats, stats.lower_bound), decision.theta_uncapped
        error = standard_error(memory, memory["weight"], self.window)  # n is off by one step
        rises, falls = memory["observed"] < -2.0 * error, memory["predicted"]
        if not stats.is_scheduled:  # by the slopes, too
            falls = torch.minimum(falls, memory["slope"])
        tiny = (theta < 1e-9) & (theta * decrease < 1e-6 * self.start * gap) & (decrease > 0)
        return {
            **super().symptoms(stats, decision),
            "rising_loss": rises & (falls > 0),
            "tiny_steps": tiny,
            "limited_by_lr": (theta >= 1.0) & (memory["slope"] > 0.5),
        }

    def foresee(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> Tensor:
        """Return r/α, at most 1: the limit, which does not depend on the model; see `StepRule`."""
        lr = stats.learning_rate
        if stats.lower_bound == -math.inf:
            return torch.ones_like(lr)
        has_started = memory["trusted"] > torch.finfo(lr.dtype).tiny
        losses = averages(stats.loss, memory, has_started, self.window)
        trusted, _ = self._judged(stats, losses, memory)
        return (trusted / torch.maximum(lr, memory["last_lr"])).clamp(max=1.0)

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3), limited by what is trusted; see `StepRule`."""
        lr, decrease = stats.learning_rate, stats.predicted_decrease
        info = torch.finfo(lr.dtype)
        if stats.lower_bound == -math.inf:
            nothing = {name: torch.zeros_like(value) for name, value in memory.items()}
            return StepDecision(*truncate(stats, stats.lower_bound), stats.lower_bound, nothing)

        has_started = memory["trusted"] > info.tiny  # smaller numbers could not grow
        losses = averages(stats.loss, memory, has_started, self.window)
        trusted, slopes = self._judged(stats, losses, memory)
        # Where the learning rate was lowered, the limit of θ stays; where it was raised, it falls.
        followed = trusted / torch.maximum(lr, memory["last_lr"])
        gap = gap_to_bound(stats, stats.lower_bound)
        start = self.start * (_LONGER if stats.is_scheduled else 1.0)
        first = start * (gap / decrease.abs())  # where the model rises, it may rise by as much
        # Of a flat model, or after a step that has failed, no step size is known.
        limit = torch.where(has_started, followed, first).nan_to_num(nan=0.0, posinf=0.0)
        # Equation (3) without the case of an infinite θ, which is above every limit.
        uncapped = torch.minimum(gap / decrease.clamp(min=info.tiny), limit)
        theta = uncapped.clamp(max=1.0)

        last_lr = torch.where(lr > 0, lr, memory["last_lr"])  # a learning rate of 0 is waited for
        finite = decrease.clamp(info.min, info.max)  # a product with θ = 0 is 0
        remembered = {
            "trusted": limit * last_lr,
            **losses,
            **slopes,
            "last_mean_loss": stats.mean_loss,
            "prediction": torch.addcmul(stats.value_after_decay, theta, finite, value=-1.0),
            "last_step_size": theta * lr,
            "last_lr": last_lr,
        }
        return StepDecision(theta, uncapped, stats.lower_bound, remembered)

    def _judged(
        self, stats: ModelStats, losses: Mapping[str, Tensor], memory: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the step size that is trusted after the last step, and what is known of slopes."""
        slopes = {name: memory[name] for name in _SLOPES}
        surplus = torch.sub(losses["observed"], losses["predicted"], alpha=self.required)
        error = standard_error(losses, memory["weight"], self.window)
        if stats.is_scheduled:
            rate = _FASTER * self.rate
            return followed(losses, surplus, _SHORT * error, memory, rate), slopes
        trusted = memory["trusted"]
        if stats.was_probed:
            trusted, slopes = self._by_slope(stats, memory)
        # A fall over many steps is more than what the ends of steps show, where they oscillate.
        falls = (surplus > self.confidence * error) & (losses["predicted"] > 0)
        longer = torch.maximum(trusted, memory["last_step_size"] * _BY_LOSSES)  # (15)
        return torch.where(falls & (slopes["slope"] >= _HOLDS), longer, trusted), slopes

    def _by_slope(
        self, stats: ModelStats, memory: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the step size that is trusted after a measurement, (13), and the averages (12)."""
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

        since = 1.0 if measured <= _FIRST else self.every
        change = self.rate * math.sqrt(since)
        # Of many verdicts some are noise.
        doubt = math.sqrt(max(1.0, 2.0 * math.log(measured / _FIRST)))
        grows = (mean - doubt * error > self.descends) | ((number < 3.0) & (z > 0))
        # Where a schedule lowers the learning rate, it anneals.
        anneals = (mean - error < 0) & (stats.learning_rate >= memory["last_lr"])
        slow = min(change, since / measured) if measured > _FIRST else 0.0

        # From the step that was taken, if r did not hold that back, but not below half of r.
        start = torch.maximum(torch.minimum(trusted, taken), trusted / 2.0)
        shorter = torch.where(anneals, trusted * math.exp(-slow), trusted)
        shorter = torch.where(mean + error < _RISES, start * math.exp(-change), shorter)
        longer = torch.maximum(trusted, taken * math.exp(change))
        after = torch.where(counts, torch.where(grows, longer, shorter), trusted)
        return after, dict(zip(_SLOPES, (number, mean, square), strict=True))

"""A step rule that limits the step size by the slope of the loss at the end of steps."""

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

# So many steps at the start are all measured, and not annealed.
_FIRST = 100
# The average of z below which the step size shrinks fast, and the least at which losses alone let
# it grow.
_RISES, _HOLDS = -0.5, -0.1
# The growth factor in a step where losses fall.
_BY_LOSSES = math.exp(0.03)
# With a schedule: how much longer the first step is, how much faster the step size changes, and by
# how many standard errors losses must fall short for it to shrink.
_LONGER, _FASTER, _SHORT = 5.0, 2.0, 2.0
# The part of its peak below which the learning rate is low; the step size then grows at most as
# this power of k.
_LOW, _POWER = 0.5, 4.0

_ADVICE = {
    "no_progress": (
        "Step after step was predicted to bring the loss at least halfway to the lower bound, and "
        "the loss has not fallen: the bound is closer to the loss than the noise of batches. Give "
        "a lower bound further below the loss, lower the learning rate, which shortens the steps, "
        "or do nothing if the loss can't be lower."
    ),
    "rising_loss": (
        "The loss rises more than the noise of batches explains, while its gradients say that it "
        "falls. Pass the loss of the gradients, step(loss=loss), with the same sign and of the "
        "same kind at each step. If the loss rises for another reason, such as harder data, do "
        "nothing without a learning rate schedule, because the rule then uses gradients; with one, "
        "write MoMoWrapper(optimizer, MoMo())."
    ),
    "tiny_steps": (
        "The trusted step size is almost 0, because the loss rose at the end of steps. Pass the "
        "loss of the gradients, step(loss=loss). If you do, write MoMoWrapper(optimizer, MoMo()), "
        "or set a new rule, optimizer.rule = TrustedMoMo(), to start over."
    ),
    "limited_by_lr": (
        "The learning rate limits the steps, and at their end the loss still falls at more than "
        "half of the predicted slope, so longer steps would be better. Raise the learning rate, to "
        "100 for example, and the rule finds the step size; or do nothing if it is low on purpose."
    ),
}

# The averaged quantities of slopes.
_SLOPES = ("slopes", "slope", "slope_square")


@dataclass(eq=False, repr=False)
class TrustedMoMo(StepRule):
    """MoMo with a limit on the step size that follows the slope of the loss at the end of steps.

    MoMo steps to where its model of the loss reaches the bound. That is too far if the loss can't
    reach the bound, or is curved on the way, and then only the learning rate α limits the step.
    This rule limits the step too, so α may be far too high, 100 for example.

        θ_k = min( θ of (3) , r_k/α̂_k )

    where r_k is the trusted step size at the largest learning rate so far, α̂_k. Step k, from x to
    x', is judged by the gradient of the next batch ξ at x', which is computed anyway and did not
    influence the step:

        σ = ⟨∇f(x'; ξ), x - x'⟩ ,    π what the model predicted for that move,    z = σ/π

    With Z the average of z over the last 10 measurements, s its standard error, t = θ_k α̂_k the
    step size taken, n the steps between two measurements, c = 0.1, and q the larger of 1 and sqrt(2
    log(k/100)), because some of many verdicts are noise,

        grow, if Z - q s > c:                      r <- max( r , t e^{κ √n} )
        else shrink, if Z + s < -1/2:              r <- max( min(r, t) , r/2 ) e^{-κ √n}
        else anneal, if Z - s < 0 and k > 100:     r <- r e^{-min(κ √n, n/k)}
        grow at any step where losses fall:        r <- max( r , t e^{0.03} )

    the last by more than a fifth of the prediction, beyond 3 standard errors. So steps grow only on
    evidence, and without evidence that they still descend, they fall as 1/k. The noise of losses
    between batches, clipped gradients, and losses that drift for other reasons matter little.

    If a schedule sets α (it differs from a scheduler's `initial_lr`, or has changed between two
    steps), the schedule anneals, and good steps are longer than slopes allow. So r then follows
    losses only. With A the observed and P the predicted decrease, averaged over 20 steps, and s'
    the standard error of A, equation (17):

        surplus = A - P/5
        grow, if surplus > 0:           r <- max( r , t e^{2κ q} ) ,    q = surplus / |P|
        shrink, if surplus < -2 s':     r <- max( min(r, t) , r/2 ) e^{2κ q} ,
                                        q = (surplus + 2 s') / (|P| + 2 s')

    with q clipped to [-1, 1], and the first r is five times as long. As α falls, the noise falls,
    and with it the losses, so while α < α̂/2, r grows by a factor of at most e^{4/k}.

    At first r is a hundredth of the step size to the bound; as long as that is undefined (the model
    is flat, or at the bound), θ is 0. If a schedule lowers α, steps get shorter in proportion, and
    if it raises α again, as at a warm restart, longer; beyond α̂, as in a warm-up, they do not. With
    several groups, α is the largest learning rate. Equations (10) to (17) of docs/algorithm.md.

    The rule needs a copy of the parameters, in at least float32, from a measured step to the next.
    A state dict contains it, so a resumed run continues bit for bit.

    Source: the gradient at the new parameters along the last step comes from hypergradient descent
    (Baydin, Cornish, Martínez Rubio, Schmidt and Wood, ICLR 2018, arXiv 1703.04782); the ratio of
    actual to predicted reduction from trust regions (Nocedal and Wright, Numerical Optimization,
    2nd edition, Algorithm 4.1). The units, the tests, the bound and the annealing are this
    library's. For the evidence, see docs/evidence.md.

    Args:
        lower_bound: f*, see `StepRule`. With `-math.inf` no step is shortened.
        required: The share of the predicted decrease that losses must exceed for r to grow, at
            least 0 and below 1.
        rate: κ, the rate at which r grows and shrinks, above 0 and at most 1: by a factor of at
            most e^κ per step.
        window: The number of steps to average losses over, at least 2: weights decay by 1 -
            1/window per step.
        confidence: How many standard errors beyond `required` losses must fall, at least 0.
        start: The first r as a fraction of the step size to the bound, above 0 and at most 1.
        every: The number of steps between two measurements, at least 1. The first 100 steps are all
            measured; with `math.inf` no later ones.
        measurements: The number of measurements to average Z over, at least 2.
        descends: c, the share of the predicted slope that must remain for r to grow, at least 0 and
            below 1.

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
        """Return whether to measure this step; see `every`."""
        is_due = stats.step <= _FIRST or stats.step % self.every == 0
        return is_due and not stats.is_scheduled and math.isfinite(self.lower_bound)

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return zeros: no step size is trusted yet, and no step is judged."""
        names = ("trusted", "last_mean_loss", "prediction", "last_step_size", "last_lr", "peak_lr")
        return dict.fromkeys((*names, *AVERAGED, *_SLOPES), 0.0)

    def symptoms(self, stats: ModelStats, decision: StepDecision) -> Mapping[str, Tensor]:
        """Return symptoms, also of a rising loss, of tiny steps, and of steps that α limits.

        "rising_loss" is A < -2 s', P > 0 and, without a schedule, Z > 0. "tiny_steps" is a θ below
        1e-9 that closes the gap to the bound by less than 1e-6 of the first step's share.
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
        """Return r/α̂, at most 1: the limit, which does not depend on the model; see `StepRule`."""
        lr = stats.learning_rate
        if stats.lower_bound == -math.inf:
            return torch.ones_like(lr)
        has_started = memory["trusted"] > torch.finfo(lr.dtype).tiny
        losses = averages(stats.loss, memory, has_started, self.window)
        trusted, _ = self._judged(stats, losses, memory)
        return (trusted / torch.maximum(lr, memory["peak_lr"])).clamp(max=1.0)

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3), limited by the trusted step size; see `StepRule`."""
        lr, decrease = stats.learning_rate, stats.predicted_decrease
        info = torch.finfo(lr.dtype)
        if stats.lower_bound == -math.inf:
            nothing = {name: torch.zeros_like(value) for name, value in memory.items()}
            return StepDecision(*truncate(stats, stats.lower_bound), stats.lower_bound, nothing)

        has_started = memory["trusted"] > info.tiny  # smaller numbers can't grow
        losses = averages(stats.loss, memory, has_started, self.window)
        trusted, slopes = self._judged(stats, losses, memory)
        # If the learning rate was lowered, the limit of θ stays; at a new peak, the limit falls.
        peak = torch.maximum(lr, memory["peak_lr"])
        followed = trusted / peak
        gap = gap_to_bound(stats, stats.lower_bound)
        start = self.start * (_LONGER if stats.is_scheduled else 1.0)
        first = start * (gap / decrease.abs())  # if the model rises, it may rise by as much
        # For a flat model, or after a step that failed, the step size is undefined.
        limit = torch.where(has_started, followed, first).nan_to_num(nan=0.0, posinf=0.0)
        # Equation (3) without the case of an infinite θ, which is above every limit.
        uncapped = torch.minimum(gap / decrease.clamp(min=info.tiny), limit)
        theta = uncapped.clamp(max=1.0)

        finite = decrease.clamp(info.min, info.max)  # a product with θ = 0 is 0
        new_memory = {
            "trusted": limit * peak,
            **losses,
            **slopes,
            "last_mean_loss": stats.mean_loss,
            "prediction": torch.addcmul(stats.value_after_decay, theta, finite, value=-1.0),
            "last_step_size": theta * peak * (lr > 0),
            "last_lr": torch.where(lr > 0, lr, memory["last_lr"]),
            "peak_lr": peak,
        }
        return StepDecision(theta, uncapped, stats.lower_bound, new_memory)

    def _judged(
        self, stats: ModelStats, losses: Mapping[str, Tensor], memory: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the trusted step size after the last step, and the averages of slopes."""
        slopes = {name: memory[name] for name in _SLOPES}
        surplus = torch.sub(losses["observed"], losses["predicted"], alpha=self.required)
        error = standard_error(losses, memory["weight"], self.window)
        if stats.is_scheduled:
            rate = _FASTER * self.rate
            found = followed(losses, surplus, _SHORT * error, memory, rate)
            # As the learning rate falls, losses fall because their noise does.
            most = memory["trusted"] * math.exp(_POWER / max(stats.step, 1))
            is_low = stats.learning_rate < _LOW * memory["peak_lr"]
            return torch.where(is_low, torch.minimum(found, most), found), slopes
        trusted = memory["trusted"]
        if stats.was_probed:
            trusted, slopes = self._by_slope(stats, memory)
        # If steps oscillate, losses over many steps fall more than the ends of steps show.
        falls = (surplus > self.confidence * error) & (losses["predicted"] > 0)
        longer = torch.maximum(trusted, memory["last_step_size"] * _BY_LOSSES)  # (15)
        return torch.where(falls & (slopes["slope"] >= _HOLDS), longer, trusted), slopes

    def _by_slope(
        self, stats: ModelStats, memory: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the trusted step size after a measurement, (13), and the averages (12)."""
        measured = stats.step - 1
        taken, trusted = memory["last_step_size"], memory["trusted"]
        slope, predicted = stats.probed_slope, stats.probed_prediction
        counts = (torch.minimum(predicted, taken) > 0) & (slope.abs() < math.inf)

        z = torch.where(counts, (slope / predicted).clamp(-1.0, 1.0), 0.0)
        number = (memory["slopes"] + counts).clamp(max=2.0 * self.measurements - 1.0)
        weight = counts / number.clamp(1.0, self.measurements)
        mean = torch.lerp(memory["slope"], z, weight)
        square = torch.lerp(memory["slope_square"], z * z, weight)
        # The standard error; NaN, unknown, after one measurement.
        error = ((square - mean * mean).clamp(min=0.0) / (number - 1.0)).sqrt()

        since = 1.0 if measured <= _FIRST else self.every
        change = self.rate * math.sqrt(since)
        # Some of many verdicts are noise.
        doubt = math.sqrt(max(1.0, 2.0 * math.log(measured / _FIRST)))
        grows = (mean - doubt * error > self.descends) | ((number < 3.0) & (z > 0))
        # If the learning rate was lowered, that anneals.
        anneals = (mean - error < 0) & (stats.learning_rate >= memory["last_lr"])
        slow = min(change, since / measured) if measured > _FIRST else 0.0

        # From the step size taken, if r did not limit it, but not below half of r.
        start = torch.maximum(torch.minimum(trusted, taken), trusted / 2.0)
        shorter = torch.where(anneals, trusted * math.exp(-slow), trusted)
        shorter = torch.where(mean + error < _RISES, start * math.exp(-change), shorter)
        longer = torch.maximum(trusted, taken * math.exp(change))
        after = torch.where(counts, torch.where(grows, longer, shorter), trusted)
        return after, dict(zip(_SLOPES, (number, mean, square), strict=True))

"""A step rule that limits the step size by how well the momentum model predicted past losses."""

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
from momo_wrap.rules.probed import BY_LOSSES, REMEMBERED, is_due, judged
from momo_wrap.rules.stats import ModelStats

_ADVICE = {
    "rising_loss": (
        "The loss rises, beyond what the noise of batches explains, where the model foretold that "
        "it falls, so that the rule shortens its steps further and further. Pass the loss "
        "that the gradients are of, step(loss=loss), with the same sign and of the same kind at "
        "each step; if the loss rises by itself, as from harder data, write "
        "MoMoWrapper(optimizer, MoMo())."
    ),
    "tiny_steps": (
        "The step size that the rule trusts is next to nothing, as none of the decrease of the "
        "loss was seen that the model foretold. Pass the loss that the gradients are of, "
        "step(loss=loss), in float32; if it is, write MoMoWrapper(optimizer, MoMo()), or set the "
        "rule anew, optimizer.rule = TrustedMoMo(), to start over."
    ),
}

# The memory that is averaged.
_AVERAGES = ("weight", "observed", "predicted", "observed_square")


@dataclass(eq=False, repr=False)
class TrustedMoMo(StepRule):
    """MoMo with a limit on the step size that follows how well the model predicts the loss.

    MoMo's step is as long as the model of the loss lasts. Where the loss can't be brought down to
    the bound, or bends on the way there, that is too far, and only the learning rate α holds it
    back. This rule holds it back itself: α may be set far too high, to 100 say, and be forgotten.

        θ_k = min( θ of (3) , r_k/α_k )

    where r_k is the step size that is trusted. Each step is judged by the loss of the next batch,

        Δ̂_k = (f̄ - f_k)                 the decrease that was observed, from the average of the
                                        losses before to this one,
        Δ_k = (f̄ - m_{k-1}(x_k))        the decrease that the model had predicted for x_k,

    and r follows their averages A of Δ̂ and P of Δ over some 20 steps, with the standard error s of
    A that the scatter of Δ̂ makes known:

        surplus = A - c P ,    c = 0.2
        grow, if surplus > 0:        r <- max( r , t e^{κ q} ) ,
                                     q = surplus / |P|
        shrink, if surplus < -2 s:   r <- max( min(r, t) , r/2 ) e^{κ q} ,
                                     q = (surplus + 2 s) / (|P| + 2 s)

    with t = θ_{k-1} α_{k-1}, the step size that was taken, and q cut to [-1, 1]. So r falls only
    on evidence that is beyond the noise of batches, and where α is small enough the steps are
    those of the base. At first r is 1/20 of the step size to the bound; until there is one (the
    model is flat, or at the bound), θ is 0. Where α is lowered, by a schedule, r is lowered in
    proportion; where it is raised, as in a warm-up, r is not, and where it is 0, r waits. With
    several groups, α is the largest learning rate.

    Where `step()` is given a probe, the loss of one batch before and after a step decides instead:

        o = f(x; ξ) - f(x'; ξ) ,   σ = ⟨∇f(x'; ξ), x - x'⟩ ,   π what the model foretold of o,
        grow, if o > 0.4 π, or o > 0 and σ > 2/3 o:     r <- max( r , t e^{κ'} )
        shrink, if o < 0:                               r <- max( min(r, t) , r/2 ) e^{-κ'}
        anneal, unless σ > -o:                          r <- r e^{-min(κ', n/k)}
        grow at any step, if A - c P > 3 s and o > 0:   r <- max( r , t e^{0.03} )

    the first three beyond one standard error of the average over the last 8 probes, with
    κ' = 0.06 √n where n steps lie between probes, and k the step. So noise between batches, clipped
    gradients, and losses that move by themselves are of little account. r_1 is then a hundredth of
    the way to the bound.

    On a quadratic along its gradient, Δ̂/Δ = 1 - r/(2 r*) where r* is the exact line search: c = 0.2
    lets the steps be 1.6 times as long.

    Source: the ratio of actual to predicted reduction is that of trust regions (Nocedal and Wright,
    Numerical Optimization, 2nd edition, Algorithm 4.1). That it is one of averages, tested for
    significance, and compared over the memory of a momentum model, is this library's. Chosen and
    judged in docs/evidence.md.

    Args:
        lower_bound: f*, see `StepRule`. With `-math.inf` nothing is ever cut.
        required: c, the share of the predicted decrease that must be seen for r to grow, at least 0
            and below 1.
        rate: κ, how fast r grows and shrinks, above 0 and at most 1: by a factor of at most e^κ in
            a step.
        window: The number of steps that the averages are over, at least 2: their weights fall by
            1 - 1/window per step.
        confidence: How many standard errors the observed decrease must be short for r to shrink, at
            least 0. With `math.inf` r never shrinks.
        start: The fraction of the step size to the bound that r is at first, above 0 and at most 1;
            a fifth of it with probes.
        every: Each how many steps are probed, where `step()` is given a probe, at least 1; the
            first 4 `every` all are. With `math.inf` none is, and losses decide.

    Raises:
        TypeError: A setting is not a number.
        ValueError: A setting is out of range.
    """

    _: KW_ONLY
    required: Setting = Setting(FROM_0_BELOW_1, 0.2)
    rate: Setting = Setting(ABOVE_0_TO_1, 0.1)
    window: Setting = Setting(FROM_2, 20.0)
    confidence: Setting = Setting(AT_LEAST_0, 2.0)
    start: Setting = Setting(ABOVE_0_TO_1, 0.05)
    every: Setting = Setting(AT_LEAST_1, 10.0)
    needs_momentum: ClassVar[bool] = True
    advice: ClassVar[Mapping[str, str]] = {**StepRule.advice, **_ADVICE}

    def symptoms(self, stats: ModelStats, decision: StepDecision) -> Mapping[str, Tensor]:
        """Return also whether the loss rises, beyond noise, and whether steps are next to nothing.

        "rising_loss" is A < -2 s and P > 0; "tiny_steps", where the loss does not rise, a θ below
        1e-9 that closes less than a 1e-6th of what the first step did of the gap to the bound.
        """
        memory, decrease = decision.memory, stats.predicted_decrease
        error = self._error(memory, memory)  # n is off by one step
        rises = (memory["observed"] < -2.0 * error) & (memory["predicted"] > 0)
        if self._by_probes(stats):  # to which a loss that rises by itself is nothing
            rises = torch.zeros_like(rises)
        gap, theta = gap_to_bound(stats, stats.lower_bound), decision.theta_uncapped
        tiny = (theta < 1e-9) & (theta * decrease < 1e-6 * self.start * gap) & (decrease > 0)
        return {
            **super().symptoms(stats, decision),
            "rising_loss": rises,
            "tiny_steps": tiny & rises.logical_not(),
        }

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return zeros: no step size is trusted yet, and nothing was judged."""
        names = ("trusted", *_AVERAGES, "last_mean_loss", "prediction", "last_step_size", "last_lr")
        return dict.fromkeys((*names, *REMEMBERED), 0.0)

    def wants_probe(self, step: int) -> bool:
        """Return whether a step is to be probed; see `every`."""
        cuts = math.isfinite(self.lower_bound) and self.every < math.inf
        return cuts and is_due(step, math.ceil(self.every))

    def _by_probes(self, stats: ModelStats) -> bool:
        return stats.has_probe and self.every < math.inf

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3), limited by what is trusted; see `StepRule`."""
        lr, decrease = stats.learning_rate, stats.predicted_decrease
        info = torch.finfo(lr.dtype)
        if stats.lower_bound == -math.inf:
            nothing = {name: torch.zeros_like(value) for name, value in memory.items()}
            return StepDecision(*truncate(stats, stats.lower_bound), stats.lower_bound, nothing)

        has_started = memory["trusted"] > info.tiny  # smaller numbers could not grow
        averages = self._averages(stats.loss, memory, has_started)
        # Where the learning rate was lowered, the limit of θ stays; where it was raised, it falls.
        trusted, by_probes = self._trusted(stats, averages, memory)
        followed = trusted / torch.maximum(lr, memory["last_lr"])
        gap = gap_to_bound(stats, stats.lower_bound)
        # Probes find out soon how far steps may go.
        start = self.start * (0.2 if self._by_probes(stats) else 1.0)
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
            **averages,
            **by_probes,
            "last_mean_loss": stats.mean_loss,
            "prediction": torch.addcmul(stats.value_after_decay, theta, finite, value=-1.0),
            "last_step_size": theta * lr,
            "last_lr": last_lr,
        }
        return StepDecision(theta, uncapped, stats.lower_bound, remembered)

    def _trusted(
        self, stats: ModelStats, averages: Mapping[str, Tensor], memory: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the step size that is trusted, and what is remembered of probes."""
        known = {name: memory[name] for name in REMEMBERED}
        if not self._by_probes(stats):
            return self._followed(averages, memory), known
        trusted = memory["trusted"]
        if stats.was_probed:
            trusted, known = judged(stats, memory, math.ceil(self.every))
        # A fall over many steps is more than what single steps show.
        surplus = torch.sub(averages["observed"], averages["predicted"], alpha=self.required)
        falls = (surplus > 3.0 * self._error(averages, memory)) & (averages["predicted"] > 0)
        longer = torch.maximum(trusted, memory["last_step_size"] * math.exp(BY_LOSSES))
        return torch.where(falls & (known["came_true"] >= 0), longer, trusted), known

    def _averages(
        self, loss: Tensor, memory: Mapping[str, Tensor], has_started: Tensor
    ) -> dict[str, Tensor]:
        """Return the averages times their weight, with the last step in them."""
        observed = memory["last_mean_loss"] - loss
        predicted = memory["last_mean_loss"] - memory["prediction"]
        values = torch.stack([has_started, observed, predicted, observed * observed])
        # An infinite square would never be forgotten.
        largest = torch.finfo(loss.dtype).max / 1e6
        values = values.nan_to_num(nan=0.0, posinf=largest, neginf=-largest)
        last = torch.stack([memory[name] for name in _AVERAGES])
        averages = torch.lerp(last, values, 1.0 / self.window) * has_started
        return dict(zip(_AVERAGES, averages.unbind(), strict=True))

    def _followed(self, averages: Mapping[str, Tensor], memory: Mapping[str, Tensor]) -> Tensor:
        """Return the step size that is trusted after the verdict on the last step, equation (13).

        All averages, and so the noise, have the same weight, which leaves their ratios as they are.
        """
        observed, predicted = averages["observed"], averages["predicted"]
        surplus = torch.sub(observed, predicted, alpha=self.required)
        # What noise explains of a shortfall, as a negative number. Unknown noise explains it all.
        explained = torch.fmax(surplus, -self.confidence * self._error(averages, memory))
        explained = explained.clamp(max=0.0)
        verdict = (surplus - explained) / (predicted.abs() - explained)
        verdict = verdict.nan_to_num(nan=0.0).clamp(-1.0, 1.0)

        # Above 1 where the step size shrinks. It then comes down to the step that was taken, if it
        # did not hold that back, but not below half of what it was.
        divisor = torch.pow(math.exp(-self.rate), verdict)
        least = memory["trusted"] / 2.0 / torch.threshold(divisor, 1.0, 0.5)
        return torch.maximum(memory["last_step_size"] / divisor, least)

    def _error(self, averages: Mapping[str, Tensor], memory: Mapping[str, Tensor]) -> Tensor:
        """Return the standard error s of the observed decrease, equation (12), times the weight.

        After n steps of equal weight, it would be sqrt(V/(n - 1)); here 1/(n - 1) is
        (1 - v/2)/((w - 1) v'), where v is the weight and v' that before the last step. With the
        first value, which has no variance, v' is 0, and the error is infinite or NaN.
        """
        weight, window = averages["weight"], self.window
        variance = torch.addcmul(
            weight * averages["observed_square"],
            averages["observed"],
            averages["observed"],
            value=-1.0,
        ).clamp(min=0.0)
        # (1 - v/2)/((w - 1) v') by v = (1 - 1/w) v' + 1/w
        factor = (2.0 * window - 1.0) / (2.0 * window * (window - 1.0))
        less = variance * (-0.5 / window)
        return torch.addcdiv(less, variance, memory["weight"], value=factor).sqrt()

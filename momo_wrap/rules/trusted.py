"""A step rule that limits the step size by the slope of the loss at the end of its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from momo_wrap.rules.arguments import (
    ABOVE_0_TO_1,
    AT_LEAST_1,
    FROM_0_BELOW_1,
    FROM_2,
    Setting,
)
from momo_wrap.rules.base import StepDecision, StepRule, gap_to_bound, truncate
from momo_wrap.rules.slopes import REMEMBERED, is_due, judged
from momo_wrap.rules.stats import ModelStats

_ADVICE = {
    "rising_loss": (
        "The loss rises, beyond what the noise of batches explains, where the model predicted that "
        "it falls. Pass the loss that the gradients are of, step(loss=loss), with the same sign "
        "and of the same kind at each step. If the loss rises by itself, as from harder data, "
        "there is nothing to do."
    ),
    "tiny_steps": (
        "The step size that the rule trusts is next to nothing, because the loss rose again where "
        "steps end. Pass the loss that the gradients are of, step(loss=loss), in float32. If it "
        "is, write MoMoWrapper(optimizer, MoMo()), or set the rule anew, "
        "optimizer.rule = TrustedMoMo(), to start over."
    ),
}

# The memory that is averaged, over how many steps.
_AVERAGES = ("weight", "observed", "predicted", "observed_square")
_STEPS = 20.0
# What share of the predicted decrease losses must show, and by how many standard errors more.
_SHARE, _DOUBT = 0.2, 3.0
# Losses let steps grow where Z is not below.
_LEAST_SLOPE = -0.1


@dataclass(eq=False, repr=False)
class TrustedMoMo(StepRule):
    """MoMo with a limit on the step size that follows the slope of the loss at the end of steps.

    MoMo's step is as long as the model of the loss lasts. Where the loss can't be brought down to
    the bound, or bends on the way there, that is too far, and only the learning rate α holds it
    back. This rule holds it back itself: α may be set far too high, to 100 say, and be forgotten.

        θ_k = min( θ of (3) , r_k/α_k )

    where r_k is the step size that is trusted. Step k, from x to x', is judged by the gradient of
    the next batch ξ at x', which had no part in it:

        σ = ⟨∇f(x'; ξ), x - x'⟩ ,    π what the model predicted for that move,    z = σ/π

    With Z the average of z over the last 10 measurements, s its standard error, t = θ_k α_k the
    step size that was taken, n the steps between two measurements, and c = 0.1,

        grow, if Z - s > c:                        r <- max( r , t e^{κ √n} )
        else shrink, if Z + s < -1/2:              r <- max( min(r, t) , r/2 ) e^{-κ √n}
        else anneal, if Z - s < 0 and k > 100:     r <- r e^{-min(κ √n, n/k)}
        grow at any step where losses fall:        r <- max( r , t e^{3κ/5} )

    the last beyond 3 standard errors, equation (14). So noise of losses between batches, clipped
    gradients, and losses that move by themselves matter little, and where nothing shows that steps
    still descend, they fall as 1/k. At first r is a hundredth of the step size to the bound; until
    there is one (the model is flat, or at the bound), θ is 0. Where α is lowered, by a schedule, r
    is lowered in proportion, and is not annealed; where it is raised, as in a warm-up, r is not,
    and where it is 0, r waits. With several groups, α is the largest learning rate.

    The rule needs a copy of the parameters, in float32 at least, from a step that is measured to
    the next; a state dict has it too, so that a resumed run goes on bit for bit.

    Source: equations (10) to (15) of docs/algorithm.md. The gradient at the new parameters along
    the last step is that of hypergradient descent (Baydin, Cornish, Martínez Rubio, Schmidt and
    Wood, ICLR 2018, arXiv 1703.04782); the units, the test, the bound and the annealing are this
    library's. Chosen and judged in docs/evidence.md.

    Args:
        lower_bound: f*, see `StepRule`. With `-math.inf` nothing is ever cut.
        required: c, the share of the predicted decrease that the slope must still be for r to grow,
            at least 0 and below 1.
        rate: κ, how fast r grows and shrinks, above 0 and at most 1: by a factor of at most e^κ in
            a step.
        window: The number of measurements that Z is over, at least 2.
        start: The fraction of the step size to the bound that r is at first, above 0 and at most 1.
        every: Each how many steps are measured, at least 1; the first 100 all are.

    Raises:
        TypeError: A setting is not a number.
        ValueError: A setting is out of range.
    """

    _: KW_ONLY
    required: Setting = Setting(FROM_0_BELOW_1, 0.1)
    rate: Setting = Setting(ABOVE_0_TO_1, 0.05)
    window: Setting = Setting(FROM_2, 10.0)
    start: Setting = Setting(ABOVE_0_TO_1, 0.01)
    every: Setting = Setting(AT_LEAST_1, 3.0)
    needs_momentum: ClassVar[bool] = True
    advice: ClassVar[Mapping[str, str]] = {**StepRule.advice, **_ADVICE}

    def symptoms(self, stats: ModelStats, decision: StepDecision) -> Mapping[str, Tensor]:
        """Return also whether the loss rises, beyond noise, and whether steps are next to nothing.

        "rising_loss" is A < -2 s and P > 0; "tiny_steps", where the loss does not rise, a θ below
        1e-9 that closes less than a 1e-6th of what the first step did of the gap to the bound.
        """
        memory, decrease = decision.memory, stats.predicted_decrease
        error = _error(memory, memory)  # n is off by one step
        rises = (memory["observed"] < -2.0 * error) & (memory["predicted"] > 0)
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

    def wants_slope(self, step: int) -> bool:
        """Return whether a step is to be measured; see `every`."""
        return math.isfinite(self.lower_bound) and is_due(step, self.every)

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3), limited by what is trusted; see `StepRule`."""
        lr, decrease = stats.learning_rate, stats.predicted_decrease
        info = torch.finfo(lr.dtype)
        if stats.lower_bound == -math.inf:
            nothing = {name: torch.zeros_like(value) for name, value in memory.items()}
            return StepDecision(*truncate(stats, stats.lower_bound), stats.lower_bound, nothing)

        has_started = memory["trusted"] > info.tiny  # smaller numbers could not grow
        averages = _averages(stats.loss, memory, has_started)
        # Where the learning rate was lowered, the limit of θ stays; where it was raised, it falls.
        trusted, slopes = self._trusted(stats, averages, memory)
        followed = trusted / torch.maximum(lr, memory["last_lr"])
        gap = gap_to_bound(stats, stats.lower_bound)
        first = self.start * (gap / decrease.abs())  # where the model rises, it may rise by as much
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
            **slopes,
            "last_mean_loss": stats.mean_loss,
            "prediction": torch.addcmul(stats.value_after_decay, theta, finite, value=-1.0),
            "last_step_size": theta * lr,
            "last_lr": last_lr,
        }
        return StepDecision(theta, uncapped, stats.lower_bound, remembered)

    def _trusted(
        self, stats: ModelStats, averages: Mapping[str, Tensor], memory: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the step size that is trusted, and what is remembered of slopes."""
        trusted, known = memory["trusted"], {name: memory[name] for name in REMEMBERED}
        if stats.was_probed:
            settings = (self.required, self.rate, self.window, self.every)
            trusted, known = judged(stats, memory, *settings)
        # A fall over many steps is more than what the ends of steps show, where they oscillate.
        surplus = torch.sub(averages["observed"], averages["predicted"], alpha=_SHARE)
        falls = (surplus > _DOUBT * _error(averages, memory)) & (averages["predicted"] > 0)
        falls &= known["slope"] >= _LEAST_SLOPE
        longer = torch.maximum(trusted, memory["last_step_size"] * math.exp(0.6 * self.rate))
        return torch.where(falls, longer, trusted), known


def _averages(loss: Tensor, memory: Mapping[str, Tensor], has_started: Tensor) -> dict[str, Tensor]:
    """Return the averages of (13) times their weight, with the last step in them."""
    observed = memory["last_mean_loss"] - loss
    predicted = memory["last_mean_loss"] - memory["prediction"]
    values = torch.stack([has_started, observed, predicted, observed * observed])
    # An infinite square would never be forgotten.
    largest = torch.finfo(loss.dtype).max / 1e6
    values = values.nan_to_num(nan=0.0, posinf=largest, neginf=-largest)
    last = torch.stack([memory[name] for name in _AVERAGES])
    averages = torch.lerp(last, values, 1.0 / _STEPS) * has_started
    return dict(zip(_AVERAGES, averages.unbind(), strict=True))


def _error(averages: Mapping[str, Tensor], memory: Mapping[str, Tensor]) -> Tensor:
    """Return the standard error s' of the observed decrease, of (14), times the weight.

    After n steps of equal weight, it would be sqrt(V/(n - 1)); here 1/(n - 1) is (1 - v/2)/((w - 1)
    v'), where v is the weight and v' that before the last step. With the first value, which has no
    variance, v' is 0, and the error is infinite or NaN.
    """
    variance = torch.addcmul(
        averages["weight"] * averages["observed_square"],
        averages["observed"],
        averages["observed"],
        value=-1.0,
    ).clamp(min=0.0)
    # (1 - v/2)/((w - 1) v') by v = (1 - 1/w) v' + 1/w
    factor = (2.0 * _STEPS - 1.0) / (2.0 * _STEPS * (_STEPS - 1.0))
    less = variance * (-0.5 / _STEPS)
    return torch.addcdiv(less, variance, memory["weight"], value=factor).sqrt()

"""A step rule that limits the step size by how well the momentum model predicted past losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from momo_wrap.rules.arguments import ABOVE_0_TO_1, AT_LEAST_0, FROM_0_BELOW_1, FROM_2, Setting
from momo_wrap.rules.base import (
    ModelStats,
    StepDecision,
    StepRule,
    WeightDecayForm,
    scaled,
    truncate,
)

# A step size that is not known yet.
_NONE = -1.0


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
        start: The fraction of the step size to the bound that r is at first, above 0 and at most 1.

    Raises:
        TypeError: A setting is not a number.
        ValueError: A setting is out of range.
    """

    # The others shrink parameters by α, which is too large here.
    weight_decay_form: ClassVar[WeightDecayForm] = "scaled"

    required = Setting(FROM_0_BELOW_1, 0.2)
    rate = Setting(ABOVE_0_TO_1, 0.1)
    window = Setting(FROM_2, 20.0)
    confidence = Setting(AT_LEAST_0, 2.0)
    start = Setting(ABOVE_0_TO_1, 0.05)

    def __init__(
        self,
        lower_bound: float = 0.0,
        *,
        required: float = 0.2,
        rate: float = 0.1,
        window: float = 20.0,
        confidence: float = 2.0,
        start: float = 0.05,
    ) -> None:
        super().__init__(lower_bound)
        self.required = required
        self.rate = rate
        self.window = window
        self.confidence = confidence
        self.start = start

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return that nothing was judged yet, and that there is no limit (a negative one)."""
        names = (
            *("weight", "observed", "predicted", "observed_square"),
            *("last_mean_loss", "prediction", "last_step_size", "last_lr"),
        )
        return {"trusted": _NONE, **dict.fromkeys(names, 0.0)}

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3), limited by what is trusted; see `StepRule`."""
        lr, has_started = stats.learning_rate, memory["trusted"] > 0
        track = self._track(stats.loss, memory, has_started)
        theta, uncapped = truncate(stats, stats.lower_bound)

        can_move = lr > 0
        is_lowered = can_move & (memory["last_lr"] > lr)
        lowered = torch.where(is_lowered, lr / memory["last_lr"], 1.0)
        # At 0 it would stay for ever.
        smallest = torch.finfo(lr.dtype).tiny
        followed = (self._followed(track, memory) * lowered).clamp(min=smallest)
        trusted = torch.where(has_started, followed, self._first(stats))

        # As long as nothing is known, nothing is trusted; without a bound, everything is.
        unknown = math.inf if stats.lower_bound == -math.inf else 0.0
        limit = torch.where(trusted > 0, trusted / lr, unknown)
        theta = torch.minimum(theta, limit)
        remembered = {
            "trusted": trusted,
            **track,
            "last_mean_loss": stats.mean_loss.clone(),
            "prediction": stats.value_after_decay - scaled(stats.predicted_decrease, theta),
            "last_step_size": theta * lr,
            "last_lr": torch.where(can_move, lr, memory["last_lr"]),
        }
        return StepDecision(theta, torch.minimum(uncapped, limit), stats.lower_bound, remembered)

    def _first(self, stats: ModelStats) -> Tensor:
        """Return the step size that is trusted at first; none of a model that is flat or below."""
        gap = (stats.value_after_decay - stats.lower_bound).clamp(min=0.0)
        # Where the model rises along the step, it may rise by as much.
        to_bound = gap / stats.predicted_decrease.abs()
        first = self.start * to_bound * stats.learning_rate
        return torch.where((first > 0) & torch.isfinite(first), first, _NONE)

    def _track(
        self, loss: Tensor, memory: Mapping[str, Tensor], has_started: Tensor
    ) -> dict[str, Tensor]:
        """Return the averages, with the last step in them."""
        observed = memory["last_mean_loss"] - loss
        # An infinite square would never be forgotten.
        largest = torch.finfo(loss.dtype).max / 1e6
        values = {
            "weight": torch.ones_like(loss),
            "observed": observed,
            "predicted": memory["last_mean_loss"] - memory["prediction"],
            "observed_square": observed.square().clamp(max=largest),
        }
        kept = 1.0 - 1.0 / self.window
        return {
            name: torch.where(has_started, kept * memory[name] + (1.0 - kept) * value, 0.0)
            for name, value in values.items()
        }

    def _followed(self, track: Mapping[str, Tensor], memory: Mapping[str, Tensor]) -> Tensor:
        """Return the step size that is trusted after the verdict on the last step."""
        trusted, taken = memory["trusted"], memory["last_step_size"]
        observed, predicted = (track[name] / track["weight"] for name in ("observed", "predicted"))
        surplus = observed - self.required * predicted
        growth = torch.where(surplus > 0, (surplus / predicted.abs()).clamp(max=1.0), 0.0)
        grown = torch.maximum(trusted, taken * torch.exp(self.rate * growth))

        noise, is_known = self._noise(track)
        short = ((surplus + noise) / (predicted.abs() + noise)).clamp(-1.0, 0.0)
        short = torch.where((surplus < 0) & is_known, short, 0.0)
        # A limit that did not hold the step back comes down to it, but not to a step of length 0.
        base = torch.maximum(torch.minimum(trusted, taken), trusted / 2)
        return torch.where(short < 0, base * torch.exp(self.rate * short), grown)

    def _noise(self, track: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return 2 s, and whether there are values enough to know it."""
        weight, kept = track["weight"], 1.0 - 1.0 / self.window
        # How many independent values of equal weight would average as well.
        count = (1.0 + kept) / (1.0 - kept) * weight / (2.0 - weight)
        mean = track["observed"] / weight
        scatter = (track["observed_square"] / weight - mean.square()).clamp(min=0.0)
        return self.confidence * (scatter / (count - 1.0)).sqrt(), count > 1.5

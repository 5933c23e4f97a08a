"""A step rule that goes by how well the momentum model has foretold the loss so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from momo_wrap.rules import ModelStats, StepDecision, StepRule, WeightDecayForm, truncate
from momo_wrap.settings import (
    ABOVE_0,
    ABOVE_0_TO_1,
    AT_LEAST_0,
    AT_LEAST_2,
    FROM_0_BELOW_1,
    checked,
)

# A step size that is not known yet.
_NONE = -1.0


class TrustedMoMo(StepRule):
    """MoMo with a limit on the step size that follows how well the model foretells the loss.

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
    those of the base. At first r is 1/20 of the step size to the bound. Where α is lowered, by a
    schedule, r is lowered in proportion; where it is raised, as in a warm-up, r is not.

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
        rate: κ, how fast r grows and shrinks, above 0: at most by a factor e^κ in a step.
        window: The number of steps that the averages are over, at least 2: their weights fall by
            1 - 1/window per step.
        confidence: How many standard errors the observed decrease must be short for r to shrink, at
            least 0.
        start: The fraction of the step size to the bound that r is at first, above 0 and at most 1.

    Raises:
        TypeError: A setting is not a number.
        ValueError: A setting is out of range.
    """

    # The others shrink parameters by α, which is too large here.
    weight_decay: ClassVar[WeightDecayForm] = "scaled"

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
        self.required = checked(self, "required", required, FROM_0_BELOW_1, 0.2)
        self.rate = checked(self, "rate", rate, ABOVE_0, 0.1)
        self.window = checked(self, "window", window, AT_LEAST_2, 20.0)
        self.confidence = checked(self, "confidence", confidence, AT_LEAST_0, 2.0)
        self.start = checked(self, "start", start, ABOVE_0_TO_1, 0.05)

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return that nothing was judged yet, and that there is no limit (a negative one)."""
        track = {"weight": 0.0, "observed": 0.0, "predicted": 0.0, "observed_square": 0.0}
        last = {
            "last_mean_loss": 0.0,
            "last_prediction": 0.0,
            "last_step_size": 0.0,
            "last_lr": 0.0,
        }
        return {"trusted": _NONE, **track, **last}

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3), limited by what is trusted; see `StepRule`."""
        has_started = memory["trusted"] >= 0
        track = self._track(stats.loss, memory, has_started)
        theta, uncapped = truncate(stats, stats.lower_bound)
        lr = stats.learning_rate

        lowered = torch.where(memory["last_lr"] > lr, lr / memory["last_lr"], 1.0)
        followed = self._followed(track, memory) * lowered
        # A model that does not descend, or is at the bound, has no step size to start from.
        can_start = (stats.predicted_decrease > 0) & (uncapped > 0) & (lr > 0)
        first = torch.where(can_start, self.start * uncapped * lr, _NONE)
        trusted = torch.where(has_started, followed, first)

        limit = torch.where((trusted >= 0) & (lr > 0), trusted / lr, math.inf)
        theta = torch.minimum(theta, limit)
        last = {
            "last_mean_loss": stats.mean_loss.clone(),
            "last_prediction": stats.model_value - _product(theta, stats.predicted_decrease),
            "last_step_size": theta * lr,
            "last_lr": lr.clone(),
        }
        remembered = {"trusted": trusted, **track, **last}
        return StepDecision(theta, torch.minimum(uncapped, limit), stats.lower_bound, remembered)

    def _track(
        self, loss: Tensor, memory: Mapping[str, Tensor], has_started: Tensor
    ) -> dict[str, Tensor]:
        """Return the averages, with the last step in them."""
        observed = memory["last_mean_loss"] - loss
        values = {
            "weight": torch.ones_like(loss),
            "observed": observed,
            "predicted": memory["last_mean_loss"] - memory["last_prediction"],
            "observed_square": observed.square(),
        }
        kept = 1.0 - 1.0 / self.window
        return {
            name: torch.where(has_started, kept * memory[name] + (1.0 - kept) * value, 0.0)
            for name, value in values.items()
        }

    def _followed(self, track: Mapping[str, Tensor], memory: Mapping[str, Tensor]) -> Tensor:
        """Return the step size that is trusted after the verdict on the last step."""
        trusted, taken = memory["trusted"], memory["last_step_size"]
        grown = torch.maximum(trusted, taken * torch.exp(self.rate * self._growth(track)))
        # A limit that did not hold the step back comes down to it, but not to a step of length 0.
        base = torch.maximum(torch.minimum(trusted, taken), trusted / 2)
        shortfall = self._shortfall(track)
        shrunk = base * torch.exp(self.rate * shortfall)
        followed = torch.where(shortfall < 0, shrunk, grown)
        # Without a bound there was no step size to start from, and there is no limit ever.
        return torch.where(trusted == math.inf, trusted, followed)

    def _growth(self, track: Mapping[str, Tensor]) -> Tensor:
        """Return q of a step size that may grow, from 0 to 1."""
        surplus, predicted = self._surplus(track)
        return torch.where(surplus > 0, (surplus / predicted).clamp(max=1.0), 0.0)

    def _shortfall(self, track: Mapping[str, Tensor]) -> Tensor:
        """Return q of a step size that must shrink, from -1 to 0."""
        surplus, predicted = self._surplus(track)
        weight, kept = track["weight"], 1.0 - 1.0 / self.window
        # How many independent values of equal weight would average as well.
        count = (1.0 + kept) / (1.0 - kept) * weight / (2.0 - weight)
        mean = track["observed"] / weight
        scatter = (track["observed_square"] / weight - mean.square()).clamp(min=0.0)
        noise = self.confidence * (scatter / (count - 1.0)).sqrt()
        short = (surplus + noise) / (predicted + noise)
        # Squares that overflow tell of a loss that has exploded. One value has no scatter.
        short = torch.where(torch.isfinite(noise), short, -1.0).clamp(-1.0, 0.0)
        return torch.where((surplus < 0) & (count > 1.5), short, 0.0)

    def _surplus(self, track: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return A - c P and |P|."""
        observed, predicted = (track[name] / track["weight"] for name in ("observed", "predicted"))
        return observed - self.required * predicted, predicted.abs()


def _product(theta: Tensor, decrease: Tensor) -> Tensor:
    """Return by how much the model falls; where nothing moves, an overflow does not count."""
    return torch.where(theta == 0, 0.0, theta * decrease)

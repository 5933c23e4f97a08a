"""MoMo*: the truncated momentum model with a lower bound that is estimated on the fly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from momo_wrap.rules.base import StepDecision, StepRule, truncate
from momo_wrap.rules.stats import ModelStats


class MoMoStar(StepRule):
    """The truncated momentum model with a lower bound that is estimated on the fly.

        before (3):  if h < ρ f*:  f* = max( h/(2ρ), f*_0 )                                (6)
        after  (4):  f* = max( (f̄ + e - ½ θ Σ_i α_i ⟨d_i, u_i⟩)/ρ , f*_0 )                 (7)

    Source: arXiv 2305.07583, section 4 (MoMo*), with the user's bound f*_0 as a safeguard.

    Args:
        lower_bound: f*_0, where the estimate starts, and below which it never falls.
    """

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return the estimate before the first step: the user's bound."""
        return {"lower_bound": lower_bound}

    def foresee(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> Tensor:
        """Return 1, the base's step; see `StepRule`."""
        return torch.ones_like(stats.learning_rate)

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3) with the bound of (6), and the next bound of (7)."""
        floor = stats.lower_bound
        bound = memory["lower_bound"].clamp(min=floor)  # a checkpoint may have a lower bound
        reset = (stats.value_after_decay / 2).clamp(min=floor)  # (6)
        bound = torch.where(stats.value_after_decay < bound, reset, bound)
        theta, uncapped = truncate(stats, bound)
        estimate = stats.value - theta * stats.gradient_decrease / 2  # (7)
        return StepDecision(theta, uncapped, bound, {"lower_bound": estimate.clamp(min=floor)})

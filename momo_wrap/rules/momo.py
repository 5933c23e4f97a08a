"""MoMo: the truncated momentum model with a known lower bound."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from momo_wrap.rules.base import StepDecision, StepRule, truncate
from momo_wrap.rules.stats import ModelStats


class MoMo(StepRule):
    """The truncated momentum model with a known lower bound, equation (3).

        θ = clip( (h - ρ f*) / N , 0, 1 )

    Source: arXiv 2305.07583, MoMo and MoMo-Adam, sections 2 and 3. θ α is the paper's ρ_k τ_k.

    Args:
        lower_bound: f*, see `StepRule`.
    """

    def foresee(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> Tensor:
        """Return 1, the base's step; see `StepRule`."""
        return torch.ones_like(stats.learning_rate)

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3); see `StepRule`."""
        theta, uncapped = truncate(stats, stats.lower_bound)
        return StepDecision(theta, uncapped, stats.lower_bound)

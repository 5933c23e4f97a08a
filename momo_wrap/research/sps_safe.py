"""SPS_safe: the stochastic Polyak step with a safeguard in the denominator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from momo_wrap.research.sps_max import polyak_step
from momo_wrap.rules import ModelStats, StepDecision, StepRule
from momo_wrap.rules.arguments import ABOVE_0, Setting


@dataclass(eq=False, repr=False)
class SPSSafe(StepRule):
    """The stochastic Polyak step that does not grow where the gradient vanishes.

        θ = clip( (f_k + (h - f̄ - e)/ρ - f*) / max( N/ρ , α M ) , 0, 1 )

    as in `SPSMax`, to which it adds M. For a base without momentum and preconditioner, and without
    weight decay, θ α is the paper's step

        γ_k = (f_k - ℓ*) / max( ‖g_k‖² , M )

    capped at α, which the paper does not have: use a large learning rate. With a preconditioner,
    ‖g_k‖² is that of D^{-1}; with momentum N is the slope of the average of gradients.

    Source: Oikonomou and Loizou, "Safeguarded Stochastic Polyak Step Sizes for Non-smooth
    Optimization: Robust Performance Without Small (Sub)Gradients", ICML 2026, arXiv 2512.02342. Its
    ℓ*, a lower bound of the loss of the batch, is the argument of `step(lower_bound=...)`, or else
    f*.

    Args:
        lower_bound: f*, see `StepRule`.
        safeguard: M, above 0, a squared norm of a gradient.

    Raises:
        TypeError: A setting is not a number.
        ValueError: `safeguard` is not positive.
    """

    _: KW_ONLY
    safeguard: Setting = Setting(ABOVE_0, 1.0)

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ from the loss of this batch, over a slope of at least M; see `StepRule`."""
        least = self.safeguard * stats.learning_rate
        return polyak_step(stats, torch.maximum(stats.predicted_decrease, least))

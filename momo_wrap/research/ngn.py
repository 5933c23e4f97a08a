"""NGN: the non-negative Gauss-Newton step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from momo_wrap.rules import ModelStats, StepDecision, StepRule, truncate


class NGN(StepRule):
    """A softened truncation: the non-negative Gauss-Newton step.

        θ = 1 / ( 1 + N / (2 (h - ρ f*)) )

    θ is below 1 for every step that descends, and near it where the whole step would take a small
    part of the gap. With α -> inf, θ α tends to twice the uncapped step of MoMo. θ is 0 where the
    model is at the bound or below it.

    Source: Orvieto and Xiao, "An Adaptive Stochastic Gradient Method with Non-negative Gauss-Newton
    Stepsizes", arXiv 2407.04358, γ_k = σ / (1 + σ ‖∇f_i‖² / (2 f_i)) with σ = α. It is the
    Gauss-Newton step on r², where r = sqrt(f); here f is the height of the momentum model above
    f*, and for a base without momentum and preconditioner the paper's f_i with f* = 0.

    Args:
        lower_bound: f*, see `StepRule`; with `-math.inf` nothing is cut.
    """

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of the Gauss-Newton step; see `StepRule`."""
        _, ratio = truncate(stats, stats.lower_bound)  # (h - ρ f*)/N, from 0 to inf
        theta = 1.0 / (1.0 + 0.5 / ratio)
        return StepDecision(theta, theta, stats.lower_bound)

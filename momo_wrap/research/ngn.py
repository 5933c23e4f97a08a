"""NGN: the non-negative Gauss-Newton step, for the loss of a batch and for the momentum model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from momo_wrap.research.sps_max import of_batch
from momo_wrap.rules import ModelStats, StepDecision, StepRule, truncate


class ModelNGN(StepRule):
    """A softened truncation of the momentum model: the Gauss-Newton step on its square root.

        θ = 1 / ( 1 + N / (2 (h - ρ f*)) )

    θ is below 1 for every step that descends, and close to 1 if the full step would close a small
    part of the gap. With α -> inf, θ α tends to twice the uncapped step of MoMo. θ is 0 if the
    model is at the bound or below it.

    It is `NGN` with the gap of the momentum model instead of the loss of the batch. It is neither
    NGN-M nor NGN-MD; see `momo_wrap.research.HeavyBall` for these.

    Args:
        lower_bound: f*, see `StepRule`; with `-math.inf` no step is shortened.
    """

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of the Gauss-Newton step; see `StepRule`."""
        _, ratio = truncate(stats, stats.lower_bound)  # (h - ρ f*)/N, from 0 to inf
        theta = 1.0 / (1.0 + 0.5 / ratio)
        return StepDecision(theta, theta, stats.lower_bound)


class NGN(ModelNGN):
    """The non-negative Gauss-Newton step of the loss of this batch.

        θ = 1 / ( 1 + (N/ρ) / (2 (f_k + (h - f̄ - e)/ρ - f*)) )

    where (h - f̄ - e)/ρ, the change of the model by weight decay, is 0 without it. For a base
    without momentum, θ α is the paper's

        γ_k = σ / (1 + σ ‖g_k‖² / (2 f_k)) ,    σ = α, f* = 0

    exactly; with a preconditioner, ‖g_k‖² is that of D^{-1}. With `momo_wrap.research.HeavyBall` as
    the base it is NGN-M, and with `beta2` NGN-MDv1. With the momentum of other bases, N is the
    slope of an average of gradients, see `SPSMax`.

    Sources: Orvieto and Xiao, "An Adaptive Stochastic Gradient Method with Non-negative
    Gauss-Newton Stepsizes", arXiv 2407.04358; with momentum "Enhancing Optimizer Stability:
    Momentum Adaptation of The NGN Step-size", arXiv 2508.15071.

    Args:
        lower_bound: f*, see `StepRule`; with `-math.inf` no step is shortened.
    """

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of the Gauss-Newton step on the batch; see `StepRule`."""
        return super().__call__(of_batch(stats), memory)

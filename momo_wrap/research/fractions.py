"""Rules with another θ than equation (3) for the same lower bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from momo_wrap.rules import ModelStats, StepDecision, StepRule, scaled, truncate
from momo_wrap.rules.arguments import ABOVE_0, ABOVE_0_TO_1, AT_LEAST_1, checked


class SPSMax(StepRule):
    """The capped stochastic Polyak step: the loss of this batch in place of the average.

        θ = clip( (f_k + (h - f̄ - e)/ρ - f*) / (c N/ρ) , 0, 1 )

    where (h - f̄ - e)/ρ, what weight decay does to the model, is 0 without it. For a base without
    momentum and preconditioner, and without weight decay, θ α is the paper's

        γ_k = min( (f_k - f*) / (c ‖g_k‖²) , γ_b ) ,    γ_b = α

    exactly, and MoMo is the case c = 1. With a preconditioner, ‖g_k‖² is that of D^{-1}. With
    momentum the direction is the base's d_k, whose slope N is that of an average of gradients: the
    inner product of the gradient of this batch with the direction would take a further pass over
    it, which the wrapper does not make. So the rule then answers only what the memory of losses and
    displacements in MoMo's model is good for.

    Source: Loizou, Vaswani, Laradji and Lacoste-Julien, "Stochastic Polyak Step-size for SGD: An
    Adaptive Learning Rate for Fast Convergence", AISTATS 2021, arXiv 2002.10542, SPS_max. Its
    f_i*, the least value of the loss of a batch, is the one bound f* here.

    Args:
        lower_bound: f*, see `StepRule`.
        c: The factor of the squared norm, above 0. The paper's theory for convex losses asks for at
            least 1/2.

    Raises:
        TypeError: A setting is not a number.
        ValueError: `c` is not positive.
    """

    def __init__(self, lower_bound: float = 0.0, *, c: float = 1.0) -> None:
        super().__init__(lower_bound)
        self.c = checked(self, "c", c, ABOVE_0, 1.0)

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of the loss of this batch alone; see `StepRule`."""
        by_decay = stats.value_after_decay - stats.value
        batch = replace(
            stats,
            value_after_decay=stats.loss + by_decay,
            predicted_decrease=self.c * stats.predicted_decrease,
        )
        theta, uncapped = truncate(batch, stats.lower_bound)
        return StepDecision(theta, uncapped, stats.lower_bound)


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


class LimitedGrowth(StepRule):
    """MoMo whose θ grows by at most a factor per step.

        θ_k = min( θ of (3) , factor · max(θ_{k-1}, floor) ) ,    θ_0 = 1

    After a batch of small loss θ is small; on the next batch it could jump back to 1. Without the
    floor, a step with θ = 0 would be the last one. An infinite factor gives MoMo.

    Source: after the smoothing of SPS_max in the experiments of Loizou et al., arXiv 2002.10542,
    where γ_k is at most γ_{k-1} times a factor that doubles it in an epoch. Here θ is limited, not
    θ α, so that a scheduler may raise α as it likes.

    Args:
        lower_bound: f*, see `StepRule`.
        factor: The largest ratio of θ to the θ of the step before, at least 1.
        floor: The θ that growth starts from where the last one was smaller, above 0.

    Raises:
        TypeError: A setting is not a number.
        ValueError: A setting is out of range.
    """

    def __init__(
        self, lower_bound: float = 0.0, *, factor: float = 2.0, floor: float = 1e-3
    ) -> None:
        super().__init__(lower_bound)
        self.factor = checked(self, "factor", factor, AT_LEAST_1, 2.0)
        self.floor = checked(self, "floor", floor, ABOVE_0_TO_1, 1e-3)

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return that the first step may be whole."""
        return {"last_theta": 1.0}

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3), limited by the last one; see `StepRule`."""
        theta, uncapped = truncate(stats, stats.lower_bound)
        theta = torch.minimum(theta, self.factor * memory["last_theta"])
        remembered = {"last_theta": theta.clamp(min=self.floor)}
        return StepDecision(theta, uncapped, stats.lower_bound, remembered)


class TrustRegion(StepRule):
    """MoMo with a cap on θ that follows how well the model foretold the last step.

        Δ̂ = m_{k-1} - m_k                                 the decrease that was observed
        Δ  = m_{k-1} - h_{k-1}/ρ + θ_{k-1} N_{k-1}/ρ       the decrease that was predicted
        r <- max( r/4 , floor )   if Δ̂ < Δ/4
        r <- min( 2 r , 1 )       if Δ̂ > 3Δ/4 and the last θ was the radius r
        θ_k = min( θ of (3) , r )

    where m_k = (f̄ + e)/ρ is the model's value at the parameters, and r = 1 at first. Where Δ is not
    positive, nothing is judged.

    m_k is made of the loss of this batch by the weight b/R only, (1 - β) for Adam, and of the old
    model by the rest. So Δ̂/Δ is 1 less that fraction of the surprise: noise of batches is damped,
    and so is the test. Without momentum, m_k is the loss of one batch, and noise decides.

    Source: Nocedal and Wright, Numerical Optimization, 2nd edition, Algorithm 4.1. Different here:
    the radius is of θ, not of a norm; a step that was bad can't be taken back; and the radius has a
    floor, since with noise it would otherwise shrink for good.

    Args:
        lower_bound: f*, see `StepRule`. With `-math.inf`, the region alone limits the steps.
        floor: The smallest radius, above 0 and at most 1; 1 gives MoMo.

    Raises:
        TypeError: A setting is not a number.
        ValueError: `floor` is out of range.
    """

    def __init__(self, lower_bound: float = 0.0, *, floor: float = 1e-3) -> None:
        super().__init__(lower_bound)
        self.floor = checked(self, "floor", floor, ABOVE_0_TO_1, 1e-3)

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return that there is no prediction to judge, and no limit."""
        return {"last_value": 0.0, "last_prediction": 0.0, "last_theta": 1.0, "radius": 1.0}

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3), limited by the radius; see `StepRule`."""
        radius = self._radius(stats.value, memory)
        theta, uncapped = truncate(stats, stats.lower_bound)
        theta = torch.minimum(theta, radius)
        by_decay = stats.value - stats.value_after_decay
        by_step = scaled(stats.predicted_decrease, theta)
        remembered = {
            "last_value": stats.value.clone(),
            "last_prediction": by_decay + by_step,
            "last_theta": theta.clone(),
            "radius": radius,
        }
        return StepDecision(theta, uncapped, stats.lower_bound, remembered)

    def _radius(self, value: Tensor, memory: Mapping[str, Tensor]) -> Tensor:
        radius, predicted = memory["radius"], memory["last_prediction"]
        observed = memory["last_value"] - value
        at_edge = memory["last_theta"] >= radius
        bad = (predicted > 0) & (observed < 0.25 * predicted)
        good = (predicted > 0) & (observed > 0.75 * predicted) & at_edge
        grown = torch.where(good, (2.0 * radius).clamp(max=1.0), radius)
        return torch.where(bad, (0.25 * radius).clamp(min=self.floor), grown)

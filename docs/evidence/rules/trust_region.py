"""A trust region for θ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from momo_wrap.rules import ModelStats, StepDecision, StepRule, scaled, truncate
from momo_wrap.rules.arguments import ABOVE_0_TO_1, Setting


@dataclass(eq=False, repr=False)
class TrustRegion(StepRule):
    """MoMo with a cap on θ that follows how well the model predicted the last step.

        Δ̂ = m_{k-1} - m_k                                 the observed decrease
        Δ  = m_{k-1} - h_{k-1}/ρ + θ_{k-1} N_{k-1}/ρ       the predicted decrease
        r <- max( r/4 , floor )   if Δ̂ < Δ/4
        r <- min( 2 r , 1 )       if Δ̂ > 3Δ/4 and the last θ was the radius r
        θ_k = min( θ of (3) , r )

    where m_k = (f̄ + e)/ρ is the model's value at the parameters, and r = 1 at first. If Δ is not
    positive, r does not change.

    The loss of this batch has the weight b/R in m_k, (1 - β) for Adam, and the old model the rest.
    So Δ̂/Δ deviates from 1 only by that fraction of the prediction error: the noise of batches is
    damped, and so is the test. Without momentum, m_k is the loss of one batch, and noise decides.

    Source: Nocedal and Wright, Numerical Optimization, 2nd edition, Algorithm 4.1. Different here:
    the radius limits θ, not a norm; a bad step can't be undone; and the radius has a floor, because
    with noise it would otherwise shrink for good.

    Args:
        lower_bound: f*, see `StepRule`. With `-math.inf`, only the region limits the steps.
        floor: The smallest radius, above 0 and at most 1; 1 gives MoMo.

    Raises:
        TypeError: A setting is not a number.
        ValueError: `floor` is out of range.
    """

    _: KW_ONLY
    floor: Setting = Setting(ABOVE_0_TO_1, 1e-3)

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return a memory without a prediction or a limit."""
        return {"last_value": 0.0, "last_prediction": 0.0, "last_theta": 1.0, "radius": 1.0}

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3), limited by the radius; see `StepRule`."""
        radius = self._radius(stats.value, memory)
        theta, uncapped = truncate(stats, stats.lower_bound)
        theta = torch.minimum(theta, radius)
        by_decay = stats.value - stats.value_after_decay
        by_step = scaled(stats.predicted_decrease, theta)
        new_memory = {
            "last_value": stats.value.clone(),
            "last_prediction": by_decay + by_step,
            "last_theta": theta.clone(),
            "radius": radius,
        }
        return StepDecision(theta, uncapped, stats.lower_bound, new_memory)

    def _radius(self, value: Tensor, memory: Mapping[str, Tensor]) -> Tensor:
        radius, predicted = memory["radius"], memory["last_prediction"]
        observed = memory["last_value"] - value
        at_edge = memory["last_theta"] >= radius
        bad = (predicted > 0) & (observed < 0.25 * predicted)
        good = (predicted > 0) & (observed > 0.75 * predicted) & at_edge
        grown = torch.where(good, (2.0 * radius).clamp(max=1.0), radius)
        return torch.where(bad, (0.25 * radius).clamp(min=self.floor), grown)

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

    _: KW_ONLY
    floor: Setting = Setting(ABOVE_0_TO_1, 1e-3)

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

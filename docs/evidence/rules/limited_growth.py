"""A limit on how fast θ may grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from momo_wrap.rules import ModelStats, StepDecision, StepRule, truncate
from momo_wrap.rules.arguments import ABOVE_0_TO_1, AT_LEAST_1, Setting


@dataclass(eq=False, repr=False)
class LimitedGrowth(StepRule):
    """MoMo whose θ grows by at most a factor per step.

        θ_k = min( θ of (3) , factor · max(θ_{k-1}, floor) ) ,    θ_0 = 1

    After a batch of small loss θ is small; on the next batch it could jump back to 1. Without the
    floor, a step with θ = 0 would be the last one. An infinite factor gives MoMo.

    Source: after the smoothing of SPS_max in the experiments of Loizou et al., arXiv 2002.10542,
    where γ_k is at most γ_{k-1} times a factor that doubles it in an epoch. Here θ is limited, not
    θ α, so a scheduler may raise α.

    Args:
        lower_bound: f*, see `StepRule`.
        factor: The largest ratio of θ to the last θ, at least 1.
        floor: The least θ from which growth starts, above 0 and at most 1.

    Raises:
        TypeError: A setting is not a number.
        ValueError: A setting is out of range.
    """

    _: KW_ONLY
    factor: Setting = Setting(AT_LEAST_1, 2.0)
    floor: Setting = Setting(ABOVE_0_TO_1, 1e-3)

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return 1: the first step may be full."""
        return {"last_theta": 1.0}

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3), limited by the last one; see `StepRule`."""
        theta, uncapped = truncate(stats, stats.lower_bound)
        theta = torch.minimum(theta, self.factor * memory["last_theta"])
        new_memory = {"last_theta": theta.clamp(min=self.floor)}
        return StepDecision(theta, uncapped, stats.lower_bound, new_memory)

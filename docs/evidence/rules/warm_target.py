"""A warm-up of Polyak's step size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from momo_wrap.rules import ModelStats, StepDecision, StepRule, truncate
from momo_wrap.rules.arguments import ABOVE_0, Setting


@dataclass(eq=False, repr=False)
class WarmTarget(StepRule):
    """MoMo whose target starts close to the model and falls to the lower bound.

        f*_k = f* + (1 - η_k) max( m_k - f* , 0 ) ,    η_k = min( k/steps , 1 ) ,    k = 1, 2, ...

    where m_k = (f̄ + e)/ρ is the model's value at the parameters. For f* = 0 and a positive m_k the
    target is (1 - η_k) m_k. Without weight decay, the uncapped step is η_k times that of MoMo; from
    k = steps on, the rule is MoMo. A step that the learning rate limits does not change.

    Source: this library; we know of no paper to cite. It is a warm-up of Polyak's step size, for
    the first steps, when the average of the losses contains few losses.

    Args:
        lower_bound: f*, see `StepRule`. With `-math.inf` no step is shortened.
        steps: The number of steps until the target is the lower bound, above 0.

    Raises:
        TypeError: A setting is not a number.
        ValueError: `steps` is not positive.
    """

    _: KW_ONLY
    steps: Setting = Setting(ABOVE_0, 20)

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return 0: no step is counted."""
        return {"step_count": 0.0}

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3) with the target of this step; see `StepRule`."""
        floor = stats.lower_bound
        step = memory["step_count"] + 1.0
        value, eta = stats.value, (step / self.steps).clamp(max=1.0)
        # Down from the value, because the floor may be -inf. Exactly the floor at η = 1.
        warm = (value - eta * (value - floor)).clamp(min=floor)
        target = torch.where(eta < 1.0, warm, floor)
        theta, uncapped = truncate(stats, target)
        return StepDecision(theta, uncapped, target, {"step_count": step})

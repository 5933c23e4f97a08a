"""A target that moves towards the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from momo_wrap.rules import ModelStats, StepDecision, StepRule, truncate
from momo_wrap.rules.arguments import FINITE, FROM_0_BELOW_1, FROM_0_TO_1, Setting


@dataclass(eq=False, repr=False)
class MovingTarget(StepRule):
    """MoMo with a target that moves towards the model, and is pulled back to the lower bound.

        before (3):  t'_k    = t_k + γ ( h_k/ρ_k - t_k ) ,    the target instead of f*
        after  (4):  t_{k+1} = f* + (1 - λ) ( t'_k - f* ) ,    t_1 = f*

    If the loss can't reach f*, the target settles between f* and the loss, and the steps get
    shorter: if h/ρ stays δ above f*, then t settles (1 - λ) γ δ / (γ + λ - γ λ) above it. With γ =
    0 the rule is MoMo.

    Source: after Gower, Defazio and Rabbat, "Stochastic Polyak Stepsize with a Moving Target",
    arXiv 2106.11851, sections on TAPS and MOTAPS. Their method keeps a target α_i for each data
    point and a target τ of the mean of all α_i. A sampled i projects (w, α_i) jointly onto the
    linear model of f_i(w) = α_i,

        w <- w - s ∇f_i ,    α_i <- α_i + s ,    s = (f_i - α_i) / (‖∇f_i‖² + 1)

    and at random times τ is pulled towards 0, by a factor λ, and the α_i towards τ. Here there is
    one model of the loss instead of all f_i, so all α_i and τ are the scalar t, and both
    projections are made at every step. The "1" that weighs moves of the target against moves of the
    parameters has the unit of a squared gradient. It is replaced by γ/(1 - γ) times the squared
    norm that belongs to N, so γ has no unit: the target covers the fraction γ of the gap, the step
    the rest. The paper's convergence theory does not carry over.

    Args:
        lower_bound: f*, which must be finite, because the target starts there.
        speed: γ, the fraction of the gap that the target covers, at least 0 and below 1.
        pull: λ, the fraction by which the target is pulled back at each step, from 0 to 1.

    Raises:
        TypeError: A setting is not a number.
        ValueError: A setting is out of range.
    """

    lower_bound: Setting = Setting(FINITE, 0.0)
    _: KW_ONLY
    speed: Setting = Setting(FROM_0_BELOW_1, 0.05)
    pull: Setting = Setting(FROM_0_TO_1, 0.1)

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return the target before the first step: the user's bound."""
        return {"target": lower_bound}

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3) with the target of this step; see `StepRule`."""
        floor = stats.lower_bound
        last = memory["target"].clamp(min=floor)  # a checkpoint may have a lower bound
        target = (last + self.speed * (stats.value_after_decay - last)).clamp(min=floor)
        theta, uncapped = truncate(stats, target)
        drawn_back = floor + (1.0 - self.pull) * (target - floor)
        return StepDecision(theta, uncapped, target, {"target": drawn_back})

"""SPS_max: the stochastic Polyak step with a cap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace

from torch import Tensor

from momo_wrap.rules import ModelStats, StepDecision, StepRule, truncate
from momo_wrap.rules.arguments import ABOVE_0, Setting


@dataclass(eq=False, repr=False)
class SPSMax(StepRule):
    """The capped stochastic Polyak step: the loss of this batch instead of the average.

        θ = clip( (f_k + (h - f̄ - e)/ρ - f*) / (c N/ρ) , 0, 1 )

    where (h - f̄ - e)/ρ, the change of the model by weight decay, is 0 without it. For a base
    without momentum and preconditioner, and without weight decay, θ α is the paper's

        γ_k = min( (f_k - f*) / (c ‖g_k‖²) , γ_b ) ,    γ_b = α

    exactly, and MoMo is the case c = 1. With a preconditioner, ‖g_k‖² is that of D^{-1}. With
    momentum the direction is the base's d_k, and its slope N that of an average of gradients,
    because the inner product of the gradient of this batch with the direction would take another
    pass over memory. So with momentum the rule only shows the effect of the averages of losses and
    displacements in MoMo's model.

    Source: Loizou, Vaswani, Laradji and Lacoste-Julien, "Stochastic Polyak Step-size for SGD: An
    Adaptive Learning Rate for Fast Convergence", AISTATS 2021, arXiv 2002.10542, SPS_max. Its f_i*,
    the minimum of the loss of a batch, is the argument of `step(lower_bound=...)`, or else the
    bound f*.

    Args:
        lower_bound: f*, see `StepRule`.
        c: The factor of the squared norm, above 0. The paper's theory for convex losses needs at
            least 1/2.

    Raises:
        TypeError: A setting is not a number.
        ValueError: `c` is not positive.
    """

    _: KW_ONLY
    c: Setting = Setting(ABOVE_0, 1.0)

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ from the loss of this batch; see `StepRule`."""
        return polyak_step(stats, self.c * stats.predicted_decrease)


def polyak_step(stats: ModelStats, decrease: Tensor) -> StepDecision:
    """Return the Polyak step of the loss of this batch; the full step lowers it by `decrease`."""
    seen = replace(of_batch(stats), predicted_decrease=decrease)
    theta, uncapped = truncate(seen, stats.lower_bound)
    return StepDecision(theta, uncapped, stats.lower_bound)


def of_batch(stats: ModelStats) -> ModelStats:
    """Return the statistics with the loss of this batch instead of the average."""
    by_decay = stats.value_after_decay - stats.value
    return replace(stats, value_after_decay=stats.loss + by_decay)

"""A rule with a fraction of its own for each parameter group."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from momo_wrap.rules import ModelStats, StepDecision, StepRule, truncate


class PerGroup(StepRule):
    """Truncates each parameter group by itself, as if it were the only one that ever moved.

        h_i = f̄_i + e_i + (c_i - 1) ⟨d_i, x_i⟩ ,    N_i = c_i α_i ⟨d_i, u_i⟩
        θ_i = clip( (h_i - ρ_i f*) / N_i , 0, 1 )
        x_i <- c_i ( x_i - θ_i α_i u_i )

    The model of group i has all the losses, averaged as the group averages, and the displacement
    e_i, the decay and the decrease of the group alone. These are the steps of a wrapper with `MoMo`
    for each group, all of which are given the same loss. With one group it is `MoMo`, as it is
    where all other groups rest. Each step minimises

        max{ m_i(x_i) , f* } + (1/ρ_i) [ ‖x_i - x_{k,i}‖²_{D_i}/(2 α_i) + (λ_i/2) ‖x_i‖²_{D_i} ]

    over x_i, with the group's model m_i of `ModelStats.by_group`.

    Every group may close the whole gap to f* by its own step, so that G groups together may lower
    the joint model by G times the gap. Without momentum and weight decay, θ_i is never below the
    one θ of `MoMo`, and θ_i = min(1, θ Σ_j N_j/N_i) where that θ is below 1.

    Source: equation (3) of MoMo, arXiv 2305.07583, which has no groups, for each group. It is not
    what momo-opt 0.1.0 does with several groups. That takes

        τ_i = min( α_i/ρ , max( (1 + α_i λ_i)(f̄ - γ - ρ f*) + ⟨d, x⟩ , 0 ) / ‖d‖²_{D^{-1}} )

    where γ, ⟨d, x⟩ and ‖d‖² are sums over all groups, so that only the cap α_i and the decay λ_i
    are those of the group.

    Args:
        lower_bound: f*, see `StepRule`.
    """

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ_i of each group, of shape [groups]; see `StepRule`."""
        theta, uncapped = truncate(stats.by_group, stats.lower_bound)
        return StepDecision(theta, uncapped, stats.lower_bound)

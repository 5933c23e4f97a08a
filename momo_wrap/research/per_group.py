"""A rule with a separate fraction for each parameter group."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from momo_wrap.rules import ModelStats, StepDecision, StepRule, truncate


class PerGroup(StepRule):
    """Truncates each parameter group separately, as if no other group moved.

        h_i = f̄_i + e_i + (c_i - 1) ⟨d_i, x_i⟩ ,    N_i = c_i α_i ⟨d_i, u_i⟩
        θ_i = clip( (h_i - ρ_i f*) / N_i , 0, 1 )
        x_i <- c_i ( x_i - θ_i α_i u_i )

    The model of group i contains all losses, averaged with the weights of the group, and only the
    group's displacement e_i, decay and decrease. These are the steps of separate wrappers with
    `MoMo`, one for each group, with the same loss. With one group, or if all other groups have
    lr=0, it is `MoMo`. Each step minimizes

        max{ m_i(x_i) , f* } + (1/ρ_i) [ ‖x_i - x_{k,i}‖²_{D_i}/(2 α_i) + (λ_i/2) ‖x_i‖²_{D_i} ]

    over x_i, with the group's model m_i of `ModelStats.by_group`.

    Each group may close the full gap to f*, so G groups together may lower the joint model by G
    times the gap. Without momentum and weight decay, θ_i is never below the one θ of `MoMo`, and
    θ_i = min(1, θ Σ_j N_j/N_i) where that θ is below 1.

    Source: equation (3) of MoMo, arXiv 2305.07583, which has no groups, for each group. momo-opt
    0.1.0 differs with several groups. It takes

        τ_i = min( α_i/ρ , max( (1 + α_i λ_i)(f̄ - γ - ρ f*) + ⟨d, x⟩ , 0 ) / ‖d‖²_{D^{-1}} )

    where γ, ⟨d, x⟩ and ‖d‖² are sums over all groups, so only the cap α_i and the decay λ_i depend
    on the group.

    Args:
        lower_bound: f*, see `StepRule`.
    """

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ_i of each group, of shape [groups]; see `StepRule`."""
        theta, uncapped = truncate(stats.by_group, stats.lower_bound)
        return StepDecision(theta, uncapped, stats.lower_bound)

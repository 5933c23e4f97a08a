"""DecSPS: the stochastic Polyak step that falls as the root of the number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from momo_wrap.research.sps_max import of_batch
from momo_wrap.rules import ModelStats, StepDecision, StepRule, truncate
from momo_wrap.rules.arguments import ABOVE_0, Setting


@dataclass(eq=False, repr=False)
class DecSPS(StepRule):
    """A Polyak step that never grows, and falls as 1/√k.

        γ_k = min( (f_k + (h - f̄ - e)/ρ - f*) / (N/(ρ α)) , c_{k-1} γ_{k-1} ) / c_k ,
        c_k = c √k ,    k = 1, 2, ... ,    c_0 γ_0 = c α ,    θ_k = min( γ_k/α_k , 1 )

    For a base without momentum and preconditioner, and without weight decay, it is the paper's

        γ_k = min( (f_k - ℓ*)/‖g_k‖² , c_{k-1} γ_{k-1} ) / c_k

    exactly. It converges to the minimizer of a convex loss with any bound below the losses, also
    one that can't be reached, so the bound needs no tuning; the price is a step size that never
    grows. A batch at its bound, where γ is 0, ends the training. With a preconditioner and momentum
    it changes as `SPSMax` does.

    Source: Orvieto, Lacoste-Julien and Loizou, "Dynamics of SGD with Stochastic Polyak Stepsizes:
    Truly Adaptive Variants and Convergence to Exact Solution", NeurIPS 2022, arXiv 2205.04583. Its
    ℓ*, a lower bound of the loss of the batch, is the argument of `step(lower_bound=...)`, or else
    f*.

    Args:
        lower_bound: f*, see `StepRule`. With `-math.inf` the step size is α/√k.
        c: c, above 0.

    Raises:
        TypeError: A setting is not a number.
        ValueError: `c` is not positive.
    """

    _: KW_ONLY
    c: Setting = Setting(ABOVE_0, 1.0)

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return zeros: no step is counted, and the first one has no limit."""
        return {"step_count": 0.0, "shortest": 0.0}

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of the shortest Polyak step so far, over c √k; see `StepRule`."""
        lr, step = stats.learning_rate, memory["step_count"] + 1.0
        tiny = torch.finfo(lr.dtype).tiny  # avoids 0/0 at a learning rate of 0
        before = torch.where(step > 1.0, memory["shortest"], self.c * lr)
        _, polyak = truncate(of_batch(stats), stats.lower_bound)
        shortest = torch.minimum(polyak, before / lr.clamp(min=tiny))
        uncapped = shortest / (self.c * step.sqrt())
        # A step that overflowed does not count.
        kept = torch.where(stats.predicted_decrease.isinf(), before, shortest * lr.clamp(min=tiny))
        new_memory = {"step_count": step, "shortest": kept}
        return StepDecision(uncapped.clamp(max=1.0), uncapped, stats.lower_bound, new_memory)

"""Rules that aim at another number than the user's lower bound: equation (3) with f*_k for f*."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real

import torch
from torch import Tensor

from momo_wrap.rules import ModelStats, StepDecision, StepRule, truncate
from momo_wrap.rules.arguments import ABOVE_0, FROM_0_BELOW_1, FROM_0_TO_1, checked


class ScheduledBound(StepRule):
    """MoMo with a lower bound that is a function of the step count.

        f*_k = max( l(k) , f* ) ,    k = 1, 2, ...

    For a bound that falls as training goes on, such as a fraction of what a scaling law predicts
    for step k. Where the bound is above the loss, no step is taken until it has fallen.

    Source: equation (3) of MoMo, arXiv 2305.07583, which leaves open where a bound f*_k comes from.

    Args:
        schedule: l, from the count of steps, a 0-dim tensor, to a 0-dim tensor or a number, in the
            sense of minimisation. It is traced and never waits for the device, so no `if` on k:
            `torch.where`. A lambda can't be pickled; `LinearSchedule` and `PowerLaw` can.
        lower_bound: f*, which the bound never falls below; `-math.inf` for the schedule alone.

    The count is kept in the wrapper's dtype: in float32 it ends at 2^24 steps. Skipped steps are
    not counted.

    Raises:
        TypeError: `schedule` can't be called; at a step: it returned neither.
    """

    def __init__(
        self, schedule: Callable[[Tensor], Tensor | float], lower_bound: float = 0.0
    ) -> None:
        super().__init__(lower_bound)
        if not callable(schedule):
            raise TypeError(
                f"schedule must be a function of the step count, got {type(schedule).__name__}. "
                "Write ScheduledBound(LinearSchedule(2.0, 0.5, steps=1000))."
            )
        self.schedule = schedule

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return that no step was counted."""
        return {"step_count": 0.0}

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3) with the bound of this step; see `StepRule`."""
        step = memory["step_count"] + 1.0
        bound = _as_bound(self.schedule(step), step).clamp(min=stats.lower_bound)
        theta, uncapped = truncate(stats, bound)
        return StepDecision(theta, uncapped, bound, {"step_count": step})


def _as_bound(value: object, like: Tensor) -> Tensor:
    if isinstance(value, Tensor) and value.dim() == 0:
        return value.to(like)
    if isinstance(value, Real):
        return torch.full_like(like, float(value))
    found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise TypeError(
        f"The schedule must return a 0-dim tensor or a number, got {found}. Compute it from the "
        "step count that it is given, which is 0-dim."
    )


class WarmTarget(StepRule):
    """MoMo that asks for a part of the way to the bound at first, and for more with every step.

        f*_k = f* + (1 - η_k) max( m_k - f* , 0 ) ,    η_k = min( k/steps , 1 ) ,    k = 1, 2, ...

    where m_k = (f̄ + e)/ρ is the model's value at the parameters. For f* = 0 and a positive m_k the
    target is (1 - η_k) m_k. Without weight decay, the uncapped step is η_k times that of MoMo; from
    k = steps on, the rule is MoMo. A step that the learning rate limits anyway is not changed.

    Source: a warm-up of Polyak's step size, for the first steps, when the average of the losses is
    made of a few. It is this library's; we know of no paper to cite.

    Args:
        lower_bound: f*, see `StepRule`. With `-math.inf` nothing is ever cut.
        steps: The number of steps until the bound itself is aimed at, above 0.

    Raises:
        TypeError: A setting is not a number.
        ValueError: `steps` is not positive.
    """

    def __init__(self, lower_bound: float = 0.0, *, steps: float = 20) -> None:
        super().__init__(lower_bound)
        self.steps = checked(self, "steps", steps, ABOVE_0, 20)

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return that no step was counted."""
        return {"step_count": 0.0}

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3) with the target of this step; see `StepRule`."""
        floor = stats.lower_bound
        step = memory["step_count"] + 1.0
        value, eta = stats.value, (step / self.steps).clamp(max=1.0)
        # Down from the value, not up from a floor that may be -inf. At η = 1, not up to rounding.
        warm = (value - eta * (value - floor)).clamp(min=floor)
        target = torch.where(eta < 1.0, warm, floor)
        theta, uncapped = truncate(stats, target)
        return StepDecision(theta, uncapped, target, {"step_count": step})


class MovingTarget(StepRule):
    """MoMo with a target that goes to meet the model, and is drawn back to the lower bound.

        before (3):  t'_k    = t_k + γ ( h_k/ρ_k - t_k ) ,    aimed at in place of f*
        after  (4):  t_{k+1} = f* + (1 - λ) ( t'_k - f* ) ,    t_1 = f*

    Where the loss can't be brought down to f*, the target settles between f* and the loss, and the
    steps get shorter: if h/ρ stays δ above f*, then t settles (1 - λ) γ δ / (γ + λ - γ λ) above it.
    With γ = 0 the rule is MoMo.

    Source: after Gower, Defazio and Rabbat, "Stochastic Polyak Stepsize with a Moving Target",
    arXiv 2106.11851, sections on TAPS and MOTAPS. Their method keeps a target α_i for each data
    point and a target τ of the mean of all α_i. A sampled i projects (w, α_i) jointly onto the
    linear model of f_i(w) = α_i,

        w <- w - s ∇f_i ,    α_i <- α_i + s ,    s = (f_i - α_i) / (‖∇f_i‖² + 1)

    and at random times τ is drawn towards 0, by a factor λ, and the α_i to τ. Here there is no
    index of a data point, and one model of the loss in place of all f_i, so all α_i and τ are the
    one scalar t, and both projections are done at every step. The "1" that weighs moves of the
    target against moves of the parameters has the unit of a squared gradient. In its place is
    γ/(1 - γ) times the squared norm that belongs to N, so that γ has no unit: the target covers the
    fraction γ of the gap, the step the rest. The paper's convergence theory does not carry over.

    Args:
        lower_bound: f*, which must be finite, as the target starts there.
        speed: γ, the fraction of the gap that the target covers, at least 0 and below 1.
        pull: λ, how far it is drawn back at each step, from 0 to 1.

    Raises:
        TypeError: A setting is not a number.
        ValueError: A setting is out of range.
    """

    def __init__(self, lower_bound: float = 0.0, *, speed: float = 0.05, pull: float = 0.1) -> None:
        super().__init__(lower_bound)
        if math.isinf(self.lower_bound):
            raise ValueError(
                "MovingTarget has an infinite lower_bound, but its target starts there. Write "
                "MovingTarget(lower_bound=0.0)."
            )
        self.speed = checked(self, "speed", speed, FROM_0_BELOW_1, 0.05)
        self.pull = checked(self, "pull", pull, FROM_0_TO_1, 0.1)

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return the target before the first step: the user's bound."""
        return {"target": lower_bound}

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of equation (3) with the target of this step; see `StepRule`."""
        floor = stats.lower_bound
        last = memory["target"].clamp(min=floor)  # the floor may be higher since a checkpoint
        target = (last + self.speed * (stats.value_after_decay - last)).clamp(min=floor)
        theta, uncapped = truncate(stats, target)
        drawn_back = floor + (1.0 - self.pull) * (target - floor)
        return StepDecision(theta, uncapped, target, {"target": drawn_back})

"""A lower bound that is a function of the step count, and such functions.

Unlike a lambda, the functions here can be pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias

import torch
from torch import Tensor

from momo_wrap.rules import ModelStats, StepDecision, StepRule, truncate
from momo_wrap.rules.arguments import ABOVE_0, checked

Schedule: TypeAlias = Callable[[Tensor], Tensor | float]


class ScheduledBound(StepRule):
    """MoMo with a lower bound that is a function of the step count.

        f*_k = max( l(k) , f* ) ,    k = 1, 2, ...

    For a bound that falls during training, such as a fraction of the prediction of a scaling law
    for step k. While the bound is above the loss, no step is taken.

    Source: equation (3) of MoMo, arXiv 2305.07583, which allows any bound f*_k.

    Args:
        schedule: l, a function from the step count, a 0-dim tensor, to a 0-dim tensor or a number,
            in the sense of minimization. It must not synchronize with the host: write
            `torch.where`, not `if`. A lambda can't be pickled; `LinearSchedule` and `PowerLaw` can.
        lower_bound: f*, below which the bound never falls; `-math.inf` for the schedule only.

    The count is kept in the wrapper's dtype: in float32 it ends at 2^24 steps. Skipped steps are
    not counted.

    Raises:
        TypeError: `schedule` can't be called, or at a step, it returned neither a 0-dim tensor nor
            a number.
    """

    def __init__(self, schedule: Schedule, lower_bound: float = 0.0) -> None:
        super().__init__(lower_bound)
        self.schedule = schedule

    @property
    def schedule(self) -> Schedule:
        """The function of the step count, checked when it is set."""
        schedule: Schedule = vars(self)["schedule"]
        return schedule

    @schedule.setter
    def schedule(self, schedule: Schedule) -> None:
        if not callable(schedule):
            raise TypeError(
                f"schedule must be a function of the step count, got {type(schedule).__name__}. "
                "Write ScheduledBound(LinearSchedule(2.0, 0.5, steps=1000))."
            )
        vars(self)["schedule"] = schedule

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return 0: no step is counted."""
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
        f"The schedule must return a 0-dim tensor or a number, got {found}. Compute it from its "
        "argument, the step count, which is 0-dim."
    )


@dataclass(frozen=True)
class LinearSchedule:
    """From one value to another in equal steps, then constant.

        l_k = start + (end - start) min(k/steps, 1)

    Attributes:
        start: The value at k = 0; steps count from 1.
        end: The value from k = steps on.
        steps: The number of steps from `start` to `end`, above 0.

    Raises:
        TypeError: `steps` is not a number.
        ValueError: `steps` is not positive.
    """

    start: float
    end: float
    steps: float

    def __post_init__(self) -> None:
        checked(self, "steps", self.steps, ABOVE_0, 1000.0)

    def __call__(self, step: Tensor) -> Tensor:
        """Return l_k of k, 0-dim."""
        return self.start + (self.end - self.start) * (step / self.steps).clamp(max=1.0)


@dataclass(frozen=True)
class PowerLaw:
    """A power law, as fitted to training curves.

        l_k = offset + scale k^(-exponent)

    Source: the form of Hoffmann et al., "Training Compute-Optimal Large Language Models", NeurIPS
    2022, arXiv 2203.15556, L(N, D) = E + A N^(-α) + B D^(-β), at a fixed number of parameters N,
    where the data D grow in proportion to the steps.

    Attributes:
        offset: The loss after infinitely many steps.
        scale: The distance of step 1 from `offset`.
        exponent: The rate at which the loss approaches `offset`, above 0.

    Raises:
        TypeError: `exponent` is not a number.
        ValueError: `exponent` is not positive.
    """

    offset: float
    scale: float
    exponent: float

    def __post_init__(self) -> None:
        checked(self, "exponent", self.exponent, ABOVE_0, 0.3)

    def __call__(self, step: Tensor) -> Tensor:
        """Return l_k of k, 0-dim."""
        return self.offset + self.scale * step.pow(-self.exponent)

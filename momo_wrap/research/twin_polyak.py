"""Twin Polyak: two copies of a model, each of which is the lower bound of the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from momo_wrap.rules import ModelStats, StepDecision, StepRule, WeightDecayForm, truncate
from momo_wrap.rules.arguments import ABOVE_0, Setting


class TwinPolyak(StepRule):
    """Moves the worse of two copies of a model by its Polyak step to the loss of the better one.

        θ_x = clip( (h_x - h_y) / (c N_x/ρ) , 0, 1 )
        θ_y = clip( (h_y - h_x) / (c N_y/ρ) , 0, 1 )

    where h_x and h_y are the values that the momentum models of the two have at their parameters.
    No bound is needed. The first half of the parameter groups is one copy, the second half the
    other; they start at different parameters and see the same batches. Over `torch.optim.SGD` with
    the same momentum in all groups it is the published method but for the cap, the learning rate.

    Give `step()` the difference of the losses, and the gradients of their sum:

        >>> groups = [{"params": first.parameters()}, {"params": second.parameters()}]
        >>> optimizer = MoMoWrapper(torch.optim.SGD(groups, lr=1e3, momentum=0.9), TwinPolyak())
        >>> loss, other = loss_of(first, batch), loss_of(second, batch)
        >>> (loss + other).backward()
        >>> optimizer.step(loss=loss - other)

    A momentum model is linear in the losses. So that of the difference, with the moves of one copy
    minus those of the other, is h_x - h_y, as long as all groups average alike. Weight decay is
    shortened with the step and is in neither loss. Which copy is better is told by a validation, or
    by `optimizer.last_step.theta`, which is 0 of the one that was better at the last step.

    Source: Abdukhakimov, Pham, Horváth, Takáč and Hanzely, "Polyak Stepsize: Estimating Optimal
    Functional Values Without Parameters or Prior Knowledge", arXiv 2508.17288, STP, with momentum.

    Args:
        c: The factor of the squared norm, above 0; the method has 1/2.

    Raises:
        TypeError: `c` is not a number.
        ValueError: `c` is not positive; at a step: the number of groups is odd.
    """

    c: Setting = Setting(ABOVE_0, 0.5)
    weight_decay_form: ClassVar[WeightDecayForm] = "scaled"

    def __init__(self, *, c: float = 0.5) -> None:
        super().__init__(-math.inf)
        self.c = c

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ of each group, 0 for those of the better copy; see `StepRule`."""
        groups = stats.groups
        count = 1 if groups is None else len(groups.displacement)
        if groups is None or count % 2:
            raise ValueError(
                f"TwinPolyak got {count} parameter groups, expected two, or twice as many as one "
                "copy of the model has. Write MoMoWrapper(SGD([{'params': first.parameters()}, "
                "{'params': second.parameters()}], lr=1e3, momentum=0.9), TwinPolyak())."
            )
        by_moves = (groups.displacement + groups.decay_shift).view(2, -1).sum(1)
        above = stats.mean_loss + by_moves[0] - by_moves[1]
        decrease = self.c * groups.predicted_decrease.view(2, -1).sum(1)
        twins = replace(
            stats, value_after_decay=torch.stack([above, -above]), predicted_decrease=decrease
        )
        theta, uncapped = (of.repeat_interleave(count // 2) for of in truncate(twins, 0.0))
        return StepDecision(theta, uncapped, stats.lower_bound)

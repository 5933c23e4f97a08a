"""What a step rule sees of the momentum model: a handful of small tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class GroupStats(NamedTuple):
    """What each parameter group contributes to the momentum model, of shape [groups].

    Attributes:
        mean_loss: f̄_i/ρ_i, the average of all losses, as the group averages.
        displacement: e_i/ρ_i, what the group's own moves have done to the model.
        decay_shift: (c_i - 1) ⟨d_i, x_i⟩/ρ_i, what its weight decay does.
        predicted_decrease: N_i/ρ_i.
        gradient_decrease: α_i ⟨d_i, u_i⟩/ρ_i.
    """

    mean_loss: Tensor
    displacement: Tensor
    decay_shift: Tensor
    predicted_decrease: Tensor
    gradient_decrease: Tensor


@dataclass(frozen=True)
class ModelStats:
    """What a step rule knows of this step. All tensors are on one device, and 0-dim.

    Values are those of a minimisation: for a base with `maximize=True` the loss and the bound have
    changed sign.

    Attributes:
        loss: f_k, the loss of this batch.
        mean_loss: f̄/ρ, the average of the losses so far.
        value: (f̄ + e)/ρ, the loss that the momentum model has at the current parameters.
        value_after_decay: h/ρ, the same after weight decay has done its part of the step; equal to
            `value` without weight decay.
        predicted_decrease: N/ρ, by how much the whole step of the base lowers the model.
        gradient_decrease: Σ_i α_i ⟨d_i, u_i⟩/ρ, the same without the shrinking factor of the
            proximal weight decay.
        lower_bound: The bound f* that the user gave.
        learning_rate: α, the largest learning rate of the parameter groups.
        groups: What each parameter group contributes, of shape [groups]; None: there is one group.
        probed_decrease: By how much the last step lowered the loss of this batch, which had no part
            in it, as a probe has measured it; NaN where there was none. 0-dim, also in `by_group`.
        probed_prediction: By how much the model predicted the loss to fall with that very move;
            NaN where the step was not measured.
        probed_slope: ⟨g, x - x'⟩ of that move from x to x' and the gradient g of this batch at x':
            by how much the loss would have fallen had it been as steep all the way as it is at the
            end. Likewise.
        step: The number of this step, from 1 on, a number on the host.
        has_probe: Whether `step()` was given a probe, likewise on the host.
        was_probed: Whether the last step was measured, by its slope alone or by a probe, likewise.
        is_scheduled: Whether a schedule sets the learning rate, likewise: it differs from the
            `initial_lr` that a scheduler has left in a group, or has changed between two steps. Of
            learning rates that are tensors this is not known.
    """

    loss: Tensor
    mean_loss: Tensor
    value: Tensor
    value_after_decay: Tensor
    predicted_decrease: Tensor
    gradient_decrease: Tensor
    lower_bound: float
    learning_rate: Tensor
    groups: GroupStats | None = None
    probed_decrease: Tensor = torch.tensor(math.nan)  # noqa: RUF009
    probed_prediction: Tensor = torch.tensor(math.nan)  # noqa: RUF009
    probed_slope: Tensor = torch.tensor(math.nan)  # noqa: RUF009
    step: int = 0
    has_probe: bool = False
    was_probed: bool = False
    is_scheduled: bool = False

    @classmethod
    def early(
        cls,
        loss: Tensor,
        unknown: Tensor,
        lower_bound: float,
        learning_rate: Tensor,
        known: Sequence[Any],
    ) -> ModelStats:
        """Return what is known before the model of a step; its own values are `unknown`."""
        model = (unknown,) * 5
        return cls(loss, *model, lower_bound, learning_rate, None, *known)

    @property
    def by_group(self) -> ModelStats:
        """The models of single groups, each as if no other had ever moved: shape [groups].

        That of group i has all the losses, and of displacement, weight decay and decrease the
        group's own:

            value:              (f̄_i + e_i)/ρ_i
            value_after_decay:  (f̄_i + e_i + (c_i - 1) ⟨d_i, x_i⟩)/ρ_i

        It is computed where it is asked for, so that other rules do not pay for it.
        """
        if self.groups is None:
            flat: dict[str, Any] = {
                name: value.reshape(-1)
                for name, value in vars(self).items()
                if isinstance(value, Tensor) and name not in _WHOLE
            }
            return replace(self, **flat)
        mean_loss, displacement, decay_shift, predicted_decrease, gradient_decrease = self.groups
        value = mean_loss + displacement
        return replace(
            self,
            loss=self.loss.expand_as(value),
            mean_loss=mean_loss,
            value=value,
            value_after_decay=value + decay_shift,
            predicted_decrease=predicted_decrease,
            gradient_decrease=gradient_decrease,
            groups=None,
        )


# Statistics that no group has by itself.
_WHOLE = ("learning_rate", "probed_decrease", "probed_prediction", "probed_slope")

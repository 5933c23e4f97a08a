"""The statistics of the momentum model that a step rule sees: a few small tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class GroupStats(NamedTuple):
    """The contribution of each parameter group to the momentum model, of shape [groups].

    Attributes:
        mean_loss: f̄_i/ρ_i, the average of the losses with the weights of the group.
        displacement: e_i/ρ_i, the change of the model by the group's moves.
        decay_shift: (c_i - 1) ⟨d_i, x_i⟩/ρ_i, the change of the model by the group's weight decay.
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
    """The statistics of one step. All tensors are on one device, and 0-dim.

    Values have the sense of minimization: for a base with `maximize=True`, the loss and the bound
    are negated.

    Attributes:
        loss: f_k, the loss of this batch.
        mean_loss: f̄/ρ, the average of the losses so far.
        value: (f̄ + e)/ρ, the value of the momentum model at the current parameters.
        value_after_decay: h/ρ, the value after weight decay has done its part of the step; equal to
            `value` without weight decay.
        predicted_decrease: N/ρ, how much the full step of the base lowers the model.
        gradient_decrease: Σ_i α_i ⟨d_i, u_i⟩/ρ, N/ρ without the factor of the proximal weight
            decay.
        lower_bound: f*, the user's bound, a Python number.
        learning_rate: α, the largest learning rate of the parameter groups.
        groups: The contribution of each parameter group, of shape [groups]; None for a single
            group.
        probed_decrease: How much the last step lowered the loss of this batch, which that step had
            not seen, as measured by a probe; NaN without a probe. 0-dim, also in `by_group`.
        probed_prediction: The decrease that the model predicted for that move; NaN if the step was
            not measured. 0-dim, also in `by_group`.
        probed_slope: ⟨g, x - x'⟩ for that move from x to x' and the gradient g of this batch at x':
            the decrease of the loss if it were as steep along the whole step as at its end. NaN and
            0-dim likewise.
        step: The number of this step, from 1 on, a Python number.
        has_probe: Whether `step()` got a probe, a Python bool.
        was_probed: Whether the last step was measured, by its slope or by a probe, a Python bool.
        is_scheduled: Whether a schedule sets the learning rate, a Python bool: it differs from a
            group's `initial_lr`, which schedulers write, or has changed between two steps. Learning
            rates that are tensors do not count.
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
        """Return the statistics before the model of a step is known.

        Args:
            loss: As in `ModelStats`.
            unknown: The values of the model: NaN, 0-dim.
            lower_bound: As in `ModelStats`.
            learning_rate: As in `ModelStats`.
            known: The last fields of `ModelStats`, in its order.
        """
        model = (unknown,) * 5
        return cls(loss, *model, lower_bound, learning_rate, None, *known)

    @property
    def by_group(self) -> ModelStats:
        """The models of single groups, each as if no other group had moved: shape [groups].

        The model of group i contains all losses, but only the group's displacement, weight decay
        and decrease:

            value:              (f̄_i + e_i)/ρ_i
            value_after_decay:  (f̄_i + e_i + (c_i - 1) ⟨d_i, x_i⟩)/ρ_i

        It is computed on access, so other rules do not pay for it.
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


# Statistics that single groups do not have.
_WHOLE = ("learning_rate", "probed_decrease", "probed_prediction", "probed_slope")

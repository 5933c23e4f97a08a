"""The momentum model of the loss: averages of losses and of displacements.

The base optimizer averages gradients as B_k = a B_{k-1} + b g_k and moves along a preconditioned
d_k = p B_k + q g_k. The same weights, applied to the losses, give a model of the loss around the
current parameters x_k (Schaipp, Ohana, Eickenberg, Defazio and Gower, "MoMo: Momentum Models for
Adaptive Learning Rates", ICML 2024, arXiv 2305.07583, section 2):

    F_k = a F_{k-1} + b f_k            R_k = a R_{k-1} + b
    E_k = a (E_{k-1} + ⟨B_{k-1}, x_k - x_{k-1}⟩)                                          (1)

    m(x) = (f̄ + e + ⟨d_k, x - x_k⟩) / ρ
    f̄ = p F_k + q f_k ,    e = p E_k ,    ρ = p R_k + q                                   (2)

The paper stores ⟨g_j, x_j⟩ where (1) stores how far the parameters have moved since, which needs
no pass over the parameters and no difference of two large numbers.

Each parameter group i has an averaging of its own, and so its own F, R, E and ρ. The groups are
linearised separately and added up,

    m(x) = Σ_i ω_i f̄_i/ρ_i + Σ_i ( e_i + ⟨d_i, x_i - x_{k,i}⟩ )/ρ_i                       (2')

where ω_i is the group's share of the decrease that is predicted for the step. Where all groups
average alike, this is (2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter, StepSums
from momo_wrap.averaging import HAS_HISTORY, Averaging, last_weight_sum
from momo_wrap.reductions import Scalar
from momo_wrap.rules import GroupStats, ModelStats
from momo_wrap.scalars import PREFIX, as_scalar, kept_scalars


@dataclass(frozen=True)
class MomentumModel:
    """The model (2') at the current parameters, and what (1) keeps for the next step.

    Attributes:
        loss_sum: F_k of each group, shape [groups], as all that follow.
        weight_sum: R_k.
        displacement: E_k.
        buffer_scale: p at this step; a number where it is the same for all groups.
        normaliser: ρ.
        mean_loss: f̄/ρ.
        mean_displacement: e/ρ.
    """

    loss_sum: Tensor
    weight_sum: Tensor
    displacement: Tensor
    buffer_scale: Scalar
    normaliser: Tensor
    mean_loss: Tensor
    mean_displacement: Tensor

    @classmethod
    def initial_scalars(cls, *, history: bool = False) -> dict[str, float]:
        """Return what each group keeps between steps, as it is before the first.

        Args:
            history: Whether the base's buffers have taken in gradients already. The model then
                starts as if all losses so far had been equal to the first one that it sees.
        """
        weight_sum = HAS_HISTORY if history else 0.0
        return {"loss_sum": 0.0, "weight_sum": weight_sum, "displacement": 0.0}

    @classmethod
    def of(
        cls, scalars: Mapping[str, Tensor], averagings: Sequence[Averaging], loss: Tensor
    ) -> MomentumModel:
        """Take in the loss of this step, equations (1) and (2).

        Args:
            scalars: The values kept since the last step, by the names of `initial_scalars`, each
                of shape [groups].
            averagings: How each group averages at this step.
            loss: The loss at the current parameters, 0-dim.

        Returns:
            The model. Nothing is changed.
        """

        def column(values: Sequence[Scalar]) -> Scalar:
            return _column(values, loss)

        a = column([averaging.decay for averaging in averagings])
        b = column([averaging.weight for averaging in averagings])
        p = column([averaging.buffer_scale for averaging in averagings])
        q = column([averaging.grad_scale for averaging in averagings])
        if any(averaging.first_weight is not None for averaging in averagings):
            first = column([_first_weight(averaging) for averaging in averagings])
            one = torch.ones_like(loss)  # two Python numbers would meet in float32
            b = torch.where(scalars["weight_sum"] == 0, first * one, b * one)
        last_sum = last_weight_sum(scalars["weight_sum"], a, b)
        has_history = scalars["weight_sum"] < 0
        loss_sum = a * torch.where(has_history, last_sum * loss, scalars["loss_sum"]) + b * loss
        weight_sum = a * last_sum + b  # R_k; above F_k
        displacement = a * scalars["displacement"]  # E_k
        corrected = [averaging.bias_corrected for averaging in averagings]
        if all(corrected):
            p = p / weight_sum
        elif any(corrected):
            mask = torch.stack([as_scalar(float(is_corrected), loss) for is_corrected in corrected])
            p = p / torch.where(mask > 0, weight_sum, 1.0)
        normaliser = p * weight_sum + q
        mean_loss = (p * loss_sum + q * loss) / normaliser
        mean_displacement = p * displacement / normaliser
        return cls(loss_sum, weight_sum, displacement, p, normaliser, mean_loss, mean_displacement)

    def total(self, sums: StepSums) -> ModelSums:
        """Add up the groups, equation (2').

        Args:
            sums: What each group contributes to the step, each of shape [groups].

        Returns:
            The model's values.
        """
        groups = GroupStats(
            mean_loss=self.mean_loss,
            displacement=self.mean_displacement,
            decay_shift=sums.decay_shift / self.normaliser,
            predicted_decrease=sums.predicted_decrease / self.normaliser,
            gradient_decrease=sums.gradient_decrease / self.normaliser,
        )
        shares = _shares(groups.predicted_decrease)
        mean_loss = (shares * groups.mean_loss).sum()
        value = mean_loss + groups.displacement.sum()
        return ModelSums(
            mean_loss=mean_loss,
            value=value,
            value_after_decay=value + groups.decay_shift.sum(),
            predicted_decrease=groups.predicted_decrease.sum(),
            gradient_decrease=groups.gradient_decrease.sum(),
            groups=groups,
        )

    def scalars_after(self, buffer_move: Tensor) -> dict[str, Tensor]:
        """Return what is kept for the next step, once the parameters have moved.

        Args:
            buffer_move: ⟨p B_k, x_{k+1} - x_k⟩ of each group, equation (5) times p, shape [groups].

        Returns:
            The values by the names of `initial_scalars`. The displacement already holds the move:
            the next step has only to multiply it by a.
        """
        # A product that overflowed must not turn into NaN in later steps.
        limit = torch.finfo(self.displacement.dtype).max / 1e6
        displacement = self.displacement + buffer_move / self.buffer_scale
        return {
            "loss_sum": self.loss_sum,
            "weight_sum": self.weight_sum,
            "displacement": displacement.clamp(-limit, limit),
        }


class ModelSums(NamedTuple):
    """The model over all groups, as 0-dim tensors, and what it is made of.

    Attributes:
        mean_loss: Σ_i ω_i f̄_i/ρ_i.
        value: m(x_k), the loss that the model has at the current parameters.
        value_after_decay: The same where weight decay has taken its part of the step, h/ρ.
        predicted_decrease: Σ_i N_i/ρ_i.
        gradient_decrease: Σ_i α_i ⟨d_i, u_i⟩/ρ_i.
        groups: What each group contributes.
    """

    mean_loss: Tensor
    value: Tensor
    value_after_decay: Tensor
    predicted_decrease: Tensor
    gradient_decrease: Tensor
    groups: GroupStats

    def statistics(self, loss: Tensor, lower_bound: float, learning_rate: Tensor) -> ModelStats:
        """Return what a step rule may ask for.

        Args:
            loss: The loss of this step, of the function that is minimised.
            lower_bound: The user's bound, likewise.
            learning_rate: The largest of the groups, 0-dim.
        """
        return ModelStats(
            loss=loss,
            mean_loss=self.mean_loss,
            value=self.value,
            value_after_decay=self.value_after_decay,
            predicted_decrease=self.predicted_decrease,
            gradient_decrease=self.gradient_decrease,
            lower_bound=lower_bound,
            learning_rate=learning_rate,
            groups=self.groups,
        )


def kept_model(base: Optimizer, adapter: Adapter, like: Tensor) -> list[dict[str, Tensor]]:
    """Return what the parameter groups keep of the model, making what is missing.

    Args:
        base: The optimizer that is wrapped.
        adapter: Its adapter.
        like: A tensor of the device and dtype that the scalars have.

    Returns:
        For each group, the names of `MomentumModel.initial_scalars` with the group's entries.
    """
    kept = []
    for optimizer, its_adapter in adapter.parts(base):
        for group in optimizer.param_groups:
            is_new = f"{PREFIX}weight_sum" not in group
            history = is_new and its_adapter.has_history(optimizer, group)
            initial = MomentumModel.initial_scalars(history=history)
            kept.append(kept_scalars(group, PREFIX, initial, like))
    return kept


def _column(values: Sequence[Scalar], like: Tensor) -> Scalar:
    """Return one value per group, or a number that all groups share."""
    first = values[0]
    if not isinstance(first, Tensor) and all(
        not isinstance(value, Tensor) and value == first for value in values
    ):
        return first
    return torch.stack([as_scalar(value, like) for value in values])


def _first_weight(averaging: Averaging) -> Scalar:
    return averaging.weight if averaging.first_weight is None else averaging.first_weight


def _shares(decreases: Tensor) -> Tensor | float:
    """Return ω, the groups' shares of the predicted decrease: positive, with the sum 1.

    Groups that do not descend have no share. Where none descends, all have the same.
    """
    if len(decreases) == 1:
        return 1.0
    descending = decreases.clamp(min=0.0)
    total = descending.sum()
    known = (total > 0) & torch.isfinite(total)
    uniform = torch.full_like(total, 1.0 / len(decreases))
    shares: Tensor = torch.where(known, descending / total, uniform)
    return shares

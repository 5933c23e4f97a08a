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

A group that joins late has no gradients of the losses before, but the losses are known: F_k/W_k is
then the level of the groups that were there, with a weight W_k of its own; for all others, W = R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from momo_wrap.adapters.averaging import Averaging
from momo_wrap.adapters.base import StepSums
from momo_wrap.engine.scalars import Scalar, vector
from momo_wrap.rules import GroupStats, ModelStats, scaled


class Start(Enum):
    """What a group's averages are made of before a step.

    Attributes:
        RUNNING: Of the steps so far.
        FRESH: Of nothing, as the base's buffers.
        HISTORY: The base's buffers have taken in gradients whose losses nobody knows. The model
            starts as if all losses so far had been equal to the first one that it sees.
        JOINED: The losses are those of the groups that were there, the buffers are empty.
    """

    RUNNING = 0
    FRESH = 1
    HISTORY = 2
    JOINED = 3


class Coefficients(NamedTuple):
    """What equations (1) and (2) multiply with, each of shape [.., groups].

    The averages are the sums (F, E) over the weights (W, R), two rows each.

    Attributes:
        decay: a, shape [1, groups].
        intake: What a step adds to ((F, E), (W, R)) besides the loss's share, [2, 2, groups].
        loss_intake: What it adds per unit of the loss, [2, 2, groups].
        buffer_scale: p before bias correction, [groups].
        grad_scale: q, [groups].
        corrected: 1 where p is divided by the weights, else 0.
        uncorrected: 1 - `corrected`.
        uses_gradient: Whether any q is not the number 0.
    """

    decay: Tensor
    intake: Tensor
    loss_intake: Tensor
    buffer_scale: Tensor
    grad_scale: Tensor
    corrected: Tensor
    uncorrected: Tensor
    uses_gradient: bool

    @classmethod
    def of(
        cls, averagings: Sequence[Averaging], starts: Sequence[Start], like: Tensor
    ) -> Coefficients:
        """Return the coefficients of a step.

        Args:
            averagings: How each group averages at this step.
            starts: What each group's averages are made of.
            like: A tensor of the device and dtype of the scalars.
        """
        pairs = list(zip(averagings, starts, strict=True))
        weight = vector([first_weight(averaging, start) for averaging, start in pairs], like)
        loss_weight = weight
        if Start.JOINED in starts:
            loss_weight = vector(
                [a.weight if s is Start.JOINED else first_weight(a, s) for a, s in pairs], like
            )
        zero = torch.zeros_like(weight)
        corrected = vector([float(averaging.bias_corrected) for averaging in averagings], like)
        return cls(
            decay=vector([averaging.decay for averaging in averagings], like),
            intake=torch.stack([zero, zero, loss_weight, weight]).view(2, 2, -1),
            loss_intake=torch.stack([loss_weight, zero, zero, zero]).view(2, 2, -1),
            buffer_scale=vector([averaging.buffer_scale for averaging in averagings], like),
            grad_scale=vector([averaging.grad_scale for averaging in averagings], like),
            corrected=corrected,
            uncorrected=1.0 - corrected,
            uses_gradient=any(averaging.uses_gradient for averaging in averagings),
        )


def first_weight(averaging: Averaging, start: Start) -> Scalar:
    """Return b, or what stands for it in the first step of a group.

    Args:
        averaging: How the group averages.
        start: What its averages are made of.
    """
    if start is Start.HISTORY:
        rest = 1.0 - averaging.decay
        # The sum of the weights of a long history, if there is one.
        never_ends = not isinstance(rest, Tensor) and rest <= 0.0
        return averaging.weight if never_ends else averaging.weight / rest
    if start is Start.RUNNING or averaging.first_weight is None:
        return averaging.weight
    return averaging.first_weight


@dataclass(frozen=True)
class MomentumModel:
    """The model (2') at the current parameters, and what (1) keeps for the next step.

    Attributes:
        averages: ((F_k, E_k), (W_k, R_k)) of each group, shape [2, 2, groups].
        buffer_scale: p at this step, [groups], as all that follow.
        normaliser: ρ.
        mean_loss: f̄/ρ.
        displacement: e/ρ.
    """

    averages: Tensor
    buffer_scale: Tensor
    normaliser: Tensor
    mean_loss: Tensor
    displacement: Tensor

    @classmethod
    def of(cls, averages: Tensor, coefficients: Coefficients, loss: Tensor) -> MomentumModel:
        """Take in the loss of this step, equations (1) and (2).

        Args:
            averages: Those of the last step, shape [2, 2, groups]; 0 where a group starts.
            coefficients: How the groups average.
            loss: The loss at the current parameters, 0-dim.

        Returns:
            The model. Nothing is changed.
        """
        c = coefficients
        intake = torch.addcmul(c.intake, c.loss_intake, loss)
        averages = torch.addcmul(intake, averages, c.decay)  # (1)
        sums, weights = averages.unbind()
        scales = c.buffer_scale / torch.addcmul(c.uncorrected, c.corrected, weights)  # p
        normalisers = torch.addcmul(c.grad_scale, scales, weights)  # ρ
        sums = scales * sums
        if c.uses_gradient:
            shown = torch.stack([c.grad_scale * loss, torch.zeros_like(c.grad_scale)])
            sums = sums + shown
        mean_loss, displacement = (sums / normalisers).unbind()  # (2)
        return cls(averages, scales[1], normalisers[1], mean_loss, displacement)

    def stats(
        self, sums: StepSums, loss: Tensor, lower_bound: float, learning_rate: Tensor
    ) -> ModelStats:
        """Add up the groups, equation (2').

        Args:
            sums: What each group contributes to the step.
            loss: The loss of this step, of the function that is minimised.
            lower_bound: The user's bound, likewise.
            learning_rate: The largest of the groups, 0-dim.

        Returns:
            What a step rule may ask for.
        """
        predicted, gradient, shift, *_ = sums
        one_decrease = predicted is gradient
        rows = [predicted] if one_decrease else [predicted, gradient, shift]
        own = torch.stack(rows) / self.normaliser
        by_group = GroupStats(
            mean_loss=self.mean_loss,
            displacement=self.displacement,
            decay_shift=shift if one_decrease else own[2],
            predicted_decrease=own[0],
            gradient_decrease=own[0] if one_decrease else own[1],
        )
        mean = self.mean_loss * _shares(own[0]) if len(predicted) > 1 else self.mean_loss
        totals = torch.cat([torch.stack([mean, self.displacement]), own]).sum(1).unbind()
        value = totals[0] + totals[1]
        return ModelStats(
            loss=loss,
            mean_loss=totals[0],
            value=value,
            value_after_decay=value if one_decrease else value + totals[4],
            predicted_decrease=totals[2],
            gradient_decrease=totals[2] if one_decrease else totals[3],
            lower_bound=lower_bound,
            learning_rate=learning_rate,
            groups=by_group,
        )

    def after(self, sums: StepSums, thetas: Tensor) -> Tensor:
        """Return the averages that are kept for the next step, equation (5).

        Args:
            sums: What each group contributes to the step.
            thetas: The fraction that is taken, 0-dim or of shape [groups].

        Returns:
            Shape [2, 2, groups]. E already holds the move: the next step has only to multiply by a.
        """
        move = scaled(sums.buffer_move, thetas)
        if sums.predicted_decrease is not sums.gradient_decrease:
            move = move + sums.buffer_move_by_decay
        # A product that overflowed must not turn into NaN in later steps.
        limit = torch.finfo(move.dtype).max / 1e6
        self.averages[0, 1].add_(move / self.buffer_scale).clamp_(-limit, limit)
        return self.averages


def _shares(decreases: Tensor) -> Tensor:
    """Return ω, the groups' shares of the predicted decrease: positive, with the sum 1.

    Groups that do not descend have no share. Where none descends, all have the same.
    """
    descending = decreases.clamp(min=0.0)
    total = descending.sum()
    known = (total > 0) & torch.isfinite(total)
    uniform = torch.full_like(total, 1.0 / len(decreases))
    return torch.where(known, descending / total, uniform)

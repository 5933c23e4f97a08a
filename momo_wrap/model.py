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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from momo_wrap.engine.scalars import Scalar, vector
from momo_wrap.rules import GroupStats, ModelStats

# What each parameter group contributes to the model of a step. Its move is Δ(θ) = θ s + t, where s
# follows the preconditioned direction u = D^{-1} d and t is the weight decay:
#     -⟨d, s⟩, with proximal decay c α ⟨d, u⟩, the group's share of N in (3);
#     ⟨p B, s⟩, for (5);
#     α ⟨d, u⟩, for (7);
#     (c - 1) ⟨d, x⟩, the group's share of h in (3);
#     ⟨p B, t⟩, for (5).
# Where there is no t, the third is the first and the others are 0, and they may be left out.
SUMS = (
    "predicted_decrease",
    "buffer_move",
    "gradient_decrease",
    "decay_shift",
    "buffer_move_by_decay",
)


@dataclass(frozen=True)
class Averaging:
    """How a base optimizer averages gradients: B_k = a B_{k-1} + b g_k, d_k = p B_k + q g_k.

    Each value is a Python number or a 0-dim tensor.

    Attributes:
        decay: a, the weight of the old buffer.
        weight: b, the weight of the new gradient.
        first_weight: b at the very first step, where it differs (SGD starts its buffer with the
            whole gradient); None: the same as `weight`.
        buffer_scale: p, the buffer's factor in the direction.
        grad_scale: q, the gradient's factor in the direction (Nesterov momentum).
        bias_corrected: p is `buffer_scale` / R_k with R_k the sum of the weights in the buffer, so
            that the direction is made of a weighted mean of gradients, as in Adam.

    Raises:
        ValueError: `buffer_scale` is 0.
    """

    decay: Scalar
    weight: Scalar
    first_weight: Scalar | None = None
    buffer_scale: Scalar = 1.0
    grad_scale: Scalar = 0.0
    bias_corrected: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.buffer_scale, Tensor) and self.buffer_scale == 0:
            raise ValueError(
                "Averaging has buffer_scale=0, so the buffer would not count. For a direction that "
                "is the gradient itself, write Averaging(decay=0.0, weight=1.0)."
            )

    @property
    def uses_gradient(self) -> bool:
        """Whether the direction has a term in the gradient itself (q is not the number 0)."""
        return isinstance(self.grad_scale, Tensor) or self.grad_scale != 0.0

    @property
    def is_gradient(self) -> bool:
        """Whether the buffer is the gradient itself (a is the number 0 and b the number 1)."""
        coefficients = (self.decay, self.weight)
        return not any(isinstance(c, Tensor) for c in coefficients) and coefficients == (0.0, 1.0)


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
    """What equations (1) and (2) multiply with, by group.

    The averages are the sums F and E over the weights W and R.

    Attributes:
        decay: a, [groups].
        intake: What a step adds to F, E, W, R besides the loss's share, [4, groups].
        loss_intake: What it adds per unit of the loss, [4, groups].
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
            intake=torch.stack([zero, zero, loss_weight, weight]),
            loss_intake=torch.stack([loss_weight, zero, zero, zero]),
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
        averages: F_k, E_k, W_k and R_k of each group, shape [4, groups].
        buffer_scale: p at this step, [groups].
        normaliser: ρ, [groups].
        levels: f̄/ρ and e/ρ, [2, groups].
    """

    averages: Tensor
    buffer_scale: Tensor
    normaliser: Tensor
    levels: Tensor

    @classmethod
    def of(cls, averages: Tensor, coefficients: Coefficients, loss: Tensor) -> MomentumModel:
        """Take in the loss of this step, equations (1) and (2).

        Args:
            averages: Those of the last step, shape [4, groups]; 0 where a group starts.
            coefficients: How the groups average.
            loss: The loss at the current parameters, 0-dim.

        Returns:
            The model. Nothing is changed.
        """
        c = coefficients
        intake = torch.addcmul(c.intake, c.loss_intake, loss)
        averages = torch.addcmul(intake, averages, c.decay)  # (1)
        sums, weights = averages.split_with_sizes([2, 2])
        scales = c.buffer_scale / torch.addcmul(c.uncorrected, c.corrected, weights)  # p
        if not c.uses_gradient:  # p is in f̄, e and ρ alike
            scale = scales[1]
            return cls(averages, scale, scale * weights[1], sums / weights)  # (2)
        shown, normalisers = scales * sums, torch.addcmul(c.grad_scale, scales, weights)  # ρ
        shown[0].addcmul_(c.grad_scale, loss)
        return cls(averages, scales[1], normalisers[1], shown / normalisers)  # (2)

    def stats(
        self,
        sums: Tensor,
        loss: Tensor,
        lower_bound: float,
        learning_rate: Tensor,
        probed: Sequence[Any] = (),
    ) -> ModelStats:
        """Add up the groups, equation (2').

        Args:
            sums: What each group contributes to the step, the rows of `SUMS`.
            loss: The loss of this step, of the function that is minimised.
            lower_bound: The user's bound, likewise.
            learning_rate: The largest of the groups, 0-dim.
            probed: What `ModelStats` has of probes, in its order.

        Returns:
            What a step rule may ask for.
        """
        rows = torch.cat([self.levels, sums / self.normaliser])
        groups, totals = None, rows.view(-1)
        if rows.shape[1] > 1:
            mean, displacement, predicted, _, *more = rows.unbind()
            gradient, shift = more[:2] if more else (predicted, torch.zeros_like(predicted))
            groups = GroupStats(mean, displacement, shift, predicted, gradient)
            totals = torch.cat([(mean * _shares(predicted)).sum().view(1), rows[1:].sum(1)])
        mean, displacement, predicted, _, *more = totals.unbind()
        value = mean + displacement
        gradient, after_decay = (more[0], value + more[1]) if more else (predicted, value)
        known = (loss, mean, value, after_decay, predicted, gradient, lower_bound, learning_rate)
        return ModelStats(*known, groups, *probed)

    def after(self, sums: Tensor, thetas: Tensor) -> Tensor:
        """Return the averages that are kept for the next step, equation (5).

        Args:
            sums: As for `stats`.
            thetas: The fraction that is taken, 0-dim or of shape [groups].

        Returns:
            Shape [4, groups]. E already holds the move: the next step has only to multiply by a.
        """
        # A product that overflowed must not turn into NaN, now or in later steps.
        limit = torch.finfo(sums.dtype).max / 1e6
        _, move, *by_decay = sums.clamp(-limit, limit).unbind()
        move = torch.addcmul(by_decay[-1], move, thetas) if by_decay else move * thetas
        self.averages[1].addcdiv_(move, self.buffer_scale)
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

"""The momentum model at the current parameters, equations (1) to (2'') of `momo_wrap.model`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from momo_wrap.engine.scalars import Scalar
from momo_wrap.rules import GroupStats, ModelStats

# What each parameter group contributes to the model of a step. Its move is Δ(θ) = θ s + t, where s
# follows the preconditioned direction u = D^{-1} d and t is the weight decay:
#     -⟨d, s⟩, with proximal decay c α ⟨d, u⟩, the group's share of N in (3);
#     ⟨p B, s⟩, for (5);
#     α ⟨d, u⟩, for (7);
#     (c - 1) ⟨d, x⟩, the group's share of h in (3);
#     ⟨p B, t⟩, for (5).
# Without t, the third equals the first, the last two are 0, and all three may be omitted.
SUMS = (
    "predicted_decrease",
    "buffer_move",
    "gradient_decrease",
    "decay_shift",
    "buffer_move_by_decay",
)

# What a product that overflowed counts as.
_LARGEST = {dtype: torch.finfo(dtype).max / 1e6 for dtype in (torch.float32, torch.float64)}


@dataclass(frozen=True)
class Averaging:
    """How a base optimizer averages gradients: B_k = a B_{k-1} + b g_k, d_k = p B_k + q g_k.

    Each value is a Python number or a 0-dim tensor.

    Attributes:
        decay: a, the weight of the old buffer.
        weight: b, the weight of the new gradient.
        first_weight: b at the first step if it differs (SGD initializes its buffer with the
            gradient); None: the same as `weight`.
        buffer_scale: p, the buffer's factor in the direction.
        grad_scale: q, the gradient's factor in the direction (Nesterov momentum).
        bias_corrected: p is `buffer_scale` / R_k, where R_k is the sum of the weights in the
            buffer. The direction then contains a weighted mean of gradients, as in Adam.

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
                "Averaging got buffer_scale=0, expected another number, because the direction "
                "would not contain the buffer. For a direction that is the gradient, write "
                "Averaging(decay=0.0, weight=1.0)."
            )

    @property
    def uses_gradient(self) -> bool:
        """Whether the direction has a term in the gradient (q is not the number 0)."""
        return isinstance(self.grad_scale, Tensor) or self.grad_scale != 0.0

    @property
    def is_gradient(self) -> bool:
        """Whether the buffer is the gradient (a is the number 0 and b the number 1)."""
        coefficients = (self.decay, self.weight)
        return not any(isinstance(c, Tensor) for c in coefficients) and coefficients == (0.0, 1.0)


class Coefficients(NamedTuple):
    """The coefficients of equations (1) and (2), by group.

    The averages are the sums F and E over the weights W and R.

    Attributes:
        decay: a, [groups].
        intake: What a step adds to F, E, W, R besides the term in the loss, [4, groups].
        loss_intake: What a step adds per unit of the loss, [4, groups].
        buffer_scale: p before bias correction, [groups].
        grad_scale: q, [groups].
        corrected: 1 if p is divided by the weights, else 0; None: it is in all groups.
        uncorrected: 1 - `corrected`.
        uses_gradient: Whether any q is not the number 0.
    """

    decay: Tensor
    intake: Tensor
    loss_intake: Tensor
    buffer_scale: Tensor
    grad_scale: Tensor
    corrected: Tensor | None
    uncorrected: Tensor
    uses_gradient: bool


@dataclass(frozen=True)
class MomentumModel:
    """The model (2') at the current parameters, and the averages (1) for the next step.

    Attributes:
        averages: F_k, E_k, W_k and R_k of each group, shape [4, groups]; with clipped gradients
            also S_k, shape [5, groups].
        buffer_scale: p at this step, [groups].
        normalizer: ρ, [groups].
        levels: f̄/ρ and e/ρ, [2, groups].
    """

    averages: Tensor
    buffer_scale: Tensor
    normalizer: Tensor
    levels: Tensor

    @classmethod
    def of(
        cls,
        averages: Tensor,
        coefficients: Coefficients,
        loss: Tensor,
        clipping: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> MomentumModel:
        """Update the averages with the loss of this step, equations (1) and (2).

        Args:
            averages: The averages of the last step, shape [4, groups], or [5, groups] with clipped
                gradients; 0 for a group that starts.
            coefficients: How the groups average.
            loss: The loss at the current parameters, 0-dim.
            clipping: c, the factor by which gradients were clipped, 0-dim; None: no clipping.
            offsets: ⟨g, z - x⟩ of each group, [groups], for a model at a point z other than the
                parameters x; None: z = x.

        Returns:
            The model. The arguments are not changed.
        """
        c = coefficients
        if averages.size(0) > 4:
            clipping = torch.ones_like(loss) if clipping is None else clipping
            return cls._of_clipped(averages, c, loss, clipping, offsets)
        intake = torch.addcmul(c.intake, c.loss_intake, loss)
        if offsets is not None:
            intake[1].addcmul_(intake[3], offsets)  # (19)
        averages = torch.addcmul(intake, averages, c.decay)  # (1)
        sums, weights = averages.split_with_sizes([2, 2])
        divisor = own = weights if c.uses_gradient else weights[1]
        if c.corrected is not None:
            divisor = torch.addcmul(c.uncorrected, c.corrected, own)
        scales = c.buffer_scale / divisor  # p
        if not c.uses_gradient:  # p is in f̄, e and ρ alike
            return cls(averages, scales, scales * own, sums / weights)  # (2)
        shown, normalizers = scales * sums, torch.addcmul(c.grad_scale, scales, weights)  # ρ
        shown[0].addcmul_(c.grad_scale, loss)
        if offsets is not None:
            shown[1].addcmul_(c.grad_scale, offsets)
        return cls(averages, scales[1], normalizers[1], shown / normalizers)  # (2)

    @classmethod
    def _of_clipped(
        cls,
        averages: Tensor,
        c: Coefficients,
        loss: Tensor,
        clipping: Tensor,
        offsets: Tensor | None,
    ) -> MomentumModel:
        """Update the averages with a loss whose gradient was clipped, equation (2'')."""
        nothing, _, loss_weight, weight = c.intake.unbind()
        clipped = loss_weight * clipping
        offsets = nothing if offsets is None else offsets  # of the clipped gradient
        shift = weight * offsets
        intake = torch.stack([clipped * loss, shift, clipped, weight, weight * clipping])
        averages = torch.addcmul(intake, averages, c.decay)
        losses, moves, loss_weights, weights, clipped_weights = averages.unbind()
        divisor = weights
        if c.corrected is not None:
            divisor = torch.addcmul(c.uncorrected, c.corrected, weights)
        scale = c.buffer_scale / divisor  # p
        own = c.grad_scale * clipping
        normalizer = torch.addcmul(own, scale, clipped_weights)  # ρ
        mean = torch.addcmul(own * loss, scale, losses) / torch.addcmul(own, scale, loss_weights)
        displacement = torch.addcmul(c.grad_scale * offsets, scale, moves) / normalizer
        return cls(averages, scale, normalizer, torch.stack([mean, displacement]))

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
            sums: What each group contributes to the step, one row for each of `SUMS`, [2 or 5,
                groups].
            loss: The loss of this step in the sense of minimization, 0-dim.
            lower_bound: The user's bound in the sense of minimization.
            learning_rate: The largest learning rate of the groups, 0-dim.
            probed: The last fields of `ModelStats`, in its order.

        Returns:
            What a step rule receives.
        """
        rows = torch.cat([self.levels, sums / self.normalizer])
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
        """Return the averages for the next step, equation (5).

        Args:
            sums: As for `stats`.
            thetas: θ, 0-dim or of shape [groups].

        Returns:
            A tensor with the shape of `averages`. E already contains the move: the next step only
            multiplies by a.
        """
        # A product that overflowed must not turn into NaN, now or in later steps.
        limit = _LARGEST[sums.dtype]
        if sums.size(0) > 2:
            _, move, *_, by_decay = sums.clamp(-limit, limit).unbind()
            move = torch.addcmul(by_decay, move, thetas)
        else:
            move = sums[1].clamp(-limit, limit) * thetas
        self.averages[1].addcdiv_(move, self.buffer_scale)
        return self.averages


def loss_of_model(
    loss: Tensor,
    shift: Tensor | None,
    penalty: Tensor | None = None,
    clipping: Tensor | None = None,
) -> Tensor:
    """Return the loss that the model takes in: above the bound of the batch, with λ ‖x‖²/2.

    Args:
        loss: The loss of this step, of the function that is minimized.
        shift: By how much the bound of the batch is above that of the rule; None: it has none.
        penalty: λ ‖x‖²/2 of each group, where the base adds λ x to the gradients; None: nowhere.
        clipping: By what the gradients were multiplied, before λ x was added; None: they were not.
    """
    loss = loss if shift is None else loss - shift  # (18)
    if penalty is None:
        return loss
    return loss + (penalty.sum() if clipping is None else penalty.sum() / clipping)


def _shares(decreases: Tensor) -> Tensor:
    """Return ω, the groups' shares of the predicted decrease: positive, with the sum 1.

    Groups that do not descend have the share 0. If none descends, all shares are equal.
    """
    descending = decreases.clamp(min=0.0)
    total = descending.sum()
    known = (total > 0) & torch.isfinite(total)
    uniform = torch.full_like(total, 1.0 / len(decreases))
    return torch.where(known, descending / total, uniform)

"""Learning rates and weight decays of all parameter groups, and what equation (4) makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from momo_wrap.adapters.base import StepSums
from momo_wrap.engine.passes import Engine
from momo_wrap.engine.scalars import Scalar, as_number, comparable, vector
from momo_wrap.rules import WeightDecayForm


class Rates(NamedTuple):
    """The coefficients of a step, of shape [groups].

    All forms of weight decay are x <- keep x - θ pull u: proximal with keep = c and pull = c α,
    equation (4); decoupled with keep = 1 - α λ and pull = α; scaled with keep = 1 - θ α λ and pull
    = α, which is the fraction θ of the step α (u + λ x), equation (9).

    Attributes:
        lr: α.
        pull: The factor of θ u in the move.
        descent: c α, the factor of ⟨d, u⟩ in N; c = 1 where the decay is scaled.
        keep: What weight decay leaves of the parameters; None: there is none, or it is scaled.
        drop: keep - 1; None likewise.
        shift: c - 1; None likewise.
        scaled_decay: λ, where the decay is scaled; None: there is none, or of another form.
    """

    lr: Tensor
    pull: Tensor
    descent: Tensor
    keep: Tensor | None = None
    drop: Tensor | None = None
    shift: Tensor | None = None
    scaled_decay: Tensor | None = None

    @classmethod
    def of(
        cls,
        lrs: Sequence[Scalar],
        decays: Sequence[Scalar],
        form: WeightDecayForm | None,
        like: Tensor,
    ) -> Rates:
        """Return the coefficients.

        Args:
            lrs: α of each group, numbers or one-element tensors.
            decays: λ of each group.
            form: The form of weight decay; None: it is a part of the base's step already.
            like: A tensor of the wanted device and dtype.
        """
        # A schedule's rounding may leave a rate a little below 0.
        lr = vector([as_number(value) for value in lrs], like).clamp(min=0.0)
        if form is None:
            one = torch.ones_like(lr)
            return cls(lr, one, one)
        if not any(isinstance(decay, Tensor) or decay != 0.0 for decay in decays):
            return cls(lr, lr, lr)
        decay = vector([as_number(value) for value in decays], like)
        if form == "scaled":
            return cls(lr, lr, lr, scaled_decay=decay)
        by_decay = lr * decay
        shrink = 1.0 / (1.0 + by_decay)  # c
        descent, shift = shrink * lr, -by_decay * shrink
        if form == "proximal":
            return cls(lr, descent, descent, shrink, shift, shift)
        return cls(lr, lr, descent, 1.0 - by_decay, -by_decay, shift)

    @property
    def decays(self) -> bool:
        """Whether there is weight decay."""
        return self.keep is not None or self.scaled_decay is not None

    def sums(self, products: Tensor) -> StepSums:
        """Return what the groups contribute to the model of the step.

        Args:
            products: ⟨p B, u⟩ and ⟨q g, u⟩, with weight decay ⟨p B, x⟩ and ⟨q g, x⟩; shape
                [products, groups], where those with q g may be left out together.
        """
        rows = products.unbind()
        if not self.decays:
            buffer_u, d_u = _with_gradient(rows)
            decrease = self.descent * d_u
            move = decrease if d_u is buffer_u else self.pull * buffer_u
            zero = torch.zeros_like(decrease)
            return StepSums(decrease, decrease, zero, -move, zero)
        half = len(rows) // 2
        buffer_u, d_u = _with_gradient(rows[:half])
        buffer_x, d_x = _with_gradient(rows[half:])
        if self.scaled_decay is not None:
            d_u = torch.addcmul(d_u, self.scaled_decay, d_x)
            buffer_u = torch.addcmul(buffer_u, self.scaled_decay, buffer_x)
            zero, decrease = torch.zeros_like(d_u), self.lr * d_u
            return StepSums(decrease, decrease, zero, -(self.lr * buffer_u), zero)
        assert self.drop is not None
        assert self.shift is not None
        return StepSums(
            predicted_decrease=self.descent * d_u,
            gradient_decrease=self.lr * d_u,
            decay_shift=self.shift * d_x,
            buffer_move=-(self.pull * buffer_u),
            buffer_move_by_decay=self.drop * buffer_x,
        )


def _with_gradient(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return ⟨p B, v⟩ and ⟨d, v⟩ from ⟨p B, v⟩ and, where it is there, ⟨q g, v⟩."""
    return rows[0], rows[0] if len(rows) == 1 else rows[0] + rows[1]


def rates_of(
    engine: Engine,
    lrs: Sequence[Scalar],
    decays: Sequence[Scalar],
    form: WeightDecayForm | None,
    like: Tensor,
) -> Rates:
    """Return the coefficients, those of the last step where no setting has changed.

    Args:
        engine: What keeps them.
        lrs: α of each group, numbers or one-element tensors.
        decays: λ of each group.
        form: The form of weight decay; None: it is a part of the base's step already.
        like: A tensor of the wanted device and dtype.
    """
    settings = [comparable(value) for value in (*lrs, *decays)]
    key = (settings, form, like.device, like.dtype)
    return engine.kept("rates", key, lambda: Rates.of(lrs, decays, form, like))

"""The coefficients of equation (4), from the learning rates and weight decays of all groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from momo_wrap.engine.scalars import Scalar, as_number, vector
from momo_wrap.rules import WeightDecayForm


class Rates(NamedTuple):
    """The coefficients of a step, of shape [groups].

    The forms of weight decay are x <- keep x - θ pull u: proximal with keep = c and pull = c α,
    equation (4); decoupled with keep = 1 - α λ and pull = α; scaled with keep = 1 - θ α λ and pull
    = α, which is the fraction θ of the step α (u + λ x), equation (9). The form "base" is scaled if
    the base decouples its decay. If it adds λ x to the gradients, the step has no other decay.

    Attributes:
        lr: α.
        pull: The factor of θ u in the move.
        factors: The factors from inner products to `momo_wrap.model.SUMS`: c α and
            -pull for the first two, with weight decay α, c - 1 and keep - 1 for the others; c = 1
            where it is scaled. Shape [2 or 5, groups].
        keep: What weight decay leaves of the parameters, 1 where it is scaled; None: there is none.
        scaled_decay: λ, where the decay is scaled; None: there is none, or of another form.
        coupled_decay: λ of each group, where the base adds λ x to the gradients; None: it does not.
    """

    lr: Tensor
    pull: Tensor
    factors: Tensor
    keep: Tensor | None = None
    scaled_decay: Tensor | None = None
    coupled_decay: Sequence[Scalar] | None = None

    @classmethod
    def of(
        cls,
        groups: Sequence[Mapping[str, Any]],
        form: WeightDecayForm | None,
        like: Tensor,
        coupled: Sequence[bool] = (),
    ) -> Rates:
        """Return the coefficients of parameter groups; a missing learning rate counts as 1.

        Without a form, weight decay is already part of the base's step. `coupled` says for each
        group whether the base adds weight decay to the gradients and the form keeps that.
        """
        lrs = [1.0 if group.get("lr") is None else group["lr"] for group in groups]
        # A schedule's rounding may leave a learning rate slightly below 0.
        lr = vector([as_number(value) for value in lrs], like).clamp(min=0.0)
        if form is None:
            one = torch.ones_like(lr)
            return cls(lr, one, torch.stack([one, -one]))
        decays = [as_number(group.get("weight_decay", 0.0)) for group in groups]
        added = None
        if any(coupled):
            added = [decay if its else 0.0 for decay, its in zip(decays, coupled, strict=True)]
            decays = [0.0 if its else decay for decay, its in zip(decays, coupled, strict=True)]
            added = added if any(map(_is_some, added)) else None
        if not any(map(_is_some, decays)):
            return cls(lr, lr, torch.stack([lr, -lr]), coupled_decay=added)
        decay = vector(decays, like)
        if form in ("base", "scaled"):
            factors = torch.stack([lr, -lr])
            return cls(lr, lr, factors, torch.ones_like(lr), decay, added)
        by_decay = lr * decay
        shrink = 1.0 / (1.0 + by_decay)  # c
        descent, shift = shrink * lr, -by_decay * shrink
        if form == "proximal":
            factors = torch.stack([descent, -descent, lr, shift, shift])
            return cls(lr, descent, factors, shrink)
        factors = torch.stack([descent, -lr, lr, shift, -by_decay])
        return cls(lr, lr, factors, 1.0 - by_decay)


def _is_some(decay: Scalar) -> bool:
    """Return whether a weight decay is not the number 0."""
    return isinstance(decay, Tensor) or decay != 0.0

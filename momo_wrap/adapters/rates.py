"""Learning rates and weight decays of all parameter groups, and what equation (4) makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from momo_wrap.engine.scalars import Scalar, as_number, vector
from momo_wrap.rules import WeightDecayForm


class Rates(NamedTuple):
    """The coefficients of a step, of shape [groups].

    All forms of weight decay are x <- keep x - θ pull u: proximal with keep = c and pull = c α,
    equation (4); decoupled with keep = 1 - α λ and pull = α; scaled with keep = 1 - θ α λ and pull
    = α, which is the fraction θ of the step α (u + λ x), equation (9).

    Attributes:
        lr: α.
        pull: The factor of θ u in the move.
        factors: What the inner products are multiplied with, for `momo_wrap.model.SUMS`: c α and
            -pull for the first two, with weight decay α, c - 1 and keep - 1 for the others; c = 1
            where it is scaled. Shape [2 or 5, groups].
        keep: What weight decay leaves of the parameters; None: there is none, or it is scaled.
        scaled_decay: λ, where the decay is scaled; None: there is none, or of another form.
    """

    lr: Tensor
    pull: Tensor
    factors: Tensor
    keep: Tensor | None = None
    scaled_decay: Tensor | None = None

    @classmethod
    def of(
        cls, groups: Sequence[Mapping[str, Any]], form: WeightDecayForm | None, like: Tensor
    ) -> Rates:
        """Return the coefficients of parameter groups."""
        lrs = [1.0 if group.get("lr") is None else group["lr"] for group in groups]
        decays: list[Scalar] = [group.get("weight_decay", 0.0) for group in groups]
        # A schedule's rounding may leave a rate a little below 0.
        lr = vector([as_number(value) for value in lrs], like).clamp(min=0.0)
        if form is None:
            one = torch.ones_like(lr)
            return cls(lr, one, torch.stack([one, -one]))
        if not any(isinstance(decay, Tensor) or decay != 0.0 for decay in decays):
            return cls(lr, lr, torch.stack([lr, -lr]))
        decay = vector([as_number(value) for value in decays], like)
        if form == "scaled":
            return cls(lr, lr, torch.stack([lr, -lr]), scaled_decay=decay)
        by_decay = lr * decay
        shrink = 1.0 / (1.0 + by_decay)  # c
        descent, shift = shrink * lr, -by_decay * shrink
        if form == "proximal":
            factors = torch.stack([descent, -descent, lr, shift, shift])
            return cls(lr, descent, factors, shrink)
        factors = torch.stack([descent, -lr, lr, shift, -by_decay])
        return cls(lr, lr, factors, 1.0 - by_decay)

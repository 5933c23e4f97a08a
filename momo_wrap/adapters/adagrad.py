"""Adagrad, and the base class for preconditioned gradients without momentum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from momo_wrap.adapters.adam import wide
from momo_wrap.adapters.base import ParamGroup, State
from momo_wrap.adapters.planned_step import Reading
from momo_wrap.adapters.reading import ReadingAdapter
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.scalars import Scalar
from momo_wrap.model import Averaging


class GradientAdapter(ReadingAdapter):
    """The base class for optimizers that average no gradients: B_k = d_k = g_k.

    Attributes:
        columns: Names in the optimizer state of the tensors that `preconditioned` needs.
        counts: Names in the optimizer state of values per parameter.
        settings: Names of the group's settings that `preconditioned` needs.
    """

    columns: Sequence[str] = ()
    counts: Sequence[str] = ()
    settings: Sequence[str] = ()

    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return that there is no averaging; see `ReadingAdapter`."""
        return Averaging(decay=0.0, weight=1.0)

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Return the tensors, counts and settings named above; see `ReadingAdapter`."""
        tensors = {name: [state[p][name] for p in params] for name in self.columns}
        counts = {name: [state[p][name] for p in params] for name in self.counts}
        return Reading(None, tensors, {**counts, **{name: group[name] for name in self.settings}})


class AdagradAdapter(GradientAdapter):
    """`torch.optim.Adagrad`: D_k = (sqrt(Σ g²) + ε) (1 + (k - 1) η) with η = `lr_decay`."""

    columns = ("sum",)
    counts = ("step",)
    settings = ("eps", "lr_decay")

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return the slowdown by `lr_decay`; see `ReadingAdapter`."""
        # The base counts in float32, which would round the product.
        slowdown = 1.0 + (wide(read["step"]) - 1.0) * read["lr_decay"]
        return {"slowdown": slowdown, "eps": read["eps"]}

    def preconditioned(self, block: Block) -> Tensor:
        """Return u = d / D of a block; see `ReadingAdapter`."""
        root = block.flat("sum").sqrt().add_(block.scalar("eps"))
        denominator = root.mul_(block.scalar("slowdown"))
        return torch.div(block.flat("grad"), denominator, out=denominator)

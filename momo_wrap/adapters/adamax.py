"""Adamax."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from momo_wrap.adapters.adam import AdamAdapter, bias_correction, wide
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.scalars import Scalar


class AdamaxAdapter(AdamAdapter):
    """`torch.optim.Adamax`: as Adam, with D_k = `exp_inf`, the decaying maximum of `|g| + ε`."""

    columns = ("exp_inf",)

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return p; see `ReadingAdapter`."""
        return {"buffer_scale": 1.0 / bias_correction(read["beta1"], wide(read["step"]))}

    def preconditioned(self, block: Block) -> Tensor:
        """Return u = d / D of a block; see `ReadingAdapter`."""
        return self.grad_avg(block).div_(block.flat("exp_inf"))

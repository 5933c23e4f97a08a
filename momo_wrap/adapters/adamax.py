"""Adamax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from momo_wrap.adapters.adam import AdamAdapter, bias_correction, counts, wide
from momo_wrap.adapters.base import ParamGroup, State
from momo_wrap.adapters.planned_step import Reading
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.scalars import Scalar


class AdamaxAdapter(AdamAdapter):
    """`torch.optim.Adamax`: as Adam, with D_k = `exp_inf`, the decaying maximum of |g| + ε."""

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Return the first moment, the maximum and the step counts; see `ReadingAdapter`."""
        entries = [state[p] for p in params]
        maxima = [entry["exp_inf"] for entry in entries]
        buffers = [entry["exp_avg"] for entry in entries]
        return Reading(buffers, {"maximum": maxima}, counts(group, entries))

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return p; see `ReadingAdapter`."""
        return {"buffer_scale": 1.0 / bias_correction(read["beta1"], wide(read["step"]))}

    def preconditioned(self, block: Block) -> Tensor:
        """Return u = d / D of a block; see `ReadingAdapter`."""
        return self.grad_avg(block).div_(block.flat("maximum"))

"""RMSprop without momentum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.adagrad import GradientAdapter
from momo_wrap.adapters.base import ParamGroup, State
from momo_wrap.adapters.planned_step import Reading
from momo_wrap.engine.blocks import Block


class RMSpropAdapter(GradientAdapter):
    """`torch.optim.RMSprop` without momentum: D_k = sqrt(v_k) + ε, centered sqrt(v_k - m_k²) + ε.

    v_k is `square_avg` and m_k `grad_avg`.
    """

    columns = ("square_avg",)
    settings = ("eps",)

    def obstacle(self, base: Optimizer) -> str | None:
        """Return a reason if there is momentum; see `Adapter`."""
        if any(group["momentum"] > 0 for group in base.param_groups):
            return "with momentum its buffer averages preconditioned gradients, not gradients"
        return None

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Return the second moments, and the first ones if centered; see `ReadingAdapter`."""
        reading = super().read(group, params, state)
        if not group["centered"]:
            return reading
        first = {"grad_avg": [state[p]["grad_avg"] for p in params]}
        return Reading(reading.buffer, {**reading.tensors, **first}, reading.scalars)

    def preconditioned(self, block: Block) -> Tensor:
        """Return u = d / D of a block; see `ReadingAdapter`."""
        second = block.flat("square_avg")
        if "grad_avg" in block.pieces:
            first = block.flat("grad_avg")
            second = second.addcmul(first, first, value=-1.0)
        denominator = second.sqrt().add_(block.scalar("eps"))
        return torch.div(block.flat("grad"), denominator, out=denominator)

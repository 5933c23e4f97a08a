"""SGD, plain or with momentum: the smallest adapter, and the template for others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from momo_wrap.adapters.base import ParamGroup, State
from momo_wrap.adapters.reading import Reading, ReadingAdapter
from momo_wrap.averaging import Averaging
from momo_wrap.blocks import Block


class SGDAdapter(ReadingAdapter):
    """`torch.optim.SGD`, with momentum, dampening and Nesterov; D_k = I.

    | | a | b (first step) | p | q |
    |---|---|---|---|---|
    | momentum | μ | 1 - dampening (1) | 1 | 0 |
    | Nesterov | μ | 1 | μ | 1 |
    | without momentum | 0 | 1 | 1 | 0 |
    """

    advances = frozenset({torch.optim.SGD})

    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return the row of the table that the group's settings select; see `ReadingAdapter`."""
        momentum = group["momentum"]
        if momentum == 0:
            return Averaging(decay=0.0, weight=1.0)
        if group["nesterov"]:
            return Averaging(decay=momentum, weight=1.0, buffer_scale=momentum, grad_scale=1.0)
        return Averaging(decay=momentum, weight=1.0 - group["dampening"], first_weight=1.0)

    def is_ready(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> bool:
        """Return whether there are buffers, where there is momentum; see `ReadingAdapter`."""
        buffers = (state.get(p, {}).get("momentum_buffer") for p in params)
        return group["momentum"] == 0 or all(buffer is not None for buffer in buffers)

    def advanced(self, group: ParamGroup, block: Block) -> dict[str, Tensor]:
        """Return the momentum buffer with the gradient in it; see `ReadingAdapter`."""
        if "decay" not in block.scalars:
            return {}
        decayed = block.flat("buffer") * block.scalar("decay")
        return {"buffer": decayed + block.flat("grad") * block.scalar("weight")}

    def while_advancing(self, group: ParamGroup) -> dict[str, Any]:
        """Turn Nesterov off: the foreach form would add the buffer into `.grad` in place."""
        return {"nesterov": False}

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Return the momentum buffers, if there are any; see `ReadingAdapter`."""
        momentum = group["momentum"]
        if momentum == 0:
            return Reading(buffer=None)
        weight = 1.0 if group["nesterov"] else 1.0 - group["dampening"]
        return Reading(
            buffer=[state[p]["momentum_buffer"] for p in params],
            scalars={"decay": momentum, "weight": weight},
        )

"""SGD, plain or with momentum: the smallest adapter, and the template for others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from momo_wrap.adapters.base import ParamGroup, State
from momo_wrap.adapters.planned_step import Reading
from momo_wrap.adapters.reading import ReadingAdapter
from momo_wrap.model import Averaging


class SGDAdapter(ReadingAdapter):
    """`torch.optim.SGD`, with momentum, dampening and Nesterov; D_k = I.

                          a    b (first step)       p    q
        momentum          μ    1 - dampening (1)    1    0
        Nesterov          μ    1                    μ    1
        without momentum  0    1                    1    0

    a, b, p and q are those of `Averaging`.
    """

    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return the row of the table that the group's settings select; see `ReadingAdapter`."""
        momentum = group["momentum"]
        if momentum == 0:
            return Averaging(decay=0.0, weight=1.0)
        if group["nesterov"]:
            return Averaging(decay=momentum, weight=1.0, buffer_scale=momentum, grad_scale=1.0)
        return Averaging(decay=momentum, weight=1.0 - group["dampening"], first_weight=1.0)

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Return the momentum buffers, if there are any; see `ReadingAdapter`."""
        if group["momentum"] == 0:
            return Reading(None)
        return Reading([state[p]["momentum_buffer"] for p in params])

    def while_updating(self, group: ParamGroup) -> dict[str, Any]:
        """Turn Nesterov off; see `ReadingAdapter`."""
        # The foreach code path adds the buffer to `.grad` in place.
        return {"nesterov": False} if group["nesterov"] else {}

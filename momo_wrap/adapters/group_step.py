"""One parameter group's share of a step that a reading adapter takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import ParamGroup, State, StepSums, maximizes
from momo_wrap.adapters.passes import Passes
from momo_wrap.adapters.sums import Kind, added, with_gradient_by_kind
from momo_wrap.averaging import Averaging
from momo_wrap.blocks import Block
from momo_wrap.rules import WeightDecayForm
from momo_wrap.scalars import scalar

if TYPE_CHECKING:
    from momo_wrap.adapters.reading import Reading, ReadingAdapter


class GroupStep:
    """One parameter group's share of a step: its sums first, its move afterwards.

    All forms of weight decay are x <- factor x - θ pull u: proximal with factor = c and pull = c α,
    equation (4); decoupled with factor = 1 - α λ and pull = α; scaled with factor = 1 - θ α λ and
    pull = α, which is the fraction θ of the step α (u + λ x), equation (8).

    Args:
        adapter: The adapter.
        base: The base optimizer.
        group: The parameter group.
        form: The form of weight decay.

    Attributes:
        averaging: How the group averages, known once the state was read.
    """

    averaging: Averaging

    def __init__(
        self, adapter: ReadingAdapter, base: Optimizer, group: ParamGroup, form: WeightDecayForm
    ) -> None:
        self._adapter, self._group = adapter, group
        self._maximizes = maximizes(base, group)
        lr = scalar(group["lr"])
        self._lr = lr if isinstance(lr, Tensor) else max(lr, 0.0)  # a schedule's rounding
        decay = scalar(group.get("weight_decay", 0.0))
        self._decays = isinstance(decay, Tensor) or decay != 0.0
        self._decay_in_step = decay if form == "scaled" and self._decays else None
        by_itself = 0.0 if form == "scaled" else decay
        self._shrink = 1.0 / (1.0 + self._lr * by_itself)  # c_i
        self._decay_factor = self._shrink if form == "proximal" else 1.0 - self._lr * by_itself
        self._pull = self._shrink * self._lr if form == "proximal" else self._lr
        # Gradients are held on to before the base steps: a hook of the base may drop them.
        self._kinds = with_gradient_by_kind(group["params"])
        self._blocks: list[Block] = []

    def read(self, state: State) -> None:
        """Find out what the base has stored, after it has taken in the gradients.

        Args:
            state: The base's state.
        """
        self._passes = Passes(self._adapter, self._group, False, self._decays)
        self._read(state)

    def advance(self, state: State, passes: type[Passes]) -> None:
        """Find out what the base has stored, and leave it to the first pass to advance it.

        Args:
            state: The base's state, which has not taken in the gradients.
            passes: The kind of passes.
        """
        for kind in self._kinds:
            self._adapter.count_step(self._group, kind.params, state)
        self._passes = passes(self._adapter, self._group, True, self._decays)
        self._read(state)

    def _read(self, state: State) -> None:
        self.averaging = self._adapter.averaging(self._group, state)
        for kind in self._kinds:
            self._blocks.extend(self._cut(kind, state))

    def _cut(self, kind: Kind, state: State) -> Iterator[Block]:
        reading = self._adapter.read(self._group, kind.params, state)
        _check_reading(reading, self.averaging)
        buffer = reading.buffer or kind.grads
        columns = {"param": kind.params, "buffer": buffer, "grad": kind.grads, **reading.tensors}
        scales = {
            "buffer_scale": self.averaging.buffer_scale,
            "grad_scale": self.averaging.grad_scale,
        }
        # The base negates gradients as it takes them in, so the buffers that it keeps have the
        # sign of a minimisation already.
        raw = {"grad"} if reading.buffer else {"grad", "buffer"}
        negated = frozenset(raw) if self._maximizes else frozenset()
        scalars = {**scales, **reading.scalars}
        return self._passes.cut(columns, scalars, negated, kind.shards)

    def sums(self, device: torch.device, dtype: torch.dtype) -> StepSums:
        """Return the group's sums as scalars of `dtype` on `device`."""
        summed = [self._passes.sum_up(block) for block in self._blocks]
        buffer_slope, slope = added([block.slope for block in summed], device, dtype)
        levels = [block.level for block in summed if block.level is not None]
        buffer_level, level = added(levels, device, dtype)
        if self._decay_in_step is not None:
            slope = slope + self._decay_in_step * level
            buffer_slope = buffer_slope + self._decay_in_step * buffer_level
        return StepSums(
            predicted_decrease=self._shrink * self._lr * slope,
            gradient_decrease=self._lr * slope,
            decay_shift=(self._shrink - 1.0) * level,
            buffer_move=-self._pull * buffer_slope,
            buffer_move_by_decay=(self._decay_factor - 1.0) * buffer_level,
        )

    def apply(self, theta: Tensor) -> Tensor:
        """Move the group's parameters and return θα."""
        pull = theta * self._pull
        factor = self._decay_factor
        if self._decay_in_step is not None:
            factor = factor - pull * self._decay_in_step
        for block in self._blocks:
            self._passes.move(block, factor, pull)
        return theta * self._lr


def _check_reading(reading: Reading, averaging: Averaging) -> None:
    taken = {"param", "buffer", "grad"} & reading.tensors.keys()
    if taken:
        raise ValueError(
            f"read() returned tensors named {sorted(taken)}, which every block has already. Choose "
            "other names in Reading(tensors=...)."
        )
    if averaging.bias_corrected and "buffer_scale" not in reading.scalars:
        raise ValueError(
            "The averaging is bias-corrected, but read() returned no scalars named 'buffer_scale'. "
            "Write Reading(..., scalars={'buffer_scale': 1 / (1 - beta1**steps)})."
        )

"""The two passes over a block of parameters: take in the gradients and sum up; then move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from momo_wrap.adapters.sums import along_average
from momo_wrap.blocks import Block, blocks
from momo_wrap.reductions import Scalar, to_device

if TYPE_CHECKING:
    from momo_wrap.adapters.base import ParamGroup
    from momo_wrap.adapters.reading import ReadingAdapter

Pair = tuple[Tensor, Tensor]


class Summed(NamedTuple):
    """What the first pass over a block returns.

    Attributes:
        slope: ⟨p B, u⟩ and ⟨d, u⟩.
        level: ⟨p B, x⟩ and ⟨d, x⟩, with weight decay only.
        written: The columns that were written to.
    """

    slope: Pair
    level: Pair | None
    written: tuple[str, ...]


@dataclass(frozen=True)
class Passes:
    """The passes over the blocks of a parameter group.

    Attributes:
        adapter: The adapter, which says what a direction is.
        group: The parameter group.
        advances: Whether the base's state is yet to take in the gradients, in the first pass.
        decays: Whether there is weight decay.
    """

    adapter: ReadingAdapter
    group: ParamGroup
    advances: bool
    decays: bool

    def cut(
        self,
        columns: Mapping[str, Sequence[Tensor]],
        scalars: Mapping[str, Scalar],
        negated: frozenset[str],
        shards: int,
    ) -> Iterator[Block]:
        """Cut the group into the blocks that the passes are for; see `momo_wrap.blocks.blocks`."""
        return blocks(columns, scalars, negated, shards, whole=torch.compiler.is_dynamo_compiling())

    def sum_up(self, block: Block) -> Summed:
        """Take in the gradients, where the base has not, and sum up.

        Args:
            block: The columns that the adapter's methods tell.

        Returns:
            0-dim tensors, and what was written.
        """
        block = block.spread()
        new: Mapping[str, Tensor] = {}
        if self.advances:
            new = self.adapter.advanced(self.group, block)
            for column, values in new.items():
                block.write(column, values)
            block = block.replaced(new)
        slope = along_average(block, self.adapter.preconditioned(self.group, block))
        level = along_average(block, block.flat("param")) if self.decays else None
        return Summed(slope, level, tuple(new))

    def move(self, block: Block, factor: Scalar, pull: Tensor) -> None:
        """Move parameters, x <- factor x - pull u.

        Args:
            block: The columns that the adapter's methods tell.
            factor: What weight decay leaves of the parameters.
            pull: θ times the learning rate, 0-dim.
        """
        block = block.spread()
        u = self.adapter.preconditioned(self.group, block)
        x = block.flat("param")
        if self.decays:
            x.mul_(to_device(factor, u.device, u.dtype) if isinstance(factor, Tensor) else factor)
        x.addcmul_(u, to_device(pull, u.device, u.dtype), value=-1.0)
        block.write_back("param", x)

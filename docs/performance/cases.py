"""What the benchmark's optimizers step over, from one large tensor to many small ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Case:
    """Parameters of one type, with a gradient for each."""

    shapes: Shapes
    dtype: torch.dtype = torch.float32
    needs_cuda: bool = False

    @property
    def elements(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)


def transformer_shapes(blocks: int = 12, width: int = 768) -> Shapes:
    """The tensors of a stack of transformer blocks without embeddings, and an output layer."""
    block: Shapes = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return block * blocks + [(13107, width)]


CASES = {
    "transformer": Case(transformer_shapes()),
    "small": Case([(100,)] * 10_000),
    "one": Case([(100_000_000,)]),
    "bf16": Case(transformer_shapes(), torch.bfloat16),
    "billion": Case(transformer_shapes(blocks=35, width=1536), needs_cuda=True),
}

# Along what `--scale` grows, and the shapes at each size.
SCALES: dict[str, dict[int, Shapes]] = {
    "elements": {2**power: [(2**power,)] for power in (20, 22, 24, 26)},
    "tensors": {count: [(100,)] * count for count in (100, 300, 1_000, 3_000, 10_000)},
}

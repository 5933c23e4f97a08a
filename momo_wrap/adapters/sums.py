"""What adapters of both kinds do alike: gather gradients, and sum over blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from momo_wrap.blocks import Block, inner_product, total


def along_average(block: Block, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inner products of a vector with the averaged gradient, over a block.

    Args:
        block: With columns "buffer" and "grad" and scalars "buffer_scale" and "grad_scale".
        vector: v, of the block's flat shape.

    Returns:
        ⟨p B, v⟩ and ⟨d, v⟩, 0-dim.
    """
    scale, buffer = block.scalar("buffer_scale"), block.flat("buffer")
    if isinstance(scale, Tensor) and scale.dim():
        along_buffer = inner_product(buffer * scale, vector)
    else:
        along_buffer = inner_product(buffer, vector) * scale
    grad_scale = block.scalar("grad_scale")
    if not isinstance(grad_scale, Tensor) and grad_scale == 0.0:
        return along_buffer, along_buffer
    grad = block.flat("grad")
    if isinstance(grad_scale, Tensor) and grad_scale.dim():
        return along_buffer, along_buffer + inner_product(grad * grad_scale, vector)
    return along_buffer, along_buffer + inner_product(grad, vector) * grad_scale


def added(
    pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Add up what `along_average` returned for several blocks.

    Args:
        pairs: The results.
        device: Where the sums go.
        dtype: The dtype of the sums.

    Returns:
        Two 0-dim tensors; zeros if there are no blocks.
    """
    firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
    return total(firsts, device, dtype), total(seconds, device, dtype)


def with_gradient_by_kind(params: Sequence[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return parameters and their gradients where there are any, by device and dtype.

    Args:
        params: The parameters of a group.
    """
    kinds: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for param in params:
        if param.grad is not None:
            same_kind, grads = kinds.setdefault((param.device, param.dtype), ([], []))
            same_kind.append(param)
            grads.append(param.grad)
    return list(kinds.values())

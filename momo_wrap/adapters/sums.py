"""What adapters of both kinds do alike: gather gradients, and sum over blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from momo_wrap.blocks import Block
from momo_wrap.distributed import PLAIN, aligned, local, shards
from momo_wrap.reductions import inner_product, total


def along_average(block: Block, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inner products of a vector with the averaged gradient, over a block.

    Args:
        block: With columns "buffer" and "grad" and scalars "buffer_scale" and "grad_scale".
        vector: v, of the block's flat shape.

    Returns:
        ⟨p B, v⟩ and ⟨d, v⟩, 0-dim.
    """
    product = partial(inner_product, stored_in_full=block.is_stored_in_full)
    scale, buffer = block.scalar("buffer_scale"), block.flat("buffer")
    if isinstance(scale, Tensor) and scale.dim():
        along_buffer = product(buffer * scale, vector)
    else:
        along_buffer = product(buffer, vector) * scale
    if block.shards != 1:
        along_buffer = along_buffer * block.shards
    if not uses_gradient(block):
        return along_buffer, along_buffer
    grad_scale = block.scalar("grad_scale")
    grad = block.flat("grad")
    if isinstance(grad_scale, Tensor) and grad_scale.dim():
        along_grad = product(grad * grad_scale, vector)
    else:
        along_grad = product(grad, vector) * grad_scale
    return along_buffer, along_buffer + along_grad * block.shards


def uses_gradient(block: Block) -> bool:
    """Return whether the direction has a term in the gradient itself (q is not the number 0).

    Args:
        block: With the scalar "grad_scale".
    """
    return block.number("grad_scale") != 0.0


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


@dataclass(frozen=True)
class Kind:
    """Parameters that can be computed with together, and their gradients.

    Attributes:
        params: Parameters of a group, of one device and dtype, and cut over the ranks alike.
        grads: Their gradients, of those that are cut the part on this rank.
        shards: Into how many parts each of them is cut, see `momo_wrap.distributed.shards`.
    """

    params: list[Tensor]
    grads: list[Tensor]
    shards: int


def with_gradient_by_kind(params: Sequence[Tensor]) -> list[Kind]:
    """Return the parameters that have a gradient.

    Args:
        params: The parameters of a group.
    """
    kinds: dict[tuple[torch.device, torch.dtype, int], Kind] = {}
    for param in params:
        grad = param.grad
        if grad is None:
            continue
        plain = type(param) in PLAIN and type(grad) in PLAIN
        if not plain:
            grad = aligned(grad, param)
            if grad is not param.grad:
                param.grad = grad  # so that a buffer that the base makes of it has the layout too
        key = (param.device, param.dtype, 1 if plain else shards(param))
        kind = kinds.get(key)
        if kind is None:
            kind = kinds[key] = Kind([], [], key[-1])
        kind.params.append(param)
        # A kernel would not see that a gradient is to be read with the opposite sign.
        kind.grads.append((grad if plain else local(grad)).resolve_neg())
    return list(kinds.values())

"""Walking over parameter-sized tensors in blocks, without a second copy of them.

A *column* is a list with one tensor per parameter (the parameters, their gradients, their momentum
buffers, ...). Blocks cut all columns at the same places: a large tensor becomes several blocks that
are views of it, many small tensors are packed into one block. Arithmetic on a block is arithmetic
on flat tensors of at most a few MiB, which stay in the cache on a CPU and cost few kernel launches
on an accelerator, and rounds once however low the precision of the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from momo_wrap.distributed import local

Scalar: TypeAlias = float | Tensor

# Elements in a block. 2^18 float32 values are 1 MiB, which fits the second-level cache of a CPU
# core. An accelerator needs larger blocks to be busy; five temporaries of 2^21 are 40 MiB.
_CPU_BLOCK_ELEMENTS = 2**18
_ACCELERATOR_BLOCK_ELEMENTS = 2**21


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the real dtype in which values of `dtype` are computed with and summed.

    Args:
        dtype: A floating-point or complex dtype.

    Returns:
        float64 for float64 and complex128, otherwise float32.
    """
    return torch.promote_types(dtype, torch.float32).to_real()


@contextmanager
def cpu_block_elements(elements: int) -> Iterator[None]:
    """Cut into blocks of another size on the CPU, for tests.

    Args:
        elements: The most elements of a block.
    """
    global _CPU_BLOCK_ELEMENTS
    before, _CPU_BLOCK_ELEMENTS = _CPU_BLOCK_ELEMENTS, elements
    try:
        yield
    finally:
        _CPU_BLOCK_ELEMENTS = before


@dataclass(frozen=True)
class Block:
    """The same stretch of every column, as flat tensors.

    Attributes:
        pieces: For each column the pieces of its tensors that lie in this block, each a real view
            of any shape; piece j has the same shape in every column.
        scalars: For each name one 0-dim tensor per piece: a value that is shared by all elements
            of the parameter that the piece belongs to; or one value for all parameters.
        negated: The columns that `flat` returns with the opposite sign.
        dtype: The dtype of computation.
        shards: The factor of sums over the block, see `momo_wrap.distributed.shards`.
    """

    pieces: Mapping[str, list[Tensor]]
    scalars: Mapping[str, list[Tensor] | Scalar]
    negated: frozenset[str]
    dtype: torch.dtype
    shards: int = 1

    def flat(self, column: str) -> Tensor:
        """Return a column's stretch.

        Args:
            column: The column's name.

        Returns:
            A tensor of shape [elements of the block] in the dtype of computation; it must not be
            written to, unless it is handed to `write_back` next.
        """
        pieces = self.pieces[column]
        if len(pieces) == 1:
            values = pieces[0] if pieces[0].dim() == 1 else pieces[0].reshape(-1)
        else:
            values = torch.cat([piece.reshape(-1) for piece in pieces])
        values = values if values.dtype is self.dtype else values.to(self.dtype)
        return -values if column in self.negated else values

    def scalar(self, name: str) -> Scalar:
        """Return a value per parameter, ready to be combined with `flat` tensors.

        Args:
            name: The name of the values.

        Returns:
            A tensor of shape [] or [elements of the block] in the dtype of computation, or a Python
            number.
        """
        values = self.scalars[name]
        if not isinstance(values, list):
            return values
        if len(values) == 1:
            return values[0]
        sizes = [piece.numel() for piece in next(iter(self.pieces.values()))]
        return torch.cat([value.expand(size) for value, size in zip(values, sizes, strict=True)])

    def write_back(self, column: str, values: Tensor) -> None:
        """Bring what `flat` returned, changed in place since, back to the column.

        Args:
            column: The column's name, none of the negated ones.
            values: Shape [elements of the block]; rounded to the column's own dtype.
        """
        pieces = self.pieces[column]
        if len(pieces) == 1 and pieces[0].is_contiguous() and pieces[0].dtype is self.dtype:
            return  # `flat` returned a view
        self.write(column, values)

    def write(self, column: str, values: Tensor) -> None:
        """Overwrite the column's stretch.

        Args:
            column: The column's name, none of the negated ones.
            values: Shape [elements of the block]; rounded to the column's own dtype.
        """
        pieces = self.pieces[column]
        parts = torch.split(values, [piece.numel() for piece in pieces])
        torch._foreach_copy_(
            pieces, [part.view(piece.shape) for part, piece in zip(parts, pieces, strict=True)]
        )


def blocks(
    columns: Mapping[str, Sequence[Tensor]],
    scalars: Mapping[str, Scalar],
    negated: frozenset[str] = frozenset(),
    shards: int = 1,
) -> Iterator[Block]:
    """Cut aligned columns into blocks.

    Args:
        columns: Name to one tensor per parameter. The tensors of one parameter have equal shapes;
            all parameters are on one device. Complex tensors are taken as pairs of reals, and of
            tensors that are cut over ranks the part on this rank.
        scalars: Name to a tensor of shape [parameters], on any device, or to one value for all, a
            Python number or a 0-dim tensor.
        negated: The columns to be read with the opposite sign.
        shards: The factor of sums over the blocks.

    Yields:
        Blocks that together hold each element of the columns once, in their order.
    """
    names = list(columns)
    first = columns[names[0]]
    if not first:
        return
    device, dtype = first[0].device, accumulation_dtype(first[0].dtype)
    limit = _CPU_BLOCK_ELEMENTS if device.type == "cpu" else _ACCELERATOR_BLOCK_ELEMENTS
    shared, per_parameter = _split_scalars(scalars, device, dtype)

    def block(batch: list[tuple[list[Tensor], int]]) -> Block:
        return Block(
            pieces={name: [views[i] for views, _ in batch] for i, name in enumerate(names)},
            scalars={
                **shared,
                **{name: [of[i] for _, i in batch] for name, of in per_parameter.items()},
            },
            negated=negated,
            dtype=dtype,
            shards=shards,
        )

    batch: list[tuple[list[Tensor], int]] = []
    filled = 0
    for owner, tensors in enumerate(zip(*columns.values(), strict=True)):
        for views in _pieces([_real(tensor) for tensor in tensors], limit):
            size = views[0].numel()
            if batch and filled + size > limit:
                yield block(batch)
                batch, filled = [], 0
            batch.append((views, owner))
            filled += size
    yield block(batch)


def _split_scalars(
    scalars: Mapping[str, Scalar], device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Scalar], dict[str, tuple[Tensor, ...]]]:
    """Tell values that all parameters share from those that each has for itself."""
    shared: dict[str, Scalar] = {}
    per_parameter: dict[str, tuple[Tensor, ...]] = {}
    for name, values in scalars.items():
        if not isinstance(values, Tensor):
            shared[name] = values
        elif values.dim() == 0:
            shared[name] = to_device(values, device, dtype)
        else:
            per_parameter[name] = to_device(values, device, dtype).unbind()
    return shared, per_parameter


def inner_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the sum of the products of two flat real tensors.

    Args:
        left: Shape [elements], float32 or float64.
        right: The same shape and dtype.

    Returns:
        A 0-dim tensor on their device.
    """
    return torch.dot(left, right)


def to_device(values: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return `values` on a device, without waiting for it where they come from the host.

    Args:
        values: Any tensor.
        device: Where it goes.
        dtype: What it is converted to.

    Returns:
        The tensor itself if there is nothing to do.
    """
    # The other way round the host would read before the device has written.
    return values.to(device=device, dtype=dtype, non_blocking=values.device.type == "cpu")


def total(parts: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Add up scalars that may live on several devices.

    Args:
        parts: 0-dim tensors.
        device: Where the sum goes.
        dtype: The dtype of the sum.

    Returns:
        A 0-dim tensor; 0 if there is nothing to add.
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for part in parts:
        by_device.setdefault(part.device, []).append(part)
    sums = [to_device(torch.stack(some).sum(), device, dtype) for some in by_device.values()]
    if len(sums) == 1:
        return sums[0]
    return torch.stack(sums).sum() if sums else torch.zeros((), device=device, dtype=dtype)


def _real(tensor: Tensor) -> Tensor:
    tensor = local(tensor)
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _pieces(tensors: list[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Cut the tensors of one parameter, all in the same places, into views of at most `limit`."""
    if tensors[0].numel() <= limit:
        yield tensors
        return
    if all(tensor.is_contiguous() for tensor in tensors):
        yield from map(list, zip(*(torch.split(t.view(-1), limit) for t in tensors), strict=True))
        return
    # Memory orders differ or are not the default one: cut along the longest dimension instead.
    shape = tensors[0].shape
    longest = max(range(len(shape)), key=lambda dim: shape[dim])
    rows = max(1, limit * shape[longest] // tensors[0].numel())
    for views in zip(*(torch.split(t, rows, dim=longest) for t in tensors), strict=True):
        yield from _pieces(list(views), limit)

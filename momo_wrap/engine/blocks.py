"""Blocks: the same stretch of several parameter-sized columns, as flat tensors.

A *column* is a list with one tensor per parameter (the parameters, their gradients, their momentum
buffers, ...). Blocks split all columns at the same places: a large tensor becomes several blocks
that are views of it, many small tensors are packed into one block. Arithmetic on a block is
arithmetic on flat tensors of at most a few MiB, which stay in the cache on a CPU and cost few
kernel launches on an accelerator, and rounds once however low the precision of the parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from momo_wrap.distributed import PLAIN, local
from momo_wrap.engine.scalars import Scalar

# Runs of so many tensors of one size are spread at once, which takes a copy more.
_LONG_RUN = 8


class Packing(NamedTuple):
    """What is known beforehand of several small tensors in one block.

    Attributes:
        sizes: The numbers of elements of the tensors.
        groups: The parameter group of each.
        runs: The parameter group of each run of tensors that share it.
        lengths: The elements of each run, int64 on the tensors' device; None for a single run.
        index: `groups` on the tensors' device; None for a single run.
    """

    sizes: list[int]
    groups: list[int]
    runs: list[int]
    lengths: Tensor | None
    index: Tensor | None

    @classmethod
    def of(cls, sizes: list[int], groups: list[int], device: torch.device) -> Packing:
        """Return the packing of tensors that are sorted by group."""
        runs = list(dict.fromkeys(groups))
        if len(runs) == 1:
            return cls(sizes, groups, runs, None, None)
        of_run = dict.fromkeys(runs, 0)
        for size, group in zip(sizes, groups, strict=True):
            of_run[group] += size
        lengths = torch.tensor(list(of_run.values()), device=device)
        return cls(sizes, groups, runs, lengths, torch.tensor(groups, device=device))

    def spread(self, values: Tensor) -> Tensor:
        """Return values per tensor as values per element.

        Args:
            values: Shape [rows, tensors].

        Returns:
            Shape [rows, elements].
        """
        rows, parts, start = len(values), [], 0
        while start < len(self.sizes):
            size, stop = self.sizes[start], start + 1
            while stop < len(self.sizes) and self.sizes[stop] == size:
                stop += 1
            if stop - start < _LONG_RUN:
                parts += [values.narrow(1, i, 1).expand(rows, size) for i in range(start, stop)]
            else:
                run = values.narrow(1, start, stop - start).unsqueeze(2)
                parts.append(run.expand(-1, -1, size).reshape(rows, -1))
            start = stop
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@dataclass
class Block:
    """The same stretch of every column, as flat tensors.

    Attributes:
        pieces: For each column the pieces of its tensors that lie in this block, each a real view
            of any shape; piece j has the same number of elements in every column.
        scalars: For each name a value for all elements, a number or a 0-dim tensor.
        negated: The columns that `flat` returns with the opposite sign.
        dtype: The dtype of computation.
        shards: The factor of sums over the block, see `momo_wrap.distributed.shards`.
        groups: The parameter group of each run of pieces that share it.
        packing: What is known of the pieces where there are several.
        per_piece: For each further name one value for each piece, of shape [pieces].
        direction: What is kept of the first pass for the second, of the block's flat shape.
    """

    pieces: Mapping[str, list[Tensor]]
    scalars: Mapping[str, Scalar]
    negated: frozenset[str]
    dtype: torch.dtype
    shards: int = 1
    groups: Sequence[int] = (0,)
    packing: Packing | None = None
    per_piece: Mapping[str, Tensor] = field(default_factory=dict)
    direction: Tensor | None = None
    _copies: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def flat(self, column: str) -> Tensor:
        """Return a column's stretch.

        Args:
            column: The column's name.

        Returns:
            A tensor of shape [elements of the block] in the dtype of computation; it must not be
            written to, unless it is handed to `write_back` next.
        """
        if column in self._copies:
            return self._copies[column]
        values = joined(self.pieces[column])
        values = values if values.dtype is self.dtype else values.to(self.dtype)
        values = -values if column in self.negated else values
        if self.packing is not None:
            self._copies[column] = values
        return values

    def forget(self) -> None:
        """Drop the copies that were made, so that what changes is read anew."""
        self._copies.clear()

    def scalar(self, name: str) -> Scalar:
        """Return a value per parameter, ready to be combined with `flat` tensors.

        Args:
            name: The name of the values.

        Returns:
            A tensor of shape [] or [elements of the block] in the dtype of computation, or a Python
            number.
        """
        if self.per_piece:
            self.spread()
        return self.scalars[name]

    def number(self, name: str) -> float | None:
        """Return a value that is a Python number, and None where it is a tensor.

        Args:
            name: The name of the value.
        """
        value = self.scalars.get(name)
        return None if isinstance(value, Tensor) else value

    def spread(self) -> None:
        """Spread the values per piece over the elements, all at once."""
        if not self.per_piece or self.packing is None:
            return
        values = self.packing.spread(torch.stack(list(self.per_piece.values())))
        self.scalars = {**self.scalars, **dict(zip(self.per_piece, values.unbind(), strict=True))}
        self.per_piece = {}

    @property
    def elements(self) -> int:
        """The number of elements."""
        if self.packing is not None:
            return sum(self.packing.sizes)
        return next(iter(self.pieces.values()))[0].numel()

    @property
    def lengths(self) -> Tensor | None:
        """The elements of each run of groups; None where there is one."""
        return None if self.packing is None else self.packing.lengths

    @property
    def is_stored_in_full(self) -> bool:
        """Whether all columns are stored in the dtype of computation."""
        return all(pieces[0].dtype is self.dtype for pieces in self.pieces.values())

    def write_back(self, column: str, values: Tensor) -> None:
        """Bring what `flat` returned, changed in place since, back to the column.

        Args:
            column: The column's name, none of the negated ones.
            values: Shape [elements of the block]; rounded to the column's own dtype.
        """
        if not self.is_view(column) or self.pieces[column][0].dtype is not self.dtype:
            self.write(column, values)

    def write(self, column: str, values: Tensor) -> None:
        """Overwrite the column's stretch.

        Args:
            column: The column's name, none of the negated ones.
            values: Shape [elements of the block]; rounded to the column's own dtype.
        """
        pieces = self.pieces[column]
        if len(pieces) == 1:
            pieces[0].copy_(values.view(pieces[0].shape))
            return
        parts = torch.split(values, [piece.numel() for piece in pieces])
        if any(piece.dim() != 1 for piece in pieces):
            parts = tuple(part.view_as(piece) for part, piece in zip(parts, pieces, strict=True))
        torch._foreach_copy_(pieces, parts)

    def replaced(self, columns: Mapping[str, Tensor]) -> Block:
        """Return the block with other values in some columns; the columns themselves stay.

        Args:
            columns: Name to the values, of the block's flat shape.
        """
        if not columns:
            return self
        return replace(self, pieces={**self.pieces, **{n: [v] for n, v in columns.items()}})

    def is_view(self, column: str) -> bool:
        """Return whether the column's values, flat and in its own dtype, share its memory."""
        pieces = self.pieces[column]
        return len(pieces) == 1 and pieces[0].is_contiguous()


def real(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that is on this rank, complex ones as pairs of reals.

    Args:
        tensor: Any dense tensor. The result shares its memory.
    """
    if type(tensor) not in PLAIN:
        tensor = local(tensor)
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def flattened(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return flat views of tensors, and those themselves that have none.

    Args:
        tensors: Any tensors.
    """
    return [t.view(-1) if t.is_contiguous() else t for t in map(real, tensors)]


def joined(pieces: Sequence[Tensor]) -> Tensor:
    """Return pieces as one flat tensor of their dtype, a view of a single one where possible.

    Args:
        pieces: Tensors of any shapes.
    """
    if len(pieces) == 1:
        return pieces[0] if pieces[0].dim() == 1 else pieces[0].reshape(-1)
    if all(piece.dim() == 1 for piece in pieces):
        return torch.cat(list(pieces))
    joined: Tensor = _flatten_dense_tensors(
        [piece if piece.is_contiguous() else piece.contiguous() for piece in pieces]
    )
    return joined

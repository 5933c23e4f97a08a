"""Walking over parameter-sized tensors in blocks, without a second copy of them.

A *column* is a list with one tensor per parameter (the parameters, their gradients, their momentum
buffers, ...). Blocks cut all columns at the same places: a large tensor becomes several blocks that
are views of it, many small tensors are packed into one block. Arithmetic on a block is arithmetic
on flat tensors of at most a few MiB, which stay in the cache on a CPU and cost few kernel launches
on an accelerator, and rounds once however low the precision of the parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from momo_wrap.cutting import is_small, packs, pieces_of
from momo_wrap.distributed import PLAIN, local
from momo_wrap.reductions import Scalar, accumulation_dtype, to_device

# Elements in a block. 2^18 float32 values are 1 MiB, which fits the second-level cache of a CPU
# core. An accelerator needs larger blocks to be busy; five temporaries of 2^21 are 40 MiB.
_CPU_BLOCK_ELEMENTS = 2**18
_ACCELERATOR_BLOCK_ELEMENTS = 2**21


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
        scalars: For each name a value for all elements, a number or a 0-dim tensor.
        negated: The columns that `flat` returns with the opposite sign.
        dtype: The dtype of computation.
        shards: The factor of sums over the block, see `momo_wrap.distributed.shards`.
        per_piece: For each further name one value for each piece, of shape [pieces].
    """

    pieces: Mapping[str, list[Tensor]]
    scalars: Mapping[str, Scalar]
    negated: frozenset[str]
    dtype: torch.dtype
    shards: int = 1
    per_piece: Mapping[str, Tensor] = field(default_factory=dict)

    def flat(self, column: str) -> Tensor:
        """Return a column's stretch.

        Args:
            column: The column's name.

        Returns:
            A tensor of shape [elements of the block] in the dtype of computation; it must not be
            written to, unless it is handed to `write_back` next.
        """
        values = _joined(self.pieces[column])
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
        return self.spread().scalars[name]

    def number(self, name: str) -> float | None:
        """Return a value that is a Python number, and None where it is a tensor.

        Args:
            name: The name of the value.
        """
        value = self.scalars.get(name)
        return None if isinstance(value, Tensor) else value

    def spread(self) -> Block:
        """Return the block with the values per piece spread over its elements, all at once."""
        if not self.per_piece:
            return self
        pieces = next(iter(self.pieces.values()))
        values = torch.stack(list(self.per_piece.values()))
        if len(pieces) > 1:
            # Not repeat_interleave: it would need the sizes on the device.
            parts, start = [], 0
            for size, run in groupby(piece.numel() for piece in pieces):
                stop = start + len(list(run))
                wide = values.narrow(1, start, stop - start).unsqueeze(2).expand(-1, -1, size)
                parts.append(wide.reshape(len(values), -1))
                start = stop
            values = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        else:
            values = values.select(1, 0)
        spread = dict(zip(self.per_piece, values.unbind(), strict=True))
        return replace(self, scalars={**self.scalars, **spread}, per_piece={})

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
        if not self._is_view(column) or self.pieces[column][0].dtype is not self.dtype:
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
        torch._foreach_copy_(pieces, _unflatten_dense_tensors(values, pieces))

    def replaced(self, columns: Mapping[str, Tensor]) -> Block:
        """Return the block with other values in some columns; the columns themselves stay.

        Args:
            columns: Name to the values, of the block's flat shape.
        """
        pieces = {**self.pieces, **{name: [values] for name, values in columns.items()}}
        return replace(self, pieces=pieces)

    def gathered(self, columns: Iterable[str]) -> Block:
        """Return the block with one flat piece per column, in the column's own dtype.

        A view where the column has one piece that lies in memory without gaps, otherwise a copy,
        which `scatter` brings back.

        Args:
            columns: The columns that are wanted; the result has no others.
        """
        pieces = {name: [_joined(self.pieces[name])] for name in columns}
        scalars = self.spread().scalars
        return Block(pieces, scalars, self.negated, self.dtype, self.shards)

    def scatter(self, gathered: Block, columns: Iterable[str]) -> None:
        """Bring what was changed in a gathered block back to the columns.

        Args:
            gathered: What `gathered` returned.
            columns: The columns that were changed, none of the negated ones.
        """
        for column in columns:
            if not self._is_view(column):
                self.write(column, gathered.pieces[column][0])

    def _is_view(self, column: str) -> bool:
        """Whether the column's values, flat and in its own dtype, share its memory."""
        pieces = self.pieces[column]
        return len(pieces) == 1 and pieces[0].is_contiguous()


def blocks(
    columns: Mapping[str, Sequence[Tensor]],
    scalars: Mapping[str, Scalar],
    negated: frozenset[str] = frozenset(),
    shards: int = 1,
    *,
    whole: bool = False,
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
        whole: Whether a large parameter whose tensors lie in memory alike, without gaps, is one
            block, for passes without temporaries.

    Yields:
        Blocks that together hold each element of the columns once: those of large parameters
        first, then those into which small ones are packed.
    """
    real = {name: [_real(tensor) for tensor in tensors] for name, tensors in columns.items()}
    first = next(iter(columns.values()))
    if not first:
        return
    device, dtype = first[0].device, accumulation_dtype(first[0].dtype)
    limit = _CPU_BLOCK_ELEMENTS if device.type == "cpu" else _ACCELERATOR_BLOCK_ELEMENTS
    values = {
        name: to_device(value, device, dtype) if isinstance(value, Tensor) else value
        for name, value in scalars.items()
    }
    per_parameter = {n: v for n, v in values.items() if isinstance(v, Tensor) and v.dim()}
    shared = {name: value for name, value in values.items() if name not in per_parameter}
    own = _Columns(list(per_parameter), list(per_parameter.values()))
    sizes = [tensor.numel() for tensor in next(iter(real.values()))]
    for position, size in enumerate(sizes):
        if not is_small(size, limit):
            of_one = {**shared, **own.of(position)}
            for views in pieces_of([tensors[position] for tensors in real.values()], limit, whole):
                pieces = {name: [view] for name, view in zip(real, views, strict=True)}
                yield Block(pieces, of_one, negated, dtype, shards)
    for pack in packs(sizes, limit):
        pieces = {n: [t for run in pack for t in tensors[run]] for n, tensors in real.items()}
        yield Block(pieces, shared, negated, dtype, shards, own.of_all(pack))


class _Columns:
    """Values per parameter by name, which are taken out of all columns at once.

    Args:
        names: The names.
        values: For each a tensor of shape [parameters].
    """

    def __init__(self, names: Sequence[str], values: Sequence[Tensor]) -> None:
        self._names = names
        self._values = torch.stack(list(values)) if names else None

    def of(self, position: int) -> dict[str, Tensor]:
        """Return the values of one parameter, 0-dim."""
        if self._values is None:
            return {}
        return dict(zip(self._names, self._values.select(1, position).unbind(), strict=True))

    def of_all(self, runs: Sequence[slice]) -> dict[str, Tensor]:
        """Return the values of runs of parameters, each of shape [parameters]."""
        if self._values is None:
            return {}
        parts = [self._values.narrow(1, run.start, run.stop - run.start) for run in runs]
        return dict(zip(self._names, torch.cat(parts, dim=1).unbind(), strict=True))


def _real(tensor: Tensor) -> Tensor:
    if type(tensor) not in PLAIN:
        tensor = local(tensor)
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """Return pieces as one flat tensor of their dtype, a view of a single one where possible."""
    if len(pieces) == 1:
        return pieces[0] if pieces[0].dim() == 1 else pieces[0].reshape(-1)
    joined: Tensor = _flatten_dense_tensors(
        [p if p.is_contiguous() else p.contiguous() for p in pieces]
    )
    return joined

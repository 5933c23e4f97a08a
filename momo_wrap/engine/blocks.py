"""Blocks: the same stretch of several parameter-sized columns, as flat tensors.

A *column* is a list with one tensor per parameter (the parameters, their gradients, their momentum
buffers, ...). Blocks split all columns at the same places: a large tensor becomes several blocks
that are views of it, many small tensors are packed into one block. Blocks are flat tensors of at
most a few MiB, which stay in the cache of a CPU and cost few kernel launches on an accelerator.
Results are rounded once to the precision of the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from momo_wrap.distributed import PLAIN, local
from momo_wrap.engine.ahead import Ahead
from momo_wrap.engine.scalars import Scalar

# Runs of at least so many tensors of one size are spread at once, which takes another copy.
_LONG_RUN = 8
_FLAT = {1}


class Packing:
    """The layout of several small tensors in one block, sorted by group.

    Args:
        sizes: The number of elements of each tensor.
        groups: The parameter group of each.
        device, dtype: The device of the tensors, and the dtype of computation.

    Attributes:
        sizes, groups: As given.
        elements: The total number of elements.
        runs: The parameter group of each run of tensors with the same group.
        lengths: The number of elements of each run, int64; None for a single run.
        index: `groups` as a tensor; None for a single run.
    """

    def __init__(
        self, sizes: list[int], groups: list[int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.sizes, self.groups, self.elements = sizes, groups, sum(sizes)
        self.runs = list(dict.fromkeys(groups))
        self.lengths: Tensor | None = None
        self.index: Tensor | None = None
        if len(self.runs) > 1:
            of_run = dict.fromkeys(self.runs, 0)
            for size, group in zip(sizes, groups, strict=True):
                of_run[group] += size
            self.lengths = torch.tensor(list(of_run.values()), device=device)
            self.index = torch.tensor(groups, device=device)
        self._like = torch.empty(0, device=device, dtype=dtype)
        # For each number of rows a buffer, and views of it expanded to the elements.
        self._wide: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def spread(self, values: Tensor) -> Tensor:
        """Expand values of shape [rows, tensors] to shape [rows, elements]."""
        rows = len(values)
        if rows not in self._wide:
            buffer = self._like.new_empty(rows, len(self.sizes))
            self._wide[rows] = (buffer, self._views(buffer))
        buffer, views = self._wide[rows]
        buffer.copy_(values)
        parts = [view if view.dim() == 2 else view.reshape(rows, -1) for view in views]
        if len(parts) > 1:
            return torch.cat(parts, dim=1)
        # Never a view of the buffer, which is reused.
        return parts[0].clone() if parts[0] is views[0] else parts[0]

    def _views(self, buffer: Tensor) -> list[Tensor]:
        views, start = [], 0
        for size, same in groupby(self.sizes):
            count = len(list(same))
            run = buffer.narrow(1, start, count)
            if count < _LONG_RUN:
                views += [column.expand(-1, size) for column in run.split(1, dim=1)]
            else:
                views.append(run.unsqueeze(2).expand(-1, -1, size))
            start += count
        return views


class Flat(list[Tensor]):
    """Pieces that are known to be flat."""


@dataclass
class Block:
    """The same stretch of every column, as flat tensors.

    Attributes:
        pieces: For each column the pieces of its tensors in this block, each a real view of any
            shape; piece j has the same number of elements in every column.
        scalars: For each name a value for all elements, a number or a 0-dim tensor.
        negated: The columns that `flat` returns with the opposite sign.
        dtype: The dtype of computation.
        shards: The factor of sums over the block, see `momo_wrap.distributed.shards`.
        decayed: The columns to which `flat` adds λ x, where λ is the scalar "coupled_decay".
        groups: The parameter group of each run of pieces with the same group.
        packing: The layout of the pieces of a block of packed small tensors; None for other blocks.
        names: The names of further values, one for each piece.
        per_piece: These values, of shape [names, pieces]; None for no values.
        numel: The number of elements.
        direction: u of the first pass, kept for the second, of the block's flat shape; None: not
            kept.
        largest: The largest absolute value of u, 0-dim, if the first pass computed it.
        ahead: How the first pass moves the parameters; None: not at all.
        is_ahead: Whether that move was made.
        in_rows: Whether pieces are rows of equal length, and `flat` returns them as they are.
    """

    pieces: Mapping[str, list[Tensor]]
    scalars: Mapping[str, Scalar]
    negated: frozenset[str]
    dtype: torch.dtype
    shards: int = 1
    decayed: frozenset[str] = frozenset()
    groups: Sequence[int] = (0,)
    packing: Packing | None = None
    names: Sequence[str] = ()
    per_piece: Tensor | None = None
    numel: int = 0
    direction: Tensor | None = None
    largest: Tensor | None = None
    ahead: Ahead | None = None
    is_ahead: bool = False
    in_rows: bool = False
    _copies: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _spread: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def flat(self, column: str) -> Tensor:
        """Return a column's stretch.

        Args:
            column: The column's name.

        Returns:
            A tensor of shape [elements of the block] in the dtype of computation. It must not be
            written to, unless it is passed to `write_back` next.
        """
        if column in self._copies:
            return self._copies[column]
        pieces = self.pieces[column]
        values = pieces[0] if self.in_rows else joined(pieces)
        values = -values if column in self.negated else values
        values = self._with_decay(values) if column in self.decayed else values
        values = values if values.dtype is self.dtype else values.to(self.dtype)
        if self.packing is not None:
            self._copies[column] = values
        return values

    def _with_decay(self, grad: Tensor) -> Tensor:
        """Return g + λ x, rounded like the base's, because its preconditioner uses that."""
        decay = self.scalar("coupled_decay")
        pieces = self.pieces["param"]
        if grad.dtype is self.dtype:
            x = self.flat("param")  # without rounding, so it may already exist
        else:
            x = pieces[0] if self.in_rows else joined(pieces)
        if not isinstance(decay, Tensor):
            return torch.add(grad, x, alpha=decay)
        if grad.dtype is not self.dtype and grad.device.type == "cpu":
            decay = decay.to(grad.dtype)  # like `alpha` on the CPU
        wide = torch.addcmul(grad.to(self.dtype), decay.to(self.dtype), x.to(self.dtype))
        return wide.to(grad.dtype)

    def forget(self, *, keep_param: bool = False) -> None:
        """Free the copies of columns.

        Args:
            keep_param: Whether to keep the copy of the parameters.
        """
        kept = self._copies.get("param") if keep_param else None
        self._copies, self._spread = {} if kept is None else {"param": kept}, {}

    def scalar(self, name: str) -> Scalar:
        """Return a value per parameter in a shape that broadcasts with `flat` tensors.

        Args:
            name: The name of the values.

        Returns:
            A tensor of shape [] or [elements of the block] in the dtype of computation, or a Python
            number.
        """
        if self.per_piece is None or self.packing is None or name in self.scalars:
            return self.scalars[name]
        if not self._spread:
            values = self.packing.spread(self.per_piece).unbind()
            self._spread = dict(zip(self.names, values, strict=True))
        return self._spread[name]

    def number(self, name: str) -> float | None:
        """Return a value if it is a Python number, None if it is a tensor.

        Args:
            name: The name of the value.
        """
        value = self.scalars.get(name)
        return None if isinstance(value, Tensor) else value

    @property
    def reads_param(self) -> bool:
        """Whether the direction depends on the parameters, through a gradient with λ x added."""
        return bool(self.decayed) and ("buffer" in self.decayed or self.number("grad_scale") != 0.0)

    @property
    def is_stored_in_full(self) -> bool:
        """Whether all columns are stored in the dtype of computation."""
        return all(pieces[0].dtype is self.dtype for pieces in self.pieces.values())

    def write_back(self, column: str, values: Tensor) -> None:
        """Write back to a column the result of `flat` after in-place changes; see `write`."""
        pieces = self.pieces[column]
        if len(pieces) > 1 or not pieces[0].is_contiguous() or pieces[0].dtype is not self.dtype:
            self.write(column, values)

    def write(self, column: str, values: Tensor) -> None:
        """Overwrite the stretch of a column that is not negated.

        Args:
            column: The column's name.
            values: A tensor of shape [elements of the block], rounded to the column's dtype.
        """
        pieces = self.pieces[column]
        if len(pieces) == 1:
            pieces[0].copy_(values.view(pieces[0].shape))
            return
        assert self.packing is not None
        sizes = self.packing.sizes
        if type(pieces) is Flat and values.is_cpu and pieces[0].dtype is values.dtype:
            torch.split_with_sizes_copy(values, sizes, out=pieces)
            return
        parts = values.split_with_sizes(sizes)
        if set(map(Tensor.dim, pieces)) != _FLAT:
            parts = tuple(part.view_as(piece) for part, piece in zip(parts, pieces, strict=True))
        torch._foreach_copy_(pieces, parts)

    def overwrite(self, column: str, values: Tensor) -> None:
        """Overwrite the column's stretch with values that `flat` then returns; see `write`."""
        self.write(column, values)
        self._copies.pop(column, None)
        if self.packing is not None and self.pieces[column][0].dtype is self.dtype:
            self._copies[column] = values

    def hold(self, column: str, values: Tensor) -> None:
        """Make `flat` return values until `forget`, without rounding; see `write`."""
        self._copies[column] = values

    def replaced(self, columns: Mapping[str, Tensor]) -> Block:
        """Return the block with other values in some columns, which do not change.

        Args:
            columns: Column name to a tensor of shape [elements of the block].
        """
        if not columns:
            return self
        pieces = {**self.pieces, **{name: [values] for name, values in columns.items()}}
        form = (self.negated, self.dtype, self.shards, self.decayed, self.groups)
        # Not `dataclasses.replace`, which torch 2.4 can't compile.
        new = Block(pieces, self.scalars, *form, self.packing, self.names, self.per_piece)
        new.in_rows = self.in_rows
        return new


def real(tensor: Tensor) -> Tensor:
    """Return the local shard of a tensor, complex numbers as pairs of reals."""
    if type(tensor) not in PLAIN:
        tensor = local(tensor)
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def joined(pieces: list[Tensor]) -> Tensor:
    """Return pieces as one flat tensor of their dtype, a view of a single piece if possible."""
    if len(pieces) == 1:
        return pieces[0] if pieces[0].dim() == 1 else pieces[0].reshape(-1)
    if type(pieces) is Flat or set(map(Tensor.dim, pieces)) == _FLAT:
        return torch.cat(pieces)
    together: Tensor = _flatten_dense_tensors(pieces)
    return together

"""Parameters that share blocks, across groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor

from momo_wrap.distributed import PLAIN
from momo_wrap.engine.blocks import Block, Flat, Packing, real
from momo_wrap.engine.chunks import is_small, most_elements, packs, split
from momo_wrap.engine.scalars import Scalar, accumulation_dtype, to_device, vector, wide_dtype

_PLAIN_TYPES = frozenset(PLAIN)
_TENSOR = {Tensor}
_is_cpu = attrgetter("is_cpu")
_FLEETING = frozenset({"grad"})
# The memory layout of a tensor.
_LAYOUT: tuple[Callable[[Tensor], Any], ...] = (
    Tensor.data_ptr,
    attrgetter("dtype"),
    Tensor.size,
    Tensor.stride,
)
# The same of one that flat views were made of: where it begins and ends, without gaps.
_FLAT_LAYOUT: tuple[Callable[[Tensor], Any], ...] = (
    *_LAYOUT[:2],
    Tensor.numel,
    Tensor.is_contiguous,
)


class _Cell(Protocol):
    @property
    def group(self) -> int: ...
    @property
    def params(self) -> list[Tensor]: ...
    @property
    def positions(self) -> list[int]: ...
    @property
    def shards(self) -> int: ...


class Kind:
    """Parameters of one device, dtype and sharding, and with the same columns.

    Args:
        cells: The parameters.
        whole: Whether large tensors stay in one piece.

    Attributes:
        device, dtype: The device of the parameters, and the dtype of computation.
        params: The parameters, large ones first. Columns have this order.
        order: This order, as positions in the order of the cells; None: the same.
        positions: The positions of the parameters among all of the base.
        sizes: The number of parameters of each cell.
        limit: The maximum number of elements of a block.
    """

    def __init__(self, cells: Sequence[_Cell], *, whole: bool) -> None:
        params = [param for cell in cells for param in cell.params]
        positions = [position for cell in cells for position in cell.positions]
        groups = [cell.group for cell in cells for _ in cell.params]
        self.device, self.dtype = params[0].device, accumulation_dtype(params[0].dtype)
        self.sizes = [len(cell.params) for cell in cells]
        self.limit = most_elements(self.device)
        self._shards, self._whole = cells[0].shards, whole
        self._is_complex = params[0].is_complex()
        elements = [real(param.detach()).numel() for param in params]
        small = [i for i, size in enumerate(elements) if is_small(size, self.limit)]
        large = [i for i, size in enumerate(elements) if not is_small(size, self.limit)]
        # Equal sizes next to each other, because values per tensor then need fewer runs.
        small.sort(key=lambda i: (groups[i], elements[i]))
        order = large + small
        self.order = None if order == list(range(len(params))) else order
        self.params, self.positions = self.ordered(params), self.ordered(positions)
        self._groups, self._large = self.ordered(groups), len(large)
        of_small = [elements[i] for i in small]
        self._packings = [
            Packing(of_small[pack], self._groups[self._large :][pack], self.device, self.dtype)
            for pack in packs(of_small, self.limit)
        ]
        self._layout: dict[str, list[list[Any]]] = {}
        self._views: dict[str, list[Tensor]] = {}
        self._vectors: dict[str, tuple[list[Any], torch.device, Tensor]] = {}
        self._numbers: dict[str, tuple[float, Tensor]] = {}

    def ordered(self, values: list[Any]) -> list[Any]:
        """Return values per parameter from the order of the cells in that of the kind."""
        return values if self.order is None else [values[i] for i in self.order]

    def blocks(
        self,
        columns: Mapping[str, list[Tensor]],
        scalars: Mapping[str, Scalar],
        negated: frozenset[str] = frozenset(),
        fleeting: frozenset[str] = _FLEETING,
        decayed: frozenset[str] = frozenset(),
    ) -> list[Block]:
        """Return the blocks of some columns.

        Args:
            columns: Name to one tensor per parameter, in the kind's order.
            scalars: Name to a number, a 0-dim tensor, or a tensor of shape [parameters] in the
                kind's order, on any device.
            negated: The columns to read with the opposite sign.
            fleeting: The columns whose tensors are new in every step.
            decayed: The columns to which weight decay is added, see `Block`.

        Returns:
            Blocks that together contain each element of the columns once: those of large parameters
            first, then those of packed small ones.
        """
        names: list[str] = []
        shared, values = dict(scalars), None
        if any(map(isinstance, scalars.values(), repeat(Tensor))):
            shared, names, values = self._values(scalars)
        blocks: list[Block] = []
        for i in range(self._large):
            own = shared
            if values is not None:
                own = {**shared, **dict(zip(names, values.select(1, i).unbind(), strict=True))}
            tensors = [real(column[i]) for column in columns.values()]
            for views in split(tensors, self.limit, whole=self._whole):
                pieces = {name: [view] for name, view in zip(columns, views, strict=True)}
                block = Block(pieces, own, negated, self.dtype, self._shards)
                block.groups = (self._groups[i],)
                block.numel = views[0].numel()
                blocks.append(block)
        if self._packings:
            blocks += self._packed(columns, (shared, names, values), negated, fleeting)
        for block in blocks:
            block.decayed = decayed
        return blocks

    def _packed(
        self,
        columns: Mapping[str, list[Tensor]],
        scalars: tuple[dict[str, Scalar], list[str], Tensor | None],
        negated: frozenset[str],
        fleeting: frozenset[str],
    ) -> list[Block]:
        shared, names, values = scalars
        small = {}
        for name, column in columns.items():
            tensors = column[self._large :] if self._large else column
            if self._is_complex or not _PLAIN_TYPES.issuperset(map(type, tensors)):
                tensors = list(map(real, tensors))
            small[name] = tensors if name in fleeting else self._flat_views(name, tensors)
        blocks, start = [], 0
        for packing in self._packings:
            stop = start + len(packing.sizes)
            whole = start == 0 and stop == len(self.params)
            pieces = small if whole else {name: views[start:stop] for name, views in small.items()}
            block = Block(pieces, shared, negated, self.dtype, self._shards)
            block.groups, block.packing = packing.runs, packing
            block.numel = packing.elements
            if values is not None:
                first = self._large + start
                block.per_piece = values if whole else values.narrow(1, first, stop - start)
                block.names = names
            blocks.append(block)
            start = stop
        return blocks

    def _values(
        self, scalars: Mapping[str, Scalar]
    ) -> tuple[dict[str, Scalar], list[str], Tensor | None]:
        """Return the values that all parameters share, and the names and values of the others."""
        shared: dict[str, Scalar] = {}
        own: dict[str, Tensor] = {}
        for name, value in scalars.items():
            if not isinstance(value, Tensor):
                shared[name] = value
            elif value.dim():
                own[name] = value
            else:
                shared[name] = to_device(value, self.device, self.dtype)
        if not own:
            return shared, [], None
        devices = {value.device for value in own.values()}
        device = devices.pop() if len(devices) == 1 else self.device
        wide = wide_dtype(device)
        stacked = torch.stack([to_device(value, device, wide) for value in own.values()])
        return shared, list(own), to_device(stacked, self.device, self.dtype)

    def _flat_views(self, name: str, tensors: list[Tensor]) -> list[Tensor]:
        """Return flat views of small tensors, those of the last step if they are still valid."""
        known = self._views.get(name)
        asked = _FLAT_LAYOUT if type(known) is Flat else _LAYOUT
        layout = [list(map(ask, tensors)) for ask in asked]
        if known is not None and self._layout[name] == layout:
            return known
        # The views keep the memory alive, so its address is not reused for another tensor.
        # Detached, they do not count as views of a parameter, which may be swapped.
        views = [tensor.detach() for tensor in tensors]
        flat = [view.view(-1) if view.is_contiguous() else view for view in views]
        are_flat = all(view.dim() == 1 and view.is_contiguous() for view in flat)
        asked = _FLAT_LAYOUT if are_flat else _LAYOUT
        self._layout[name] = [list(map(ask, tensors)) for ask in asked]
        self._views[name] = Flat(flat) if are_flat else flat
        return self._views[name]

    def per_parameter(self, name: str, values: list[Any], device: torch.device) -> Scalar:
        """Return one value for each parameter, as a number if all are equal, else as a vector.

        A vector has the kind's order, and float64 for numbers and tensors on the CPU. A vector of
        numbers goes to `device`, and is cached under its name.
        """
        # Most optimizers keep their step counts on the CPU: no host synchronization.
        if set(map(type, values)) == _TENSOR and all(map(_is_cpu, values)):
            values = list(map(Tensor.item, values))
        elif any(isinstance(value, Tensor) for value in values):
            values = self.ordered(values)
            if all(type(value) is Tensor and not value.dim() for value in values):
                return torch.stack(values)
            return vector(values, torch.empty(0, device=device, dtype=wide_dtype(device)))
        if values.count(values[0]) == len(values):
            return float(values[0])
        known = self._vectors.get(name)
        if known is None or known[:2] != (values, device):
            like = torch.empty(0, device=device, dtype=wide_dtype(device))
            known = self._vectors[name] = (values, device, vector(self.ordered(values), like))
        return known[2]

    def as_tensors(
        self, scalars: Mapping[str, Scalar], besides: frozenset[str]
    ) -> dict[str, Scalar]:
        """Return numbers as 0-dim tensors, `besides` some names, and 0 and 1, which are left out.

        Those of the last step are used again where they are equal.
        """
        made = dict(scalars)
        for name, value in scalars.items():
            if name in besides or isinstance(value, Tensor) or value in (0.0, 1.0):
                continue
            known = self._numbers.get(name)
            if known is None or known[0] != value:
                tensor = torch.full((), value, device=self.device, dtype=self.dtype)
                known = self._numbers[name] = (value, tensor)
            made[name] = known[1]
        return made

    def ordered_tensor(self, values: Tensor) -> Tensor:
        """Return values of shape [] or [parameters] from the cells' order in that of the kind."""
        if not values.dim() or self.order is None:
            return values
        return torch.stack([values[i] for i in self.order])

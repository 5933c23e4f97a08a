"""The plan of a step: which parameters there are, of which kinds, and how they become blocks.

A plan is made once and kept until something that it depends on changes: parameters or groups,
which gradients there are, where a small tensor lies in memory. What may be large is never kept.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from momo_wrap.distributed import PLAIN, aligned, local, shards
from momo_wrap.engine.blocks import Block, Packing, flattened, real
from momo_wrap.engine.chunks import is_small, most_elements, packs, split
from momo_wrap.engine.scalars import (
    Scalar,
    accumulation_dtype,
    scalar_template,
    to_device,
    vector,
)
from momo_wrap.params import can_move

_PLAIN_TYPES = frozenset(PLAIN)


class Cell(NamedTuple):
    """The parameters of a group that have a gradient, of one device, dtype and sharding.

    Attributes:
        group: The index of the group.
        params: The parameters.
        positions: Their positions among all parameters of the base.
        shards: Into how many parts each is sharded, see `momo_wrap.distributed.shards`.
    """

    group: int
    params: list[Tensor]
    positions: list[int]
    shards: int


class Plan:
    """What is known beforehand of the parameters of a base optimizer.

    Args:
        groups: The base's parameter groups.

    Attributes:
        groups: The number of groups.
        like: An empty tensor of the device and dtype that scalars have.
        cells: The parameters with a gradient.
        others: All others that a base may move all the same.
        grads: The gradients of all parameters in this step, None where there is none.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self._key = _key(groups)
        self.groups = len(groups)
        self.like = scalar_template(groups)
        self._params = [param for group in groups for param in group["params"]]
        of = [index for index, group in enumerate(groups) for _ in group["params"]]
        cells: tuple[dict[object, Cell], dict[object, Cell]] = ({}, {})
        for position, (index, param) in enumerate(zip(of, self._params, strict=True)):
            if can_move(param):
                count = 1 if type(param) in _PLAIN_TYPES else shards(param)
                key = (index, param.device, param.dtype, count)
                some = cells[param.grad is None]
                cell = some.setdefault(key, Cell(index, [], [], count))
                cell.params.append(param)
                cell.positions.append(position)
        self.cells, self.others = (list(some.values()) for some in cells)
        self.grads: list[Tensor | None] = []
        self._kinds: dict[object, Kind] = {}
        self._indices: dict[tuple[int, ...], Tensor] = {}

    def holds(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether the plan is still that of some parameter groups.

        Args:
            groups: The base's parameter groups.
        """
        return self._key == _key(groups)

    def take_gradients(self) -> None:
        """Find the gradients of this step."""
        self.grads = [param.grad for param in self._params]
        for position, grad in enumerate(self.grads):
            if grad is not None:
                if grad.layout is not torch.strided:
                    raise TypeError(self._sparse(position, grad))
                if type(grad) not in _PLAIN_TYPES:
                    self.grads[position] = self._local(position, grad)
                elif grad.is_neg():
                    # A kernel would not see that it is to be read with the opposite sign.
                    self.grads[position] = grad.resolve_neg()

    def _sparse(self, position: int, grad: Tensor) -> str:
        return (
            f"A parameter of shape {list(self._params[position].shape)} has a {grad.layout} "
            "gradient; the momentum model needs dense ones. Use sparse=False in the embedding that "
            "made it."
        )

    def _local(self, position: int, grad: Tensor) -> Tensor:
        param = self._params[position]
        grad = aligned(grad, param)
        if grad is not param.grad:
            param.grad = grad  # so that a buffer that the base makes of it has the layout too
        return local(grad).resolve_neg()

    def index(self, groups: list[int]) -> Tensor:
        """Return indices of groups as a tensor, which is kept.

        Args:
            groups: The indices.
        """
        key = tuple(groups)
        if key not in self._indices:
            self._indices[key] = torch.tensor(groups, device=self.like.device)
        return self._indices[key]

    def drop_gradients(self) -> None:
        """Forget the gradients, which the plan must not keep alive."""
        self.grads = []

    def kind(self, cells: Sequence[Cell], names: tuple[str, ...], *, whole: bool) -> Kind:
        """Return parameters that share blocks.

        Args:
            cells: The parameters, of one device, dtype and sharding.
            names: What tells them from others that do, such as the names of their columns.
            whole: Whether large tensors are left in one piece.
        """
        key = (cells[0].positions[0], names, len(cells), whole)
        kind = self._kinds.get(key)
        if kind is None or not kind.is_of(cells):
            kind = self._kinds[key] = Kind(cells, whole=whole)
        return kind


def _key(groups: Sequence[Mapping[str, Any]]) -> tuple[object, ...]:
    """Return what a plan depends on, besides where small tensors lie."""
    params = [param for group in groups for param in group["params"]]
    return (
        [len(group["params"]) for group in groups],
        list(map(id, params)),
        [param.requires_grad for param in params],
        [None if param.grad is None else (param.dtype, param.device) for param in params],
    )


class Kind:
    """Parameters of any groups that share blocks: of one device, dtype, sharding, and columns.

    Args:
        cells: The parameters.
        whole: Whether large tensors are left in one piece.

    Attributes:
        device, dtype: Where they are, and the dtype of computation.
        shards: Into how many parts each parameter is sharded.
        order: The positions of the gradients among those of all parameters, in the order in which
            the kind has its parameters.
    """

    def __init__(self, cells: Sequence[Cell], *, whole: bool) -> None:
        self._cells = list(cells)
        params = [param for cell in cells for param in cell.params]
        groups = [cell.group for cell in cells for _ in cell.params]
        self.device, self.dtype = params[0].device, accumulation_dtype(params[0].dtype)
        self.shards = cells[0].shards
        self._whole, self._limit = whole, most_elements(self.device)
        sizes = [real(param.detach()).numel() for param in params]
        small = [i for i, size in enumerate(sizes) if is_small(size, self._limit)]
        large = [i for i, size in enumerate(sizes) if not is_small(size, self._limit)]
        # Equal sizes side by side: values per tensor are then spread over fewer runs.
        small.sort(key=lambda i: (groups[i], sizes[i]))
        self._order = large + small
        self._is_in_order = self._order == list(range(len(params)))
        self._groups = [groups[i] for i in self._order]
        self._large = len(large)
        of_small = [sizes[i] for i in small]
        self._packs = packs(of_small, self._limit)
        self._packings = [
            Packing.of(of_small[pack], self._groups[self._large :][pack], self.device)
            for pack in self._packs
        ]
        self._layout: dict[str, list[object]] = {}
        self._views: dict[str, list[Tensor]] = {}
        self._vectors: dict[str, tuple[list[Scalar], Tensor]] = {}

    @property
    def kept_elements(self) -> int:
        """How many elements of directions are kept between the passes: a block's."""
        return self._limit

    def ordered_tensor(self, values: Tensor) -> Tensor:
        """Return a tensor of values per parameter in the order of the kind.

        Args:
            values: Shape [] or [parameters], the latter in the order of the cells.
        """
        if not values.dim() or self._is_in_order:
            return values
        return torch.stack(self.ordered(list(values.unbind())))

    def is_of(self, cells: Sequence[Cell]) -> bool:
        """Return whether the kind is made of these cells."""
        return len(cells) == len(self._cells) and all(map(operator.is_, cells, self._cells))

    def ordered(self, values: list[Any]) -> list[Any]:
        """Return values per parameter, in the order of the cells, in that of the kind."""
        return values if self._is_in_order else [values[i] for i in self._order]

    def blocks(
        self,
        columns: Mapping[str, list[Tensor]],
        scalars: Mapping[str, Scalar],
        negated: frozenset[str] = frozenset(),
        fleeting: frozenset[str] = frozenset({"grad"}),
    ) -> list[Block]:
        """Return the blocks of some columns.

        Args:
            columns: Name to one tensor per parameter, in the kind's order.
            scalars: Name to a number, a 0-dim tensor, or a tensor of shape [parameters] in the
                kind's order, on any device.
            negated: The columns to be read with the opposite sign.
            fleeting: The columns of tensors that are other ones in every step.

        Returns:
            Blocks that together hold each element of the columns once: those of large parameters
            first, then those into which small ones are packed.
        """
        shared, names, values = self._values(scalars)
        blocks = list(self._large_blocks(columns, shared, names, values, negated))
        small = {
            name: list(map(real, column[self._large :]))
            if name in fleeting
            else self._flat_views(name, column[self._large :])
            for name, column in columns.items()
        }
        for pack, packing in zip(self._packs, self._packings, strict=True):
            pieces = {name: views[pack] for name, views in small.items()}
            block = Block(pieces, shared, negated, self.dtype, self.shards, packing.runs, packing)
            if values is not None:
                start = self._large + pack.start
                its = values.narrow(1, start, pack.stop - pack.start)
                if pack.stop - pack.start == 1:
                    its_scalars = dict(zip(names, its.select(1, 0).unbind(), strict=True))
                    block.scalars = {**shared, **its_scalars}
                else:
                    block.per_piece = dict(zip(names, its.unbind(), strict=True))
            blocks.append(block)
        return blocks

    def _large_blocks(
        self,
        columns: Mapping[str, list[Tensor]],
        shared: Mapping[str, Scalar],
        names: Sequence[str],
        values: Tensor | None,
        negated: frozenset[str],
    ) -> Iterator[Block]:
        for position in range(self._large):
            scalars = shared
            if values is not None:
                own = values.select(1, position).unbind()
                scalars = {**shared, **dict(zip(names, own, strict=True))}
            tensors = [real(column[position]) for column in columns.values()]
            groups = (self._groups[position],)
            for views in split(tensors, self._limit, whole=self._whole):
                pieces = {name: [view] for name, view in zip(columns, views, strict=True)}
                yield Block(pieces, scalars, negated, self.dtype, self.shards, groups)

    def _values(
        self, scalars: Mapping[str, Scalar]
    ) -> tuple[dict[str, Scalar], list[str], Tensor | None]:
        """Return the values that all parameters share, and the names and values of the others."""
        own = {n: v for n, v in scalars.items() if isinstance(v, Tensor) and v.dim()}
        shared: dict[str, Scalar] = {
            name: to_device(v, self.device, self.dtype) if isinstance(v, Tensor) else v
            for name, v in scalars.items()
            if name not in own
        }
        if not own:
            return shared, [], None
        devices = {value.device for value in own.values()}
        device = devices.pop() if len(devices) == 1 else self.device
        wide = _wide(device).dtype
        stacked = torch.stack([to_device(value, device, wide) for value in own.values()])
        return shared, list(own), to_device(stacked, self.device, self.dtype)

    def _flat_views(self, name: str, tensors: list[Tensor]) -> list[Tensor]:
        """Return flat views of small tensors, those of the last step where they are still right."""
        layout = [_layout(tensor) for tensor in tensors]
        if self._layout.get(name) != layout:
            self._layout[name], self._views[name] = layout, flattened(tensors)
        return self._views[name]

    def per_parameter(self, name: str, values: list[Any], device: torch.device) -> Scalar:
        """Return values as a number, where all have the same, or as a vector.

        Args:
            name: What the values are called; a vector of numbers is kept under it.
            values: One number or 0-dim tensor for each parameter, in the order of the cells.
            device: Where a vector of numbers goes.

        Returns:
            A number, or a tensor of shape [parameters] in the kind's order, of float64 where they
            are numbers.
        """
        if any(isinstance(value, Tensor) for value in values):
            values = self.ordered(values)
            if all(isinstance(value, Tensor) for value in values):
                return torch.stack([v if type(v) is Tensor and not v.dim() else local(v).reshape(()) for v in values])
            return vector(values, _wide(device))
        if all(value == values[0] for value in values):
            return float(values[0])
        known = self._vectors.get(name)
        if known is None or known[0] != values or known[1].device != device:
            made = vector(self.ordered(values), _wide(device))
            known = self._vectors[name] = (values, made)
        return known[1]


def _layout(tensor: Tensor) -> object:
    """Return where a tensor lies. Its memory is kept alive by the view of it that is kept."""
    plain = tensor if type(tensor) in _PLAIN_TYPES else local(tensor)
    return (plain.data_ptr(), plain.shape, plain.stride(), plain.dtype)


def _wide(device: torch.device) -> Tensor:
    """Return an empty tensor of float64, where the device has it."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.empty(0, device=device, dtype=dtype)

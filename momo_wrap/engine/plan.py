"""The plan of a step: which parameters there are, of which kinds, and how they become blocks.

A plan is made once and kept until something that it depends on changes: parameters or groups,
which gradients there are, where a small tensor lies in memory. What may be large is never kept.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from momo_wrap.distributed import PLAIN, aligned, local, shards
from momo_wrap.engine.kind import Kind
from momo_wrap.engine.params import can_move
from momo_wrap.engine.scalars import scalar_template

_PLAIN_TYPES = frozenset(PLAIN)
_grad, _requires_grad = operator.attrgetter("grad"), operator.attrgetter("requires_grad")
_dtype, _device = operator.attrgetter("dtype"), operator.attrgetter("device")


class Cell(NamedTuple):
    """Parameters of one group, of one device, dtype and sharding.

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
        self.groups = len(groups)
        self.like = scalar_template(groups)
        self.grads: list[Tensor | None] = []
        self._sizes = [len(group["params"]) for group in groups]
        self._params = [param for group in groups for param in group["params"]]
        self._key = _key(self._params)
        of = [index for index, group in enumerate(groups) for _ in group["params"]]
        cells: tuple[dict[object, Cell], dict[object, Cell]] = ({}, {})
        for position, (index, param) in enumerate(zip(of, self._params, strict=True)):
            if can_move(param) and not is_lazy(param):
                count = 1 if type(param) in _PLAIN_TYPES else shards(param)
                key = (index, param.device, param.dtype, count)
                some = cells[param.grad is None]
                cell = some.setdefault(key, Cell(index, [], [], count))
                cell.params.append(param)
                cell.positions.append(position)
        self.cells, self.others = (list(some.values()) for some in cells)
        self._arrangements: dict[object, list[tuple[Kind, list[int]]]] = {}
        self._indices: dict[tuple[int, ...], Tensor] = {}

    def holds(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether the plan is still that of some parameter groups.

        Args:
            groups: The base's parameter groups.
        """
        params = [param for group in groups for param in group["params"]]
        return self._sizes == [len(group["params"]) for group in groups] and self._key == _key(
            params
        )

    def take_gradients(self) -> None:
        """Find the gradients of this step.

        Raises:
            TypeError: One is not dense.
        """
        grads = list(map(_grad, self._params))
        for position, grad in enumerate(grads):
            if grad is None:
                continue
            if grad.layout is not torch.strided:
                raise TypeError(
                    f"Parameter {position} of the optimizer, of shape {list(grad.shape)}, has a "
                    f"{grad.layout} gradient; the momentum model needs dense ones. Use "
                    "sparse=False in the embedding that made it."
                )
            if type(grad) not in _PLAIN_TYPES:
                grads[position] = self._local(self._params[position], grad)
            elif grad.is_neg():
                # A kernel would not see that it is to be read with the opposite sign.
                grads[position] = grad.resolve_neg()
        self.grads = grads

    @staticmethod
    def _local(param: Tensor, grad: Tensor) -> Tensor:
        grad = aligned(grad, param)
        if grad is not param.grad:
            param.grad = grad  # so that a buffer that the base makes of it has the layout too
        return local(grad).resolve_neg()

    def arrange(
        self, cells: Sequence[Cell], names: list[Any], *, whole: bool
    ) -> list[tuple[Kind, list[int]]]:
        """Return the kinds that cells are of, each with the positions of its cells.

        Args:
            cells: Some of the plan's cells, the same ones in every step.
            names: What tells each from others, besides device, dtype and sharding.
            whole: Whether large tensors are left in one piece.
        """
        key = (tuple(names), whole, id(cells[0]) if cells else None)
        if key not in self._arrangements:
            together: dict[object, list[int]] = {}
            for i, (cell, its_names) in enumerate(zip(cells, names, strict=True)):
                first = cell.params[0]
                kind = (first.device, first.dtype, cell.shards, its_names)
                together.setdefault(kind, []).append(i)
            self._arrangements[key] = [
                (Kind([cells[i] for i in indices], whole=whole), indices)
                for indices in together.values()
            ]
        return self._arrangements[key]

    def index(self, groups: list[int]) -> Tensor:
        """Return indices of groups as a tensor, which is kept.

        Args:
            groups: The indices.
        """
        key = tuple(groups)
        if key not in self._indices:
            self._indices[key] = torch.tensor(groups, device=self.like.device)
        return self._indices[key]


def _key(params: list[Tensor]) -> tuple[list[Any], ...]:
    """Return what a plan depends on, besides where small tensors lie."""
    return (
        list(map(id, params)),
        list(map(operator.is_, map(_grad, params), repeat(None))),
        list(map(_requires_grad, params)),
        list(map(_dtype, params)),
        list(map(_device, params)),
    )


def common_template(plans: Sequence[Plan]) -> Tensor:
    """Return an empty tensor of the device and dtype of the scalars of several bases.

    Args:
        plans: The plans of all bases, which get it as theirs.
    """
    likes = [plan.like for plan in plans]
    device = next((like.device for like in likes if like.device.type != "cpu"), likes[0].device)
    wide = any(like.dtype is torch.float64 for like in likes)
    common = torch.empty(0, device=device, dtype=torch.float64 if wide else torch.float32)
    for plan in plans:
        plan.like = common
    return common

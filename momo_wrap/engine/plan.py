"""The plan of a step: the parameters, their kinds, and their blocks.

A plan is made once and kept until something that it depends on changes: parameters or groups, which
parameters have gradients, or the memory of a small tensor. Large tensors are never kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from momo_wrap.distributed import PLAIN, aligned, local, shards
from momo_wrap.engine.kind import Kind
from momo_wrap.engine.params import can_move
from momo_wrap.engine.scalars import scalar_template

_PLAIN_TYPES = frozenset(PLAIN)


class Cell(NamedTuple):
    """Parameters of one group, of one device, dtype and sharding.

    Attributes:
        group: The index of the group.
        params: The parameters.
        positions: Their positions among all parameters of the base.
        shards: The number of shards of each, see `momo_wrap.distributed.shards`.
    """

    group: int
    params: list[Tensor]
    positions: list[int]
    shards: int


class Plan:
    """The plan for the parameters of a base optimizer.

    Args:
        groups: The base's parameter groups.
        like: The device and dtype of scalars if no parameter can move; None: float32 on the CPU.

    Attributes:
        groups: The number of groups.
        params: The parameters of all groups.
        like: An empty tensor of the device and dtype of scalars.
        cells: The parameters with a gradient.
        others: The parameters without a gradient, which a base may move too.
        grads: The gradients of all parameters in this step; None for a missing one.
        kept: A cache that is valid as long as the plan.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], like: Tensor | None = None) -> None:
        self.groups = len(groups)
        self.like = scalar_template(groups, like)
        self.grads: list[Tensor | None] = []
        self.params = [param for group in groups for param in group["params"]]
        self._places = [
            (i, j) for i, group in enumerate(groups) for j in range(len(group["params"]))
        ]
        cells: tuple[dict[object, Cell], dict[object, Cell]] = ({}, {})
        for position, ((index, _), param) in enumerate(zip(self._places, self.params, strict=True)):
            if can_move(param) and not is_lazy(param):
                count = 1 if type(param) in _PLAIN_TYPES else shards(param)
                key = (index, param.device, param.dtype, count)
                some = cells[param.grad is None]
                cell = some.setdefault(key, Cell(index, [], [], count))
                cell.params.append(param)
                cell.positions.append(position)
        self.cells, self.others = (list(some.values()) for some in cells)
        self.kept: dict[object, Any] = {}

    def dense(self, position: int, grad: Tensor) -> Tensor:
        """Return a gradient in the form for computation.

        Args:
            position: The parameter's position.
            grad: Its gradient.

        Returns:
            The local shard, without a pending negation, which a kernel would ignore.

        Raises:
            TypeError: The gradient is not dense.
        """
        param = self.params[position]
        if grad.layout is not torch.strided:
            index, place = self._places[position]
            raise TypeError(
                f"Parameter {place} of group {index}, of shape {list(param.shape)}, has a "
                f"{grad.layout} gradient, expected a dense one. Use sparse=False in the embedding "
                "that computes it."
            )
        if type(grad) not in _PLAIN_TYPES:
            grad = aligned(grad, param)
            if grad is not param.grad:
                param.grad = (
                    grad  # so a buffer that the base creates from it has the same placements
                )
        elif grad.is_neg():
            param.grad = grad = grad.resolve_neg()
        return local(grad).resolve_neg()

    @staticmethod
    def arrange(
        cells: Sequence[Cell], names: Sequence[object], *, whole: bool
    ) -> list[tuple[Kind, list[int]]]:
        """Return the kinds of cells, each with the positions of its cells."""
        together: dict[object, list[int]] = {}
        for i, (cell, its_names) in enumerate(zip(cells, names, strict=True)):
            first = cell.params[0]
            kind = (first.device, first.dtype, cell.shards, its_names)
            together.setdefault(kind, []).append(i)
        return [
            (Kind([cells[i] for i in indices], whole=whole), indices)
            for indices in together.values()
        ]

    def index(self, groups: list[int]) -> Tensor:
        """Return indices of groups as a cached tensor."""
        key = tuple(groups)
        if key not in self.kept:
            self.kept[key] = torch.tensor(groups, device=self.like.device)
        index: Tensor = self.kept[key]
        return index

"""The plan of a step: which parameters there are, of which kinds, and how they become blocks.

A plan is made once and kept until something that it depends on changes: parameters or groups,
which gradients there are, where a small tensor lies in memory. What may be large is never kept.
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
        like: What scalars are like where no parameter can move; None: float32 on the CPU.

    Attributes:
        groups: The number of groups.
        params: The parameters of all groups.
        like: An empty tensor of the device and dtype that scalars have.
        cells: The parameters with a gradient.
        others: All others that a base may move all the same.
        grads: The gradients of all parameters in this step, None where there is none.
        kept: What else was made for these parameters, and is kept as long as the plan.
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
        """Return a gradient as it is computed with.

        Args:
            position: The parameter's position.
            grad: Its gradient.

        Returns:
            The part on this rank, without a pending negation, which a kernel would not see.

        Raises:
            TypeError: It is not dense.
        """
        param = self.params[position]
        if grad.layout is not torch.strided:
            index, place = self._places[position]
            raise TypeError(
                f"Parameter {place} of group {index}, of shape {list(param.shape)}, has a "
                f"{grad.layout} gradient; the momentum model needs dense ones. Use "
                "sparse=False in the embedding that made it."
            )
        if type(grad) not in _PLAIN_TYPES:
            grad = aligned(grad, param)
            if grad is not param.grad:
                param.grad = grad  # so that a buffer that the base makes of it has the layout too
        elif grad.is_neg():
            param.grad = grad = grad.resolve_neg()
        return local(grad).resolve_neg()

    @staticmethod
    def arrange(
        cells: Sequence[Cell], names: Sequence[object], *, whole: bool
    ) -> list[tuple[Kind, list[int]]]:
        """Return the kinds that cells are of, each with the positions of its cells."""
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
        """Return indices of groups as a tensor, which is kept."""
        key = tuple(groups)
        if key not in self.kept:
            self.kept[key] = torch.tensor(groups, device=self.like.device)
        index: Tensor = self.kept[key]
        return index

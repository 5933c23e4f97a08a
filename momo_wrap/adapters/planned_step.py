"""The step of a base, computed block by block: its sums first, its move afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from momo_wrap.adapters.averaging import Averaging
from momo_wrap.adapters.base import BaseStep
from momo_wrap.adapters.rates import Rates
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.passes import Engine, Formula
from momo_wrap.engine.plan import Cell, Kind, Plan
from momo_wrap.engine.scalars import Scalar, to_device

# Columns that every block has.
_TAKEN = frozenset({"param", "buffer", "grad"})


@dataclass(frozen=True)
class Reading:
    """What makes the direction of some parameters.

    Attributes:
        buffer: The momentum buffers B_k; None where the base has no momentum, so that B_k = g_k.
        tensors: Further columns, each with one tensor per parameter, of the parameter's shape.
        scalars: Values per parameter: one for all, a Python number or a 0-dim tensor, or a list
            with one for each. "buffer_scale" and "grad_scale" among them are the p and q of each
            parameter, in place of those of the averaging.
    """

    buffer: list[Tensor] | None
    tensors: Mapping[str, list[Tensor]] = field(default_factory=dict)
    scalars: Mapping[str, Scalar | list[Any]] = field(default_factory=dict)


class PlannedStep(BaseStep):
    """A step x <- keep x - θ pull u whose direction u is made of columns, element by element.

    Args:
        formula: How the columns make a direction.
        engine: What computes on blocks.
        plan: The parameters.
        readings: The columns of each of the plan's cells.
        averagings: How each group averages.
        rates: The coefficients of the step.
        negate: Whether gradients are those of a function that is maximised. Buffers that are not
            the gradients themselves have the sign of a minimisation already.
        fleeting: The columns, besides gradients, of tensors that are new ones in every step.
        moving: Further blocks that are moved, and are not in the sums.
    """

    def __init__(
        self,
        formula: Formula,
        engine: Engine,
        plan: Plan,
        readings: Sequence[Reading],
        averagings: Sequence[Averaging],
        rates: Rates,
        *,
        negate: bool = False,
        fleeting: frozenset[str] = frozenset(),
        moving: Sequence[tuple[Kind, list[Block]]] = (),
    ) -> None:
        self.averagings = averagings
        self._formula, self._engine, self._plan, self._rates = formula, engine, plan, rates
        self._parts = [
            (kind, self._blocks(kind, cells, kind_readings, negate, fleeting))
            for kind, cells, kind_readings in _by_kind(plan, readings, whole=engine.whole)
        ]
        self.sums = rates.sums(self._products())
        self._parts += moving

    def _blocks(
        self,
        kind: Kind,
        cells: Sequence[Cell],
        readings: Sequence[Reading],
        negate: bool,
        fleeting: frozenset[str],
    ) -> list[Block]:
        grads = [self._plan.grads[i] for cell in cells for i in cell.positions]
        is_gradient = readings[0].buffer is None
        columns: dict[str, list[Any]] = {"param": [p for cell in cells for p in cell.params]}
        columns["grad"] = grads
        columns["buffer"] = (
            grads
            if is_gradient
            else [t for reading in readings for t in reading.buffer or ()]
        )
        for name in readings[0].tensors:
            columns[name] = [t for reading in readings for t in reading.tensors[name]]
        negated = frozenset({"grad", "buffer"} if is_gradient else {"grad"})
        return kind.blocks(
            {name: kind.ordered(column) for name, column in columns.items()},
            self._scalars(kind, cells, readings),
            negated if negate else frozenset(),
            fleeting | ({"grad", "buffer"} if is_gradient else {"grad"}),
        )

    def _scalars(
        self, kind: Kind, cells: Sequence[Cell], readings: Sequence[Reading]
    ) -> Mapping[str, Scalar]:
        """Return the values per parameter, those of the formula included."""
        sizes = [len(cell.params) for cell in cells]
        own = [self.averagings[cell.group] for cell in cells]
        values: dict[str, list[Any]] = {
            "buffer_scale": [averaging.buffer_scale for averaging in own],
            "grad_scale": [averaging.grad_scale for averaging in own],
        }
        for name in readings[0].scalars:
            values[name] = [reading.scalars[name] for reading in readings]
        # Step counts are on the CPU for most optimizers, wherever the parameters are.
        tensors = (t for its in values.values() for t in _tensors(its))
        device = next((tensor.device for tensor in tensors), kind.device)
        read = {n: _joined(n, its, sizes, kind, device) for n, its in values.items()}
        return self._engine.scalars(self._formula, read)

    def _products(self) -> Tensor:
        """Return the inner products of all groups, of shape [products, groups]."""
        gradient = any(block.number("grad_scale") != 0.0 for _, bs in self._parts for block in bs)
        rows = (2 if gradient else 1) * (2 if self._rates.decays else 1)
        like, found = self._plan.like, []
        for kind, blocks in self._parts:
            room, parts = kind.kept_elements, []
            for block in blocks:
                size = block.elements
                room -= size
                parts.append(
                    self._engine.sum_up(
                        self._formula,
                        block,
                        keep=room >= 0,
                        gradient=gradient,
                        params=self._rates.decays,
                    ).view(rows, -1)
                )
            its = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            groups = list(chain.from_iterable(block.groups for block in blocks))
            found.append((to_device(its, like.device, like.dtype), groups))
        return _summed(found, rows, self._plan)

    def apply(self, thetas: Tensor) -> Tensor:
        """Move the parameters, equation (4); see `BaseStep`."""
        rates = self._rates
        pull, keep = thetas * rates.pull, rates.keep
        if rates.scaled_decay is not None:
            keep = 1.0 - pull * rates.scaled_decay
        for kind, blocks in self._parts:
            pulls = _Coefficient(pull, kind)
            keeps = None if keep is None else _Coefficient(keep, kind)
            for block in blocks:
                left = 1.0 if keeps is None else keeps.of(block)
                self._engine.move(self._formula, block, left, pulls.of(block))
        self._parts = []
        self._plan.drop_gradients()
        return pull if rates.lr is rates.pull else thetas * rates.lr


class _Coefficient:
    """A value per group, handed to blocks."""

    def __init__(self, values: Tensor, kind: Kind) -> None:
        self._values = to_device(values, kind.device, kind.dtype)
        self._of_group = self._values.unbind()

    def of(self, block: Block) -> Tensor:
        """Return the value for a block, of shape [] or [elements of the block]."""
        packing = block.packing
        if packing is None or packing.index is None:
            return self._of_group[block.groups[0]]
        of_piece = self._values.index_select(0, packing.index)
        return packing.spread(of_piece.unsqueeze(0)).squeeze(0)


def _by_kind(
    plan: Plan, readings: Sequence[Reading], *, whole: bool
) -> list[tuple[Kind, list[Cell], list[Reading]]]:
    """Return the cells that share blocks, with their readings."""
    together: dict[Any, tuple[list[Cell], list[Reading]]] = {}
    for cell, reading in zip(plan.cells, readings, strict=True):
        _check(reading)
        first = cell.params[0]
        names = (reading.buffer is None, *reading.tensors, *reading.scalars)
        key = (first.device, first.dtype, cell.shards, names)
        cells, its = together.setdefault(key, ([], []))
        cells.append(cell)
        its.append(reading)
    return [
        (plan.kind(cells, key[-1], whole=whole), cells, its)
        for key, (cells, its) in together.items()
    ]


def _check(reading: Reading) -> None:
    taken = _TAKEN & reading.tensors.keys()
    if taken:
        raise ValueError(
            f"read() returned tensors named {sorted(taken)}, which every block has already. Choose "
            "other names in Reading(tensors=...)."
        )


def _tensors(values: Sequence[Scalar | list[Any]]) -> list[Tensor]:
    """Return the first tensor among values of a cell or of its parameters, if there is one."""
    first = values[0][0] if isinstance(values[0], list) else values[0]
    return [first] if isinstance(first, Tensor) else []


def _joined(
    name: str,
    values: Sequence[Scalar | list[Any]],
    sizes: Sequence[int],
    kind: Kind,
    device: torch.device,
) -> Scalar:
    """Return the values of several cells as a number, a 0-dim tensor, or one for each parameter."""
    if len(values) == 1 and not isinstance(values[0], list):
        only = values[0]
        return kind.ordered_tensor(only) if isinstance(only, Tensor) else only
    each: list[Any] = []
    for value, size in zip(values, sizes, strict=True):
        if isinstance(value, Tensor) and value.dim():
            each += value.unbind()
        else:
            each += value if isinstance(value, list) else [value] * size
    return kind.per_parameter(name, each, device)


def _summed(found: Sequence[tuple[Tensor, list[int]]], rows: int, plan: Plan) -> Tensor:
    """Add up products of runs by group; shape [products, groups]."""
    if len(found) == 1 and found[0][1] == list(range(plan.groups)):
        return found[0][0]
    total = torch.zeros(rows, plan.groups, device=plan.like.device, dtype=plan.like.dtype)
    for products, groups in found:
        total.index_add_(1, plan.index(groups), products)
    return total

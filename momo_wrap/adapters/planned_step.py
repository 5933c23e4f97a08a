"""The step of a base, computed block by block: its sums first, its move afterwards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from momo_wrap.adapters.base import BaseStep
from momo_wrap.adapters.rates import Rates
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.kind import Kind
from momo_wrap.engine.passes import Engine, Formula, Move, Product
from momo_wrap.engine.scalars import Scalar
from momo_wrap.model import Averaging

_GLOBAL_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
# The hooks of all optimizers.
global_hooks = tuple(getattr(torch_optimizer, name) for name in _GLOBAL_HOOKS)

# Columns that every block has.
_TAKEN = frozenset({"param", "buffer", "grad"})
_GRADIENT = frozenset({"grad"})
_GRADIENTS = frozenset({"grad", "buffer"})
_OF_MODEL = (("buffer_scale", "buffer"), ("grad_scale", "grad"))
_SQUARES = ("coupled_decay", "param", "param")


@dataclass(frozen=True)
class Reading:
    """The tensors and scalars behind the direction of some parameters.

    Attributes:
        buffer: The momentum buffers B_k; None for a base without momentum, where B_k = g_k.
        tensors: Further columns, each with one tensor per parameter, of the parameter's shape.
        scalars: Values per parameter: a Python number or a 0-dim tensor for all, or a list with one
            for each. "buffer_scale" and "grad_scale" are the p and q of each parameter, instead of
            those of the averaging.
    """

    buffer: list[Tensor] | None
    tensors: Mapping[str, list[Tensor]] = field(default_factory=dict)
    scalars: Mapping[str, Scalar | list[Any]] = field(default_factory=dict)


class PlannedStep(BaseStep):
    """A step x <- keep x - θ pull u whose direction u is an element-wise function of columns.

    Args:
        formula: How to compute the direction from the columns.
        engine: The engine that computes on blocks; its plan is that of the step.
        readings: The columns of each of the plan's cells.
        averagings: How each group averages.
        rates: The coefficients of the step.
        negate: Whether to negate gradients, because the base maximizes. Buffers other than the
            gradients already have the sign of minimization.
        fleeting: The columns, besides gradients, whose tensors are new in every step.
        moving: Further blocks to move, which are not in the sums.
    """

    def __init__(
        self,
        formula: Formula,
        engine: Engine,
        readings: Sequence[Reading],
        averagings: Sequence[Averaging],
        rates: Rates,
        *,
        negate: bool = False,
        fleeting: frozenset[str] = frozenset(),
        moving: Sequence[tuple[Kind, list[Block]]] = (),
    ) -> None:
        self.averagings = averagings
        self._formula, self._engine, self._rates = formula, engine, rates
        plan = engine.plan
        names = tuple([(r.buffer is None, *r.tensors, *r.scalars) for r in readings])
        key = ("kinds", names, engine.whole)
        if key not in plan.kept:
            _check(readings)
            plan.kept[key] = plan.arrange(plan.cells, names, whole=engine.whole)
        self._parts: list[tuple[Kind, list[Block]]] = []
        for kind, cells in plan.kept[key]:
            some = [readings[i] for i in cells]
            own = [averagings[plan.cells[i].group] for i in cells]
            raw = _GRADIENTS if some[0].buffer is None else _GRADIENT
            scalars = self._scalars(kind, own, some, [plan.cells[i].group for i in cells])
            blocks = kind.blocks(
                self._columns(kind, some),
                scalars,
                raw if negate else frozenset(),
                fleeting | raw,
                raw if "coupled_decay" in scalars else frozenset(),
            )
            self._parts.append((kind, blocks))
        self.sums = self._sums()
        self._parts += moving

    def _columns(self, kind: Kind, readings: Sequence[Reading]) -> dict[str, list[Any]]:
        grads = self._engine.plan.grads
        columns: dict[str, list[Any]] = {"param": kind.params}
        columns["grad"] = columns["buffer"] = [grads[i] for i in kind.positions]
        first = readings[0]
        if len(readings) == 1:
            own = (
                {**first.tensors}
                if first.buffer is None
                else {"buffer": first.buffer, **first.tensors}
            )
        else:
            own = {name: [t for r in readings for t in r.tensors[name]] for name in first.tensors}
            if first.buffer is not None:
                own["buffer"] = [t for r in readings for t in r.buffer or ()]
        if kind.order is not None:
            own = {name: kind.ordered(column) for name, column in own.items()}
        return {**columns, **own}

    def _scalars(
        self,
        kind: Kind,
        averagings: Sequence[Averaging],
        readings: Sequence[Reading],
        groups: Sequence[int],
    ) -> Mapping[str, Scalar]:
        """Return the values per parameter, those of the formula included."""
        coupled = self._rates.coupled_decay
        cells: list[dict[str, Any]] = [
            {
                "decay": its.decay,
                "weight": its.weight,
                "buffer_scale": its.buffer_scale,
                "grad_scale": its.grad_scale,
                **({} if coupled is None else {"coupled_decay": coupled[group]}),
                **reading.scalars,
            }
            for its, reading, group in zip(averagings, readings, groups, strict=True)
        ]
        read = cells[0]
        if len(cells) > 1:
            read = {name: _for_each([its[name] for its in cells], kind.sizes) for name in read}
        others = {name: value for name, value in read.items() if not isinstance(value, float)}
        # Step counts are on the CPU for most optimizers, wherever the parameters are.
        device = kind.device
        for value in others.values():
            first = value[0] if isinstance(value, list) else value
            device = first.device if isinstance(first, Tensor) else device
        for name, value in others.items():
            if isinstance(value, list):
                read[name] = kind.per_parameter(name, value, device)
            elif isinstance(value, Tensor):
                read[name] = kind.ordered_tensor(value)
        scalars = self._engine.scalars(self._formula, read, kind)
        is_given = "buffer_scale" in readings[0].scalars
        is_given = is_given or scalars["buffer_scale"] is not read["buffer_scale"]
        if averagings[0].bias_corrected and not is_given:
            raise ValueError(
                "The averaging has bias_corrected=True, but there are no scalars named "
                "'buffer_scale'. Return {'buffer_scale': 1 / (1 - beta1**steps), ...} from "
                "scalars(), or in Reading(..., scalars=...)."
            )
        return scalars

    def _sums(self) -> Tensor:
        """Return the contributions of the groups to the model; see `BaseStep`."""
        rates, plan = self._rates, self._engine.plan
        decays = rates.keep is not None
        # A value that is no number is not among the scalars, or a tensor.
        scales = [block.scalars.get("grad_scale") for _, some in self._parts for block in some]
        gradient = any(isinstance(scale, Tensor) or scale != 0.0 for scale in scales)
        of_model = _OF_MODEL[: 1 + gradient]  # d = p B + q g
        products = [(*its, other) for other in ("u", "param")[: 1 + decays] for its in of_model]
        if rates.coupled_decay is None:
            found = self._products(products)
        else:
            found = self._products([*products, _SQUARES])
            found, self.penalty = found[:-1], found[-1] / 2
            self.coupled_decay = rates.coupled_decay
        if not gradient and not decays:
            return found * rates.factors
        if not gradient and rates.scaled_decay is not None:
            along_u, along_x = found.unbind()
            return torch.addcmul(along_u, rates.scaled_decay, along_x) * rates.factors
        if not gradient:
            return found.index_select(0, plan.index([0, 0, 0, 1, 1])) * rates.factors
        of_u, *of_x = found.view(1 + decays, -1, plan.groups).unbind()
        buffer_u, d_u = of_u[0], of_u.sum(0)  # ⟨d, v⟩ = ⟨p B, v⟩ + ⟨q g, v⟩
        if not decays:
            return torch.stack([d_u, buffer_u]) * rates.factors
        buffer_x, d_x = of_x[0][0], of_x[0].sum(0)
        if rates.scaled_decay is not None:
            d_u = torch.addcmul(d_u, rates.scaled_decay, d_x)
            buffer_u = torch.addcmul(buffer_u, rates.scaled_decay, buffer_x)
            return torch.stack([d_u, buffer_u]) * rates.factors
        return torch.stack([d_u, buffer_u, d_u, d_x, buffer_x]) * rates.factors

    def _products(self, products: Sequence[Product]) -> Tensor:
        """Return the inner products of all groups, of shape [products, groups]."""
        plan = self._engine.plan
        found: list[Tensor] = []
        index: list[int] = []
        for kind, blocks in self._parts:
            its_products = self._engine.sum_up(self._formula, blocks, products, kind.limit)
            parts = [part.view(len(products), -1) for part in its_products]
            index += [group for block in blocks for group in block.groups]
            its = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            found.append(its.to(plan.like))
        if len(found) == 1 and index == list(range(plan.groups)):
            return found[0]
        total = plan.like.new_zeros(len(products), plan.groups)
        return total.index_add_(1, plan.index(index), torch.cat(found, dim=1)) if found else total

    def apply(self, thetas: Tensor) -> Tensor:
        """Move the parameters, equation (4); see `BaseStep`."""
        rates, engine = self._rates, self._engine
        pull, keep = thetas * rates.pull, rates.keep
        if keep is not None and rates.scaled_decay is not None:
            keep = keep - pull * rates.scaled_decay
        given = [pull] if keep is None else [pull, keep]
        one = engine.plan.groups == 1
        for kind, blocks in self._parts:
            coefficients = given
            if pull.dtype is not kind.dtype or pull.device != kind.device:
                coefficients = [v.to(device=kind.device, dtype=kind.dtype) for v in given]
            of_group = [[v.view(())] if one else v.unbind() for v in coefficients]
            moves: list[Move] = []
            for block in blocks:
                packing = block.packing
                if packing is None or packing.index is None:
                    own = [values[block.groups[0]] for values in of_group]
                else:
                    pieces = torch.stack(coefficients).index_select(1, packing.index)
                    own = list(packing.spread(pieces).unbind())
                moves.append((block, own[1] if len(own) > 1 else 1.0, own[0]))
            engine.move(self._formula, moves)
        self._parts = []
        return pull if rates.lr is rates.pull else thetas * rates.lr


def _check(readings: Sequence[Reading]) -> None:
    for reading in readings:
        taken = _TAKEN & reading.tensors.keys()
        if taken:
            raise ValueError(
                f"read() returned tensors named {sorted(taken)}, which every block already has. "
                "Choose other names in Reading(tensors=...)."
            )


def _for_each(values: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """Return one value for each parameter of several cells."""
    each: list[Any] = []
    for value, size in zip(values, sizes, strict=True):
        if isinstance(value, Tensor) and value.dim():
            each += value.unbind()
        else:
            each += value if isinstance(value, list) else [value] * size
    return each


def step_without_global_hooks(base: Optimizer) -> None:
    """Call `base.step()` with its own hooks only.

    Global hooks have run for the wrapper, whose step this is part of.
    """
    try:
        for name in _GLOBAL_HOOKS:
            setattr(torch_optimizer, name, OrderedDict())
        base.step()
    finally:
        for name, hooks in zip(_GLOBAL_HOOKS, global_hooks, strict=True):
            setattr(torch_optimizer, name, hooks)

"""Engines that update the state of a base in its stead, and the choice among all."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.engine.ahead import Ahead
from momo_wrap.engine.blocks import Block, joined
from momo_wrap.engine.chunks import most_elements, split
from momo_wrap.engine.passes import Engine, Formula, Product, inner_products
from momo_wrap.engine.plan import Plan
from momo_wrap.engine.scalars import Scalar
from momo_wrap.fast import kernels
from momo_wrap.fast.replacing import has_own_step, is_plain, mark_stepped
from momo_wrap.fast.stepping import SteppingEngine
from momo_wrap.fast.updates import UPDATES, Update

# Below that many parameters, compiling takes longer than it saves in thousands of steps.
_WORTHWHILE_ELEMENTS = 2**24
# Below that many, sums that are known later cost less than to foresee θ.
_WORTH_FORESEEING = 2**20
_FULL = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def choose_engine(
    compiled: bool | Literal["auto"], base: Optimizer, adapter: object, params: Sequence[Tensor]
) -> type[Engine]:
    """Return the engine for a base optimizer.

    Args:
        compiled: Whether to compile; left to choose, where it is sure to work and to pay.
        base: The optimizer.
        adapter: What reads it.
        params: The parameters that can move.
    """
    update = UPDATES.get((type(base), type(adapter)))
    on_host = all(param.device.type == "cpu" for param in params)
    if update is None or (not compiled and not on_host):
        return Engine
    if compiled is True:
        return CompiledEngine
    if not on_host:
        return Engine
    # Counted first, because a model of many small parameters should not pay for more.
    elements = sum(param.numel() for param in params)
    if compiled and elements >= _WORTHWHILE_ELEMENTS and _has_compiler():
        return CompiledEngine
    # On the CPU a base goes from tensor to tensor, with a fused kernel or with many operations.
    fused = [bool(group.get("fused")) for group in base.param_groups]
    # In lower precision it rounds more often than a base that is to be the same.
    is_full = all(param.dtype in _FULL for param in params)
    if all(fused) and is_full and update.bounds_moves and elements >= _WORTH_FORESEEING:
        return SteppingEngine
    updates = compiled and update.pays_uncompiled and not any(fused) and is_full
    return UpdatingEngine if updates else Engine


@functools.cache
def _has_compiler() -> bool:
    names = (*os.environ.get("CXX", "g++").split()[:1], "clang++", "cl")
    return any(shutil.which(name) for name in names)


class UpdatingEngine(Engine):
    """Updates the state of a base in its stead, many small tensors at once.

    In steps in which somebody would miss `base.step()`, it does what `Engine` does.
    """

    _update: Update | None = None

    def replaces_step(self, base: Optimizer, formula: Formula, plan: Plan) -> bool:
        """Return whether there is an update, and nobody would miss `base.step()`; see `Engine`."""
        update = UPDATES.get((type(base), type(formula)))
        state = base.state
        cells = [(base.param_groups[cell.group], cell.params) for cell in plan.cells]
        self._update = None
        if (
            update is not None
            and cells
            and is_plain(base)
            and has_own_step(type(base))
            and self._is_possible([params[0] for _, params in cells])
            and all(update.is_ready(*cell, state) for cell in cells)
        ):
            mark_stepped(base)
            update.count(cells, state)
            self._update = update
        return self._update is not None

    def _is_possible(self, params: Sequence[Tensor]) -> bool:
        return True

    def scalars(self, formula: Formula, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return all values per parameter, those of the update among them; see `Engine`."""
        found = super().scalars(formula, read)
        return found if self._update is None else {**found, **self._update.scalars(read)}

    def sum_up(
        self, formula: Formula, block: Block, products: Sequence[Product], *, keep: bool
    ) -> Tensor:
        """Update the state and return inner products; see `Engine`."""
        if self._update is not None:
            for column, values in self._update.updated(block).items():
                block.overwrite(column, values)
        return super().sum_up(formula, block, products, keep=keep)


class CompiledEngine(UpdatingEngine):
    """Does so with kernels.

    Where a kernel can't be compiled, it does what `Engine` does.
    """

    foresees = True

    def replaces_step(self, base: Optimizer, formula: Formula, plan: Plan) -> bool:
        """Return whether kernels update the state; see `Engine`."""
        self.whole = self.moves_ahead = super().replaces_step(base, formula, plan)
        self.bounds_moves = self._update is not None and self._update.bounds_moves
        return self.whole

    def _is_possible(self, params: Sequence[Tensor]) -> bool:
        return kernels.can_compile(params)

    def scalars(self, formula: Formula, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return all values per parameter, numbers as tensors; see `Engine`."""
        found = super().scalars(formula, read)
        if self._update is None:
            return found
        # As tensors they are arguments of a kernel, not constants; 0 and 1 tell what to leave out.
        return {
            name: value
            if isinstance(value, Tensor) or value in (0.0, 1.0)
            else torch.tensor(value, dtype=torch.float64, device="cpu")
            for name, value in found.items()
        }

    def sum_up(
        self, formula: Formula, block: Block, products: Sequence[Product], *, keep: bool
    ) -> Tensor:
        """Update the state and return inner products; see `Engine`."""
        update, ahead, block.ahead = self._update, block.ahead, None
        if update is None:
            return super().sum_up(formula, block, products, keep=keep)
        # What is rounded to 16 bits when it is stored would be rounded twice.
        ahead = ahead if block.is_stored_in_full else None
        scales = [] if ahead is None else [scale for scale in ahead if scale is not None]
        measures = self.foreseen is not None and not self.bounds_moves
        form = (measures, _form(ahead))
        traced = functools.partial(_update_and_sum, update, formula, tuple(products), form)
        key = ("sum up", type(update), type(formula), form, *products)
        needs_param = bool(block.decayed) or any("param" in product for product in products)
        needs_param |= ahead is not None
        done = _run(traced, key, block, *scales, needs_grad=True, needs_param=needs_param)
        if done is None:
            several = [traced(small)[0][0] for small in _pieces(block)]
        else:
            several, block.largest, block.ahead = [done[0][0]], done[0][1], ahead
        block.forget()
        return several[0] if len(several) == 1 else torch.stack(several).sum(0)

    def move(self, formula: Formula, block: Block, keep: Scalar, pull: Tensor) -> None:
        """Move the parameters of a block; see `Engine`."""
        if self._update is None:
            super().move(formula, block, keep, pull)
            return
        scales, ahead = [pull, keep] if isinstance(keep, Tensor) else [pull], block.ahead
        moved = [] if ahead is None else [scale for scale in ahead if scale is not None]
        key = ("move", type(formula), len(scales), _form(ahead))
        traced = functools.partial(_move, formula, len(scales), _form(ahead))
        needs_grad = block.number("grad_scale") != 0.0
        done = _run(traced, key, block, *scales, *moved, needs_grad=needs_grad, needs_param=True)
        if done is None:
            for small in _pieces(block):
                super().move(formula, small, keep, pull)
        block.ahead = None
        block.forget()


def _update_and_sum(
    update: Update,
    formula: Formula,
    products: Sequence[Product],
    form: tuple[bool, Form],
    block: Block,
    *ahead: Tensor,
) -> kernels.Done:
    """Update the state of a block; return inner products and largest u, and what was written."""
    new = update.updated(block)
    for column, values in new.items():
        block.write(column, values)
    block = block.replaced(new)
    direction = formula.preconditioned(block)
    found = inner_products(block, direction, products)
    largest = direction.abs().amax() if form[0] else None
    if not ahead:
        return (found, largest), tuple(new)
    block.write_back("param", _ahead_of(ahead, form[1]).move(block.flat("param"), direction))
    return (found, largest), (*new, "param")


def _move(formula: Formula, own: int, form: Form, block: Block, *scales: Tensor) -> kernels.Done:
    """Move the parameters of a block, x <- keep x - pull u; return what was written."""
    direction = formula.preconditioned(block)
    if len(scales) > own:
        x = _ahead_of(scales[own:], form).put_back(block.flat("param"), direction)
        block.write_back("param", x)
    pull, *keep = scales[:own]
    moved = formula.moved(block, direction, keep[0] if keep else 1.0, pull)
    block.write_back("param", moved)
    return None, ("param",)


# Which of its values an `Ahead` has.
Form: TypeAlias = tuple[bool, ...]


def _form(ahead: Ahead | None) -> Form:
    return () if ahead is None else tuple(scale is not None for scale in ahead)


def _ahead_of(scales: Sequence[Tensor], form: Form) -> Ahead:
    """Return what a kernel has got one by one."""
    given = iter(scales)
    return Ahead(*[next(given) if there else None for there in form])  # type: ignore[arg-type]


def _run(
    traced: Callable[..., kernels.Done],
    key: object,
    block: Block,
    *scales: Tensor,
    needs_grad: bool,
    needs_param: bool,
) -> kernels.Done | None:
    """Run a pass as a kernel over the columns that it needs; None where there is no kernel.

    A column is a view where it has one piece that lies in memory without gaps, otherwise a copy, in
    the column's own dtype, that is brought back.
    """
    if len(block.groups) > 1:
        return None
    is_gradient = block.pieces["buffer"][0].is_set_to(block.pieces["grad"][0])
    needless = {"param": not needs_param, "grad": is_gradient or not needs_grad}
    names = [name for name in block.pieces if not needless.get(name)]
    flat = {name: [joined(block.pieces[name])] for name in names}
    scalars = {name: block.scalar(name) for name in (*block.scalars, *block.names)}
    form = (block.negated, block.dtype, block.shards, block.decayed)
    part = Block(flat, scalars, *form)
    done = kernels.run(traced, key, part, *scales)
    for column in done[1] if done is not None else ():
        pieces = block.pieces[column]
        if len(pieces) > 1 or not pieces[0].is_contiguous():
            block.write(column, flat[column][0])
    return done


def _pieces(block: Block) -> Iterator[Block]:
    """Split a block that was meant for a kernel into small ones."""
    if block.packing is not None:
        yield block
        return
    tensors = [pieces[0] for pieces in block.pieces.values()]
    for views in split(tensors, most_elements(tensors[0].device), whole=False):
        pieces = {name: [view] for name, view in zip(block.pieces, views, strict=True)}
        yield replace(block, pieces=pieces)

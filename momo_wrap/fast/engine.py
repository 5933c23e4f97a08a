"""Engines that update the optimizer state instead of `base.step()`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.engine.ahead import Ahead
from momo_wrap.engine.blocks import Block, joined
from momo_wrap.engine.kind import Kind
from momo_wrap.engine.passes import Engine, Formula, Move, Product, inner_products
from momo_wrap.engine.plan import Plan
from momo_wrap.engine.scalars import Scalar
from momo_wrap.fast import correction, kernels
from momo_wrap.fast.batches import batches, filled, in_parts, is_gradient
from momo_wrap.fast.replacing import has_own_step, is_plain, mark_stepped
from momo_wrap.fast.updates import UPDATES, Entries, Update

# What torch takes as a number at no cost; other numbers become tensors in each operation.
_NUMBERS = frozenset({"weight", "second_weight", "decay", "coupled_decay"})
_NO_STATE: Mapping[str, Any] = MappingProxyType({})


class UpdatingEngine(Engine):
    """Updates the optimizer state instead of `base.step()`, many small tensors at once.

    If `base.step()` is hooked or patched, it works like `Engine`.
    """

    _update: Update | None = None

    def replaces_step(self, base: Optimizer, formula: Formula, plan: Plan) -> bool:
        """Return whether there is an update, and `base.step()` is unpatched; see `Engine`."""
        update = UPDATES.get((type(base), type(formula)))
        self._update = None
        if (
            update is None
            or not plan.cells
            or not is_plain(base)
            or not has_own_step(type(base))
            or not self._is_possible(plan)
        ):
            return False
        groups, state = base.param_groups, base.state
        cells: list[Entries] = [
            (groups[cell.group], [state.get(param, _NO_STATE) for param in cell.params])
            for cell in plan.cells
        ]
        if not all(update.is_ready(group, entries) for group, entries in cells):
            return False
        mark_stepped(base)
        update.count(cells)
        self._update = update
        return True

    def _is_possible(self, plan: Plan) -> bool:
        return True

    def scalars(
        self, formula: Formula, read: Mapping[str, Scalar], kind: Kind
    ) -> Mapping[str, Scalar]:
        """Return all values per parameter, including those of the update; see `Engine`."""
        found = super().scalars(formula, read, kind)
        if self._update is None:
            return found
        return self._tensors({**found, **self._update.scalars(read)}, kind)

    def _tensors(self, scalars: Mapping[str, Scalar], kind: Kind) -> Mapping[str, Scalar]:
        return kind.as_tensors(scalars, _NUMBERS)

    def sum_up(
        self, formula: Formula, blocks: Sequence[Block], products: Sequence[Product], room: int
    ) -> list[Tensor]:
        """Update the state and return inner products; see `Engine`."""
        if self._update is None:
            return super().sum_up(formula, blocks, products, room)
        found = []
        for block in blocks:
            for column, values in self._update.updated(block).items():
                block.overwrite(column, values)
            found += super().sum_up(formula, [block], products, room)
            room -= block.numel
        return found


class CompiledEngine(UpdatingEngine):
    """Updates the optimizer state and moves parameters with compiled kernels.

    If a kernel can't be compiled, it works like `Engine`.
    """

    foresees = True

    def prepare(self, groups: Sequence[Mapping[str, Any]]) -> Plan:
        """Plan a step, and find out where moves ahead are corrected; see `Engine`."""
        plan = super().prepare(groups)
        if "corrects" not in plan.kept:
            plan.kept["corrects"] = correction.is_possible(plan)
        self.corrects = plan.kept["corrects"]
        return plan

    def replaces_step(self, base: Optimizer, formula: Formula, plan: Plan) -> bool:
        """Return whether kernels update the state; see `Engine`."""
        self.whole = self.moves_ahead = super().replaces_step(base, formula, plan)
        self.bounds_moves = self._update is not None and self._update.bounds_moves
        return self.whole

    def _is_possible(self, plan: Plan) -> bool:
        return kernels.can_compile([cell.params[0] for cell in plan.cells])

    def _tensors(self, scalars: Mapping[str, Scalar], kind: Kind) -> Mapping[str, Scalar]:
        # Tensors are arguments of a kernel, not constants; 0 and 1 stay constants, to skip terms.
        if kind.device.type != "cpu":
            return kind.as_tensors(scalars, frozenset())
        return {
            name: value
            if isinstance(value, Tensor) or value in (0.0, 1.0)
            else torch.tensor(value, dtype=torch.float64, device="cpu")
            for name, value in scalars.items()
        }

    def sum_up(
        self, formula: Formula, blocks: Sequence[Block], products: Sequence[Product], room: int
    ) -> list[Tensor]:
        """Update the state and return inner products; see `Engine`."""
        update = self._update
        for block in blocks:
            if update is None or not self._can_move_ahead(update, block):
                block.ahead = None
        if update is None:
            return super().sum_up(formula, blocks, products, room)
        measures = self.foreseen is not None and not self.bounds_moves
        reads_param = any("param" in product for product in products)
        scales, found = [_scales(block.ahead) for block in blocks], {}
        for indices in batches(blocks, scales):
            some = [blocks[i] for i in indices]
            form = (measures, _form(some[0].ahead))
            traced = functools.partial(_update_and_sum, update, formula, tuple(products), form)
            key = ("sum up", type(update), type(formula), form, *products)
            needs_param = reads_param or bool(some[0].decayed) or some[0].ahead is not None
            its = scales[indices[0]]
            done = _run(traced, key, some, its, needs_grad=True, needs_param=needs_param)
            for i, block in zip(indices, some, strict=True):
                if done is None:
                    block.ahead = None
                    several = [traced(small)[0][0] for small in in_parts(block)]
                    found[i] = several[0] if len(several) == 1 else torch.stack(several).sum(0)
                block.forget()
            for i, (values, largest) in zip(indices, done or (), strict=done is not None):
                found[i], blocks[i].largest = values, largest
                blocks[i].is_ahead = blocks[i].ahead is not None
        return [found[i] for i in range(len(blocks))]

    def move(self, formula: Formula, moves: Iterable[Move]) -> None:
        """Move the parameters of blocks; see `Engine`."""
        if self._update is None:
            super().move(formula, moves)
            return
        given = self._without_ahead(formula, list(moves))
        blocks = [block for block, _, _ in given]
        own = [[pull, keep] if isinstance(keep, Tensor) else [pull] for _, keep, pull in given]
        scales = [[*its, *_scales(b.ahead)] for its, b in zip(own, blocks, strict=True)]
        for indices in batches(blocks, scales):
            some, first = [blocks[i] for i in indices], blocks[indices[0]]
            form = (len(own[indices[0]]), _form(first.ahead))
            traced = functools.partial(_move, formula, form)
            key = ("move", type(formula), form)
            needs_grad = first.number("grad_scale") != 0.0
            its = scales[indices[0]]
            done = _run(traced, key, some, its, needs_grad=needs_grad, needs_param=True)
            for i, block in zip(indices, some, strict=True):
                if done is None:
                    super().move(formula, [(s, *given[i][1:]) for s in in_parts(block)])
                block.ahead = None
                block.forget()

    def _can_move_ahead(self, update: Update, block: Block) -> bool:
        # Parameters stored in 16 bits would be rounded twice.
        known = not self.corrects or correction.takes(update, block)
        return block.is_stored_in_full and known

    def _without_ahead(self, formula: Formula, moves: Sequence[Move]) -> list[Move]:
        """Return the moves that are left after those of blocks moved ahead are corrected."""
        ahead = [move for move in moves if move[0].ahead is not None]
        if not self.corrects or not ahead or self._update is None:
            return list(moves)
        left = [move for move in moves if move[0].ahead is None]
        try:
            correction.correct(self._update, ahead, self.plan.kept)
        except Exception as error:
            # Like `kernels.run`, but the moves have been made: first all are undone, uncompiled.
            for block, keep, pull in ahead:
                super().move(formula, [(small, keep, pull) for small in in_parts(block)])
                block.ahead = None
            kernels.note_failure(ahead[0][0].pieces["param"][0].device, error)
        for block, _, _ in ahead:
            block.ahead = None
        return left


def _update_and_sum(
    update: Update,
    formula: Formula,
    products: Sequence[Product],
    form: tuple[bool, Form],
    block: Block,
    *ahead: Tensor,
) -> kernels.Done:
    """Update the state of a block; return inner products, largest u, and the changed columns."""
    new = update.updated(block)
    for column, values in new.items():
        block.write(column, values)
    block = block.replaced(new)
    direction = formula.preconditioned(block)
    found = inner_products(block, direction, products)
    # An empty tensor has no maximum, but a sum.
    largest = None
    if form[0]:
        rows = direction.abs().amax(-1) if block.in_rows else direction.abs()
        largest = rows.amax() if direction.numel() else direction.sum()
    if not ahead:
        return (found, largest), tuple(new)
    block.write_back("param", _ahead_of(ahead, form[1]).move(block.flat("param"), direction))
    return (found, largest), (*new, "param")


def _move(formula: Formula, form: tuple[int, Form], block: Block, *scales: Tensor) -> kernels.Done:
    """Move the parameters of a block, x <- keep x - pull u; return the changed columns."""
    own, of_ahead = form
    direction = formula.preconditioned(block)
    if of_ahead:
        ahead = _ahead_of(scales[own:], of_ahead)
        block.write_back("param", ahead.put_back(block.flat("param"), direction))
    pull, *keep = scales[:own]
    moved = formula.moved(block, direction, keep[0] if keep else 1.0, pull)
    block.write_back("param", moved)
    return None, ("param",)


# Which values of an `Ahead` are not None.
Form: TypeAlias = tuple[bool, ...]


def _form(ahead: Ahead | None) -> Form:
    return () if ahead is None else tuple(scale is not None for scale in ahead)


def _scales(ahead: Ahead | None) -> list[Tensor]:
    return [] if ahead is None else [scale for scale in ahead if scale is not None]


def _ahead_of(scales: Sequence[Tensor], form: Form) -> Ahead:
    """Return the `Ahead` of a form with these values."""
    given = iter(scales)
    return Ahead(*[next(given) if there else None for there in form])  # type: ignore[arg-type]


def _run(
    traced: Callable[..., kernels.Done],
    key: object,
    blocks: Sequence[Block],
    scales: Sequence[Tensor],
    *,
    needs_grad: bool,
    needs_param: bool,
) -> list[Any] | None:
    """Run a pass over blocks as a kernel, with the columns that it needs; None: no kernel.

    A column with one contiguous piece is a view, any other a copy in the column's dtype that is
    written back.
    """
    first = blocks[0]
    if len(first.groups) > 1:
        return None
    needless = {"param": not needs_param, "grad": is_gradient(first) or not needs_grad}
    names = [name for name in first.pieces if not needless.get(name)]
    columns = [{name: joined(block.pieces[name]) for name in names} for block in blocks]
    scalars = {name: first.scalar(name) for name in (*first.scalars, *first.names)}
    form = (first.negated, first.dtype, first.shards, first.decayed)
    done = kernels.run(traced, key, filled(columns), scalars, form, scales)
    if done is None:
        return None
    for block, flat, (_, changed) in zip(blocks, columns, done, strict=False):
        for column in changed:
            pieces = block.pieces[column]
            if len(pieces) > 1 or not pieces[0].is_contiguous():
                block.write(column, flat[column])
    return [result for result, _ in done[: len(blocks)]]

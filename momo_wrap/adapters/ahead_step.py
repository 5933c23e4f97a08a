"""A step with an expected θ: parameters move in the pass that sums up, and are corrected after."""

from __future__ import annotations

import torch
from torch import Tensor

from momo_wrap.adapters.planned_step import PlannedStep
from momo_wrap.engine.ahead import Ahead
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.kind import Kind


class AheadStep(PlannedStep):
    """A planned step whose engine has an expected θ; see `momo_wrap.engine.ahead`."""

    _limit: Tensor | None = None

    def apply(self, thetas: Tensor) -> Tensor:
        """Move the parameters that were not already moved correctly; see `BaseStep`.

        θ is read only on the CPU, which is no host synchronization.
        """
        try:
            self._find_reach(thetas)
            return super().apply(thetas)
        except BaseException:
            self.withdraw()  # what has not moved since
            raise

    def _find_reach(self, thetas: Tensor) -> None:
        """Set `reach`, and on the CPU drop the blocks that have moved correctly."""
        foreseen, corrects = self._engine.foreseen, self._engine.corrects
        if corrects or (foreseen is not None and torch.equal(foreseen.theta.to(thetas), thetas)):
            self.reach = self._longest(thetas * self._rates.pull)
        if corrects or self.reach is None or self._limit is None:
            return
        if bool(self.reach <= self._limit):
            self._parts = [
                (kind, [block for block in blocks if block.ahead is None])
                for kind, blocks in self._parts
            ]

    def withdraw(self) -> None:
        """Put back the parameters that were moved ahead; see `BaseStep`."""
        for kind, blocks in self._parts:
            nothing = torch.zeros((), device=kind.device, dtype=kind.dtype)
            moved = [(block, 1.0, nothing) for block in blocks if block.is_ahead]
            self._engine.move(self._formula, moved)

    def _sums(self) -> Tensor:
        """Return the sums, and move the parameters ahead if that can be undone."""
        foreseen = self._engine.foreseen
        self._limit = None if foreseen is None else foreseen.limit
        if foreseen is not None and self._limit is not None:
            pull, keep = foreseen.theta * self._rates.pull, self._rates.keep
            if keep is not None and self._rates.scaled_decay is not None:
                keep = keep - pull * self._rates.scaled_decay
            engine, undoable = self._engine, _undoable(pull, keep, self._limit)
            if engine.corrects:
                if engine.bounds_moves:
                    undoable &= pull <= self._limit
                pull = torch.where(undoable, pull, 0.0)
                keep = None if keep is None else torch.where(undoable, keep, 1.0)
                self._limit = self._limit.nan_to_num(nan=0.0)
            can_move = engine.moves_ahead and (engine.corrects or bool(undoable.all()))
            if engine.has_stepped or can_move:
                self._plan_move(pull, keep, self._limit)
        try:
            return super()._sums()
        except BaseException:
            self.withdraw()
            raise

    def _plan_move(self, pull: Tensor, keep: Tensor | None, limit: Tensor) -> None:
        """Set in each block how its parameters are moved ahead, or were moved by the base.

        Not for blocks of several groups, which have no kernel, nor for blocks whose direction
        depends on the parameters, because it could not be computed again.
        """
        given, engine = [pull] if keep is None else [pull, keep], self._engine
        for kind, blocks in self._parts:
            its = _like(kind, torch.stack(given))
            most = None if engine.bounds_moves else _like(kind, limit)
            by_group = [Ahead(*its.select(1, i).unbind()) for i in range(engine.plan.groups)]
            by_group = [ahead._replace(limit=most) for ahead in by_group]
            for block in blocks:
                if len(block.groups) == 1 and not block.reads_param:
                    block.ahead = by_group[block.groups[0]]
                elif engine.has_stepped and block.packing is not None:
                    index = engine.plan.index(block.packing.groups).to(kind.device)
                    block.ahead = Ahead(*block.packing.spread(its.index_select(1, index)).unbind())
                block.is_ahead = engine.has_stepped

    def _longest(self, pull: Tensor) -> Tensor | None:
        """Return the largest move of an element; None if unknown.

        If the learning rate bounds moves, the CPU needs none, and accelerators the largest `pull`.
        """
        if self._engine.bounds_moves:
            return pull.amax() if self._engine.corrects else pull.new_zeros(())
        found: list[Block] = []
        largest: list[Tensor] = []
        for _, blocks in self._parts:
            for block in blocks:
                if block.largest is not None:
                    found.append(block)
                    largest.append(block.largest)
        if not found:
            return None
        index = self._engine.plan.index([block.groups[0] for block in found])
        return (torch.stack([its.to(pull) for its in largest]) * pull.index_select(0, index)).amax()


def _undoable(pull: Tensor, keep: Tensor | None, limit: Tensor) -> Tensor:
    """Return for each group whether moves are finite, and `keep` large enough to divide by."""
    fits = (pull >= 0) & (pull < torch.inf) & (limit >= 0)
    return fits if keep is None else fits & (keep >= 0.5)


def _like(kind: Kind, values: Tensor) -> Tensor:
    return values.to(device=kind.device, dtype=kind.dtype)

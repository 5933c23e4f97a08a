"""Steps of optimizers whose parameters follow an anchor z, where the model of the loss is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from momo_wrap.adapters.base import ParamGroup
from momo_wrap.adapters.planned_step import PlannedStep, Reading
from momo_wrap.adapters.rates import Rates
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.passes import Engine
from momo_wrap.engine.scalars import Scalar
from momo_wrap.model import Averaging

DriftOfGroup: TypeAlias = Callable[[ParamGroup], Scalar]

# The columns of z as it is and as it was proposed, and the scalar c.
ANCHOR, PROPOSED_ANCHOR, DRIFT = "anchor", "proposed_anchor", "drift"


class Anchored:
    """z <- z + θ s, and parameters that follow: y <- y' + θ (y_proposed - y'), equation (20)."""

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return c of each parameter."""
        return {DRIFT: read[DRIFT]}

    def preconditioned(self, block: Block) -> Tensor:
        """Return u = z - z_proposed of a block: the learning rate is 1."""
        if ANCHOR in block.pieces:
            return block.flat(ANCHOR) - block.flat(PROPOSED_ANCHOR)
        return block.flat("param") - block.flat("proposed")  # of z itself, or without a gradient

    def moved(self, block: Block, direction: Tensor, keep: Scalar, pull: Tensor) -> Tensor:
        """Return y' + θ (y_proposed - y'), y' = y + c (z - y): y_proposed itself where θ is 1."""
        start = block.flat("param")
        if ANCHOR in block.pieces:
            start = start + block.scalar(DRIFT) * (block.flat(ANCHOR) - start)
        return part_of_the_way(block, start, pull)


def part_of_the_way(block: Block, start: Tensor, pull: Tensor) -> Tensor:
    """Move the parameters of a block to where the fraction `pull` of the way from a start ends."""
    moved = torch.lerp(start, block.flat("proposed"), pull)
    # A proposal that overflowed does not count where nothing moves.
    return block.flat("param").copy_(torch.where(pull == 0, start, moved))


class _Offset:
    """The direction z - y."""

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        return {}

    def preconditioned(self, block: Block) -> Tensor:
        return block.flat(ANCHOR) - block.flat("param")

    def moved(self, block: Block, direction: Tensor, keep: Scalar, pull: Tensor) -> Tensor:
        raise AssertionError


def check_anchor(anchor: object, drift: object) -> None:
    """Refuse an anchor that is no name, and a drift towards none."""
    if not (anchor is None or isinstance(anchor, str)):
        raise TypeError(
            "anchor must name an entry of the base's state, got "
            f"{type(anchor).__name__}. Write ProposingAdapter(anchor='z')."
        )
    if drift is not None and (anchor is None or not callable(drift)):
        raise TypeError(
            "drift must be a function of a parameter group, and come with an anchor, got "
            f"{type(drift).__name__} and anchor={anchor!r}. Write ProposingAdapter(anchor='z', "
            "drift=lambda group: 0.1)."
        )


def offsets(engine: Engine, anchors: Sequence[list[Tensor]], *, negate: bool) -> Tensor:
    """Return ⟨g, z - y⟩ of each group, of shape [groups].

    Args:
        engine: What computes on the blocks of the step.
        anchors: z of the parameters of each of the plan's cells.
        negate: Whether gradients are those of a function that is maximised.
    """
    plan = engine.plan
    readings = [Reading(None, {ANCHOR: its}) for its in anchors]
    gradients = [Averaging(decay=0.0, weight=1.0)] * plan.groups
    rates = Rates.of([{}] * plan.groups, None, plan.like)
    fleeting = frozenset({ANCHOR})
    step = PlannedStep(
        _Offset(), engine, readings, gradients, rates, negate=negate, fleeting=fleeting
    )
    return step.sums[0]

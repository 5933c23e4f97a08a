"""Steps of optimizers whose parameters follow an anchor z, the point of the model of the loss."""

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

# The columns of the current and the proposed z, and the scalar c.
ANCHOR, PROPOSED_ANCHOR, DRIFT = "anchor", "proposed_anchor", "drift"


class Anchored:
    """z <- z + θ s, and parameters that follow: y <- y' + θ (y_proposed - y'), equation (20)."""

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return c of each parameter."""
        return {DRIFT: read[DRIFT]}

    def preconditioned(self, block: Block) -> Tensor:
        """Return u = z - z_proposed of a block, for a learning rate of 1."""
        if ANCHOR in block.pieces:
            return block.flat(ANCHOR) - block.flat(PROPOSED_ANCHOR)
        return block.flat("param") - block.flat("proposed")  # of z, or without a gradient

    def moved(self, block: Block, direction: Tensor, keep: Scalar, pull: Tensor) -> Tensor:
        """Return y' + θ (y_proposed - y') with y' = y + c (z - y); exactly y_proposed for θ = 1."""
        start = block.flat("param")
        if ANCHOR in block.pieces:
            start = start + block.scalar(DRIFT) * (block.flat(ANCHOR) - start)
        return part_of_the_way(block, start, pull)


def part_of_the_way(block: Block, start: Tensor, pull: Tensor) -> Tensor:
    """Move the parameters of a block to start + pull (proposed - start), in place."""
    moved = torch.lerp(start, block.flat("proposed"), pull)
    # A proposal that overflowed does not matter if nothing moves.
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
    """Raise for an anchor that is not a name, and for a drift without an anchor."""
    if not (anchor is None or isinstance(anchor, str)):
        raise TypeError(
            f"anchor must name an entry of the optimizer state, got {type(anchor).__name__}. Write "
            "ProposingAdapter(anchor='z')."
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
        engine: The engine that computes on blocks; its plan is that of the step.
        anchors: z of the parameters of each of the plan's cells.
        negate: Whether to negate gradients, because the base maximizes.
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

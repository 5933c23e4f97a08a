"""The step that a base proposes for some parameters, and their average of gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import maximizes
from momo_wrap.adapters.planned_step import Reading
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.kind import Kind
from momo_wrap.engine.plan import Cell, Plan
from momo_wrap.engine.scalars import Scalar
from momo_wrap.model import Averaging

# Where the average that the adapter keeps itself is, in the base's state of a parameter.
GRAD_AVG_KEY = "momo_grad_avg"

_PARAM = ""  # among the names of iterates


class Proposal:
    """The step that the base proposes for the parameters of a cell.

    Args:
        base: The base optimizer.
        plan: The plan of its parameters.
        cell: The parameters.
        iterates: The names of further copies of the parameters, in the base's state.
    """

    def __init__(self, base: Optimizer, plan: Plan, cell: Cell, iterates: Sequence[str]) -> None:
        self.group = cell.group
        self._base, self._cell, self._iterates = base, cell, iterates
        key = (self.group, id(cell))
        if key not in plan.kept:
            plan.kept[key] = Kind([cell], whole=False)
        self._kind: Kind = plan.kept[key]
        self._grads = [plan.grads[i] for i in cell.positions]
        self._negate = maximizes(base, base.param_groups[cell.group])
        self._old: dict[str, list[Tensor]] = {}
        self._kept: list[Tensor | None] = []
        self._averages: list[Tensor] = []

    def start(self, *, average: bool, gradients: bool) -> None:
        """Remember where the parameters are, and look at the gradients.

        Some bases change gradients in place, and many expect their state to be empty at first.

        Args:
            average: Whether an average of the gradients is kept.
            gradients: Whether the gradients themselves are.
        """
        self._old = {name: [x.clone() for x in column] for name, column in self._moving().items()}
        if gradients:
            self._grads = [grad.clone() for grad in self._grads if grad is not None]
        if average:
            self._take_averages()

    def _take_averages(self) -> None:
        state, params = self._base.state, self._cell.params
        self._kept = [state.get(param, {}).get(GRAD_AVG_KEY) for param in params]
        self._averages = [
            # Some bases load their whole state in another dtype.
            torch.zeros_like(param) if average is None else average.to(param.dtype)
            for param, average in zip(params, self._kept, strict=True)
        ]
        for param, average in zip(params, self._kept, strict=True):
            if average is not None:
                del state[param][GRAD_AVG_KEY]

    def update_average(self, averaging: Averaging) -> None:
        """Take the gradients into the average that is kept, B_k = a B_{k-1} + b g_k."""
        first = averaging.weight if averaging.first_weight is None else averaging.first_weight
        weights = [first if average is None else averaging.weight for average in self._kept]
        for block in self._blocks(
            {"average": self._averages, "grad": self._grads},
            {
                "decay": averaging.decay,
                "weight": self._kind.per_parameter("weight", weights, self._kind.device),
            },
        ):
            average = block.flat("average").mul_(block.scalar("decay"))
            average.add_(block.flat("grad") * block.scalar("weight"))
            block.write_back("average", average)

    def _blocks(
        self, columns: dict[str, list[Any]], scalars: dict[str, Scalar] | None = None
    ) -> list[Block]:
        return self._kind.blocks(
            {name: self._kind.ordered(column) for name, column in columns.items()},
            scalars or {},
            frozenset({"grad"} if self._negate else ()),
            fleeting=frozenset(columns),
        )

    def _moving(self) -> dict[str, list[Tensor]]:
        """Return everything that moves with the parameters, as it is in the base."""
        state, params = self._base.state, self._cell.params
        iterates = {
            name: [state[p].get(name, p) if p in state else p for p in params]
            for name in self._iterates
        }
        return {_PARAM: params, **iterates}

    def put_back(self, *, done: bool) -> None:
        """Put the parameters back to where they were, and keep what was proposed instead.

        Args:
            done: Whether all went well; otherwise no average is left that was not there before.
        """
        if not self._old:
            return
        pairs = zip(self._cell.params, self._averages, self._kept, strict=False)
        for param, average, kept in pairs:
            if done or kept is not None:
                self._base.state.setdefault(param, {})[GRAD_AVG_KEY] = average
        for name, column in self._moving().items():
            for block in self._blocks({"param": column, "old": self._old[name]}):
                proposed = block.flat("param").clone()
                block.write("param", block.flat("old"))
                block.write("old", proposed)

    def reading(self, momentum: str | None, scalars: dict[str, Scalar]) -> Reading:
        """Return what the sums are made of, after the parameters were put back.

        Args:
            momentum: The name of the average in the base's state; None: the one that is kept, or
                the gradient itself.
            scalars: Values for all parameters.

        Raises:
            ValueError: There is no such average.
        """
        buffers = self._buffers(momentum) if momentum is not None else self._averages
        return Reading(buffers or None, {"proposed": self._old[_PARAM]}, scalars)

    def _buffers(self, momentum: str) -> list[Tensor]:
        params = self._cell.params
        entries = [self._base.state[param] for param in params]
        for param, entry in zip(params, entries, strict=True):
            if getattr(entry.get(momentum), "shape", None) != param.shape:
                raise ValueError(
                    f"ProposingAdapter(momentum={momentum!r}) found no tensor of that name and of "
                    f"shape {list(param.shape)} in the state of {type(self._base).__name__}, which "
                    f"has {sorted(map(str, entry))}. Write ProposingAdapter() to have an average "
                    "kept."
                )
        return [entry[momentum] for entry in entries]

    def further_moves(self, *, with_params: bool) -> Iterator[tuple[Kind, list[Block]]]:
        """Return the blocks of what moves besides the parameters that are in the sums.

        Args:
            with_params: Whether the parameters themselves are among them.
        """
        for name, column in self._moving().items():
            if with_params or name != _PARAM:
                yield self._kind, self._blocks({"param": column, "proposed": self._old[name]})


class Proposed:
    """The formula of a step that was proposed: u = x - x_proposed with the learning rate 1."""

    def scalars(self, read: Any) -> dict[str, Scalar]:
        """Return no further values."""
        return {}

    def preconditioned(self, block: Block) -> Tensor:
        """Return x - x_proposed."""
        return block.flat("param") - block.flat("proposed")

    def moved(self, block: Block, direction: Tensor, keep: Scalar, pull: Tensor) -> Tensor:
        """Return x + θ (x_proposed - x), which is x_proposed itself where θ is 1."""
        x = block.flat("param")
        moved = torch.lerp(x, block.flat("proposed"), pull)
        # A proposal that overflowed does not count where nothing moves.
        return x.copy_(torch.where(pull == 0, x, moved))

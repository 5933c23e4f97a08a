"""The step that a base proposes, and the average of its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.anchored import ANCHOR, PROPOSED_ANCHOR
from momo_wrap.adapters.base import maximizes
from momo_wrap.adapters.planned_step import Reading
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.kind import Kind
from momo_wrap.engine.plan import Plan
from momo_wrap.engine.scalars import Scalar
from momo_wrap.model import Averaging, Start, first_weight

# The key of the adapter's average in the optimizer state of a parameter.
GRAD_AVG_KEY = "momo_grad_avg"

_PARAM = ""  # the name of the parameters among the iterates
# The columns whose tensors are new in every step.
_FLEETING = frozenset({"param", "proposed", "average", "grad"})
_Blocks: TypeAlias = tuple[Kind, list[Block]]


class Proposal:
    """The step that a base proposes, in blocks that the parameters of all groups share.

    Tensors are kept by the position of their parameter among all of the base.
    """

    def __init__(self, base: Optimizer, plan: Plan, iterates: Sequence[str]) -> None:
        self._base, self._plan, self._names = base, plan, (_PARAM, *iterates)
        if "proposal" not in plan.kept:
            # A base may move the others too: by momentum, or because it treats None as zeros.
            plan.kept["proposal"] = [
                plan.arrange(cells, [()] * len(cells), whole=False)
                for cells in (plan.cells, plan.others)
            ]
        self._summed, self._others = plan.kept["proposal"]
        # The old tensors, and after `put_back` the proposed ones.
        self._old: dict[str, dict[int, Tensor]] = {}
        # The new averages, and those found in the optimizer state.
        self._averages: dict[int, Tensor] = {}
        self._found: dict[int, Tensor | None] = {}

    def start(self, gradients: Sequence[bool], *, average: bool) -> None:
        """Copy parameters and iterates, and the gradients of some groups, which a base may change.

        The average is removed from the optimizer state, which many bases expect to be empty at
        first.
        """
        plan, state = self._plan, self._base.state
        every = [i for cell in (*plan.cells, *plan.others) for i in cell.positions]
        for name in self._names:
            now = zip(every, self._now(name, every), strict=True)
            self._old[name] = {i: tensor.clone() for i, tensor in now}
        for cell in plan.cells:
            for i in cell.positions if gradients[cell.group] else ():
                grad = plan.grads[i]
                plan.grads[i] = None if grad is None else grad.clone()
        if average:
            params = {i: plan.params[i] for cell in plan.cells for i in cell.positions}
            self._found = {i: state.get(p, {}).pop(GRAD_AVG_KEY, None) for i, p in params.items()}
            self._averages = {
                # Some bases load their state in another dtype.
                i: torch.zeros_like(params[i]) if found is None else found.to(params[i].dtype)
                for i, found in self._found.items()
            }

    def _now(self, name: str, positions: Sequence[int]) -> list[Tensor]:
        """Return the tensors of an iterate; one that does not exist yet has its old value."""
        params, state = self._plan.params, self._base.state
        if name == _PARAM:
            return [params[i] for i in positions]
        old = self._old.get(name, params)
        return [state.get(params[i], {}).get(name, old[i]) for i in positions]

    def _blocks(self, name: str, kinds: Sequence[tuple[Kind, Any]]) -> list[_Blocks]:
        """Return the blocks of an iterate, with its old or proposed values."""
        blocks = []
        for kind, _ in kinds:
            old = [self._old[name][i] for i in kind.positions]
            columns = {"param": self._now(name, kind.positions), "proposed": old}
            blocks.append((kind, kind.blocks(columns, {}, fleeting=_FLEETING)))
        return blocks

    def update_average(self, averagings: Sequence[Averaging]) -> None:
        """Update the adapter's average with the gradients, B_k = a B_{k-1} + b g_k."""
        plan, groups = self._plan, self._base.param_groups
        negated = frozenset({"grad"} if maximizes(self._base, groups[0]) else ())
        for kind, cells in self._summed:
            some = [plan.cells[c] for c in cells]
            own = [
                (averagings[cell.group], self._found[i]) for cell in some for i in cell.positions
            ]
            decays = [a.decay for a, _ in own]
            weights = [first_weight(a, Start.FRESH if b is None else Start.RUNNING) for a, b in own]
            scalars = {
                "decay": kind.per_parameter("decay", decays, kind.device),
                "weight": kind.per_parameter("weight", weights, kind.device),
            }
            columns: dict[str, list[Any]] = {
                "average": [self._averages[i] for i in kind.positions],
                "grad": [plan.grads[i] for i in kind.positions],
            }
            for block in kind.blocks(columns, scalars, negated, fleeting=_FLEETING):
                average = block.flat("average").mul_(block.scalar("decay"))
                average.add_(block.flat("grad") * block.scalar("weight"))
                block.write_back("average", average)

    def put_back(self, *, done: bool) -> None:
        """Swap the old parameters back in, and keep the proposed ones.

        Unless the step is done, no new average is left in the optimizer state.
        """
        for i, found in self._found.items():
            if done or found is not None:
                entry = self._base.state.setdefault(self._plan.params[i], {})
                entry[GRAD_AVG_KEY] = self._averages.get(i, found)
        for name in self._old:
            for _, blocks in self._blocks(name, [*self._summed, *self._others]):
                for block in blocks:
                    proposed = block.flat("param").clone()
                    block.write("param", block.flat("proposed"))
                    block.write("proposed", proposed)

    def readings(
        self, momentum: str | None, scalars: Sequence[dict[str, Scalar]], anchor: str | None
    ) -> list[Reading]:
        """Return the readings for the sums, after the parameters are put back."""
        readings = []
        for cell in self._plan.cells:
            buffers = [self._averages[i] for i in cell.positions if self._averages]
            if momentum is not None:
                buffers = [_buffer(self._base, momentum, param) for param in cell.params]
            columns = {"proposed": [self._old[_PARAM][i] for i in cell.positions]}
            if anchor is not None:
                columns[ANCHOR] = self._now(anchor, cell.positions)
                columns[PROPOSED_ANCHOR] = [self._old[anchor][i] for i in cell.positions]
            readings.append(Reading(buffers or None, columns, scalars[cell.group]))
        return readings

    def further_moves(self) -> list[_Blocks]:
        """Return the blocks of everything that moves besides the parameters in the sums."""
        every = [*self._summed, *self._others]
        moves = [self._blocks(name, every) for name in self._names[1:]]
        return sum(moves, self._blocks(_PARAM, self._others))


def _buffer(base: Optimizer, momentum: str, param: Tensor) -> Tensor:
    """Return the base's average of a parameter in the optimizer state."""
    buffer = base.state[param].get(momentum)
    if getattr(buffer, "shape", None) != param.shape:
        raise ValueError(
            f"ProposingAdapter(momentum={momentum!r}) found no tensor of that name and of shape "
            f"{list(param.shape)} in the state of {type(base).__name__}, which has "
            f"{sorted(map(str, base.state[param]))}. Write ProposingAdapter(), which keeps an "
            "average."
        )
    return cast("Tensor", buffer)

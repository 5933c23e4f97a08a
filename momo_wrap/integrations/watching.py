"""The gradients of an optimizer, watched over backward passes, and what their loss is."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from torch import Tensor

from momo_wrap.wrapper import MoMoWrapper

Seen: TypeAlias = list[tuple[Tensor, "Tensor | None", int]]

_RECORD = "Write optimizer.record_loss(loss) there, without losses_from_backward()."
_STALE = (
    "step() can't tell the loss: a backward() added its gradients to those of an earlier step, and "
    "nobody was seen to reset them. Call optimizer.zero_grad() or model.zero_grad() in between."
)
_PARTLY = (
    "step() can't tell the loss: only some of the optimizer's gradients were reset between two "
    f"backward(). Reset all of them, by optimizer.zero_grad(). {_RECORD}"
)
_SHARDED = (
    "step() can't tell the loss: a backward() before the last one added nothing to the gradients "
    "of the DTensor parameters. With FSDP2 it may have accumulated them elsewhere, as after "
    f"set_requires_gradient_sync(False). {_RECORD}"
)
BROKEN = (
    "step() can't tell the loss: a backward() raised an error when it had added some gradients. "
    "Call optimizer.zero_grad() before the next one."
)
NO_ROOT = (
    "step() can't tell the loss: backward() was called on {}, not on a loss with one element. "
    f"{_RECORD}"
)


class Watched:
    """An optimizer whose losses are learned, in the thread that asked for it.

    Args:
        wrapper: The optimizer.

    Attributes:
        wrapper: As it was given.
        pending: Where its losses are recorded.
        thread: Whose passes count.
    """

    def __init__(self, wrapper: MoMoWrapper) -> None:
        self.wrapper, self.pending = wrapper, wrapper._pending
        self.thread = threading.get_ident()
        self._elsewhere = False
        self._present = len(self._gradients())
        self.pending.clear()
        self.pending.used = self._present > 0  # by whom, nobody has seen

    def _params(self) -> Iterator[Tensor]:
        for group in self.wrapper.param_groups:
            yield from group["params"]

    def _gradients(self) -> list[Tensor]:
        return [param for param in self._params() if param.grad is not None]

    def shares(self, params: Sequence[Tensor]) -> bool:
        """Return whether all parameters with gradients are among these, and there are some."""
        among = {id(param) for param in params}
        mine = self._gradients()
        return bool(mine) and all(id(param) in among for param in mine)

    def before(self) -> Seen:
        """Return what the gradients are before a pass; a write to one changes its version."""
        seen: Seen = []
        for param in self._params():
            grad = param.grad
            seen.append((param, grad, _version(grad)))
        return seen

    def after(self, seen: Seen, loss: Tensor | None, problem: str) -> None:
        """Add the root of a pass, if the gradients have changed in it."""
        if not any(
            param.grad is not grad or _version(grad) != version for param, grad, version in seen
        ):
            self._elsewhere = self._elsewhere or any(hasattr(p, "to_local") for p, *_ in seen)
            return
        present = sum(grad is not None for _, grad, _ in seen)
        if not present:
            self.pending.clear()
        elif self.pending.used:
            problem = _STALE
        elif present < self._present:
            problem = _PARTLY
        if self._elsewhere:
            self._elsewhere, problem = False, _SHARDED
        self._present = len(self._gradients())
        if problem or loss is None:
            self.pending.refuse(problem)
        elif not self.pending.problem:
            self.pending.add(loss, 1.0, None, "sum")

    def was_reset(self, params: Sequence[Tensor]) -> None:
        """Note that gradients are zero again, though they are there."""
        if self.shares(params):
            self.pending.clear()
        elif {id(param) for param in self._gradients()} & {id(param) for param in params}:
            self.pending.refuse(_PARTLY)


def _version(grad: Tensor | None) -> int:
    """Return a number that grows with each write to a gradient; FSDP2 writes to the part within."""
    if grad is None:
        return 0
    inner = None if type(grad) is Tensor else getattr(grad, "_local_tensor", None)
    return grad._version + (0 if inner is None else inner._version)

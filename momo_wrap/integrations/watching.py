"""The gradients of an optimizer, watched over backward passes, and what their loss is."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from torch import Tensor

from momo_wrap.engine.scalars import detached
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
_CHANGED = (
    "step() can't tell the loss: before a backward() somebody had set or changed gradients that "
    "were not reset since, by no backward() in this thread, nor by clip_grad_norm_() of all. "
    f"{_RECORD}"
)
_CLIPPED = (
    "step() can't tell the loss: a backward() added its gradients to those that clip_grad_norm_() "
    "had clipped. Clip once, after the last backward() of a step."
)
UNSEEN = (
    "step() needs the loss that the gradients belong to, and losses_from_backward() has seen no "
    "backward() add to them since they were reset or used. It sees neither torch.autograd.grad(), "
    f"nor other threads, nor a backward() that has not ended yet. {_RECORD}"
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
        self._last = self._state()
        self.pending.clear()
        self.pending.used = bool(self._last)  # by whom, nobody has seen
        self.pending.unseen = UNSEEN

    def close(self) -> None:
        """Forget what was learned, and learn no more."""
        self.pending.clear()
        self.pending.unseen = ""

    def _params(self) -> Iterator[Tensor]:
        for group in self.wrapper.param_groups:
            yield from group["params"]

    def _state(self) -> dict[int, tuple[int, int]]:
        """Return what tells whether gradients have been replaced or changed, by parameter."""
        pairs = [(id(param), param.grad) for param in self._params()]
        return {key: _known(grad, _version(grad)) for key, grad in pairs if grad is not None}

    def shares(self, params: Sequence[Tensor]) -> bool:
        """Return whether all parameters with gradients are among these, and there are some."""
        mine = self._state().keys()
        return bool(mine) and mine <= {id(param) for param in params}

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
        there = {id(param): _known(grad, at) for param, grad, at in seen if grad is not None}
        if not there:
            self.pending.clear()
        elif not self.pending.problem:
            problem = self._problem(there) or problem
        if self._elsewhere:
            self._elsewhere, problem = False, _SHARDED
        self._last = self._state()
        if problem or loss is None:
            self.pending.refuse(problem)
        elif not self.pending.problem:
            self.pending.add(loss, 1.0, None, "sum")

    def _problem(self, there: dict[int, tuple[int, int]]) -> str:
        """Return why the loss is unknown of gradients to which a pass has added."""
        if self.pending.used:
            return _STALE
        if self.pending.emptied or there.keys() - self._last.keys():
            return _CHANGED
        if len(there) < len(self._last):
            return _PARTLY
        if self.pending.clipping is not None:
            return _CLIPPED
        return _CHANGED if self.pending.count and there != self._last else ""

    def multiplied(self, params: Sequence[Tensor], factor: Tensor) -> None:
        """Note that gradients, if all are of these parameters, were multiplied as losses are."""
        if self.shares(params):
            self.pending.multiply(factor)
            self._last = self._state()

    def clipped(self, params: Sequence[Tensor], factor: Tensor) -> None:
        """Note that gradients, if all are of these parameters, were clipped."""
        if self.shares(params):
            before = self.pending.clipping
            own = detached(factor)
            self.pending.clipping = own if before is None else before * own
            self._last = self._state()

    def was_reset(self, params: Sequence[Tensor]) -> None:
        """Note that gradients are zero or None again."""
        if not self._state():
            self.pending.clear()
            self.pending.emptied = True
        elif self.shares(params):
            self.pending.clear()
        elif self._state().keys() & {id(param) for param in params}:
            self.pending.refuse(_PARTLY)


def _known(grad: Tensor, version: int) -> tuple[int, int]:
    """Return what tells a gradient again; nothing of the views that DDP makes anew at will."""
    inner = getattr(grad, "_local_tensor", grad)
    return (0, 0) if inner._is_view() else (id(grad), version)


def _version(grad: Tensor | None) -> int:
    """Return a number that grows with each write to a gradient; FSDP2 writes to the part within."""
    if grad is None:
        return 0
    inner = None if type(grad) is Tensor else getattr(grad, "_local_tensor", None)
    return grad._version + (0 if inner is None else inner._version)

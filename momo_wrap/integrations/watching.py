"""The loss of an optimizer's gradients, from watching them over backward passes."""

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
    "The loss of step() is unknown: a backward() added its gradients to those of an earlier step, "
    "which were not reset. Call optimizer.zero_grad() or model.zero_grad() in between."
)
_PARTLY = (
    "The loss of step() is unknown: only some of the optimizer's gradients were reset between two "
    f"backward(). Reset all of them, by optimizer.zero_grad(). {_RECORD}"
)
_CHANGED = (
    "The loss of step() is unknown: a backward() added to gradients that were set or changed by "
    "something other than a backward() in this thread or clip_grad_norm_() of all of them. "
    f"{_RECORD}"
)
_CLIPPED = (
    "The loss of step() is unknown: a backward() added its gradients to clipped ones. Call "
    "clip_grad_norm_() once, after the last backward() of a step."
)
UNSEEN = (
    "step() needs the loss that the gradients belong to, and losses_from_backward() has seen no "
    "backward() add to them since they were reset or used. It does not see torch.autograd.grad(), "
    f"other threads, or a backward() that has not ended. {_RECORD}"
)
_SHARDED = (
    "The loss of step() is unknown: a backward() before the last one added nothing to the "
    "gradients of the DTensor parameters. With FSDP2 it may have accumulated them elsewhere, as "
    f"after set_requires_gradient_sync(False). {_RECORD}"
)
BROKEN = (
    "The loss of step() is unknown: a backward() raised an error after it had added some "
    "gradients. Call optimizer.zero_grad() before the next one."
)
NO_ROOT = (
    "The loss of step() is unknown: backward() was called on {}, expected a one-element loss. "
    f"{_RECORD}"
)


class Watched:
    """An optimizer whose losses are taken from the backward passes of one thread.

    Args:
        wrapper: The optimizer.

    Attributes:
        wrapper: As given.
        pending: The recorder of its losses.
        thread: The id of the thread whose passes count.
    """

    def __init__(self, wrapper: MoMoWrapper) -> None:
        self.wrapper, self.pending = wrapper, wrapper._pending
        self.thread = threading.get_ident()
        self._elsewhere = False
        self._last = self._state()
        self.pending.clear()
        self.pending.used = bool(self._last)  # of unknown origin
        self.pending.unseen = UNSEEN

    def close(self) -> None:
        """Discard the losses, and stop watching."""
        self.pending.clear()
        self.pending.unseen = ""

    def _params(self) -> Iterator[Tensor]:
        for group in self.wrapper.param_groups:
            yield from group["params"]

    def _state(self) -> dict[int, tuple[int, int]]:
        """Return keys of the gradients by parameter, which differ after each change."""
        pairs = [(id(param), param.grad) for param in self._params()]
        return {key: _known(grad, _version(grad)) for key, grad in pairs if grad is not None}

    def shares(self, params: Sequence[Tensor]) -> bool:
        """Return whether there are gradients, all of them of these parameters."""
        mine = self._state().keys()
        return bool(mine) and mine <= {id(param) for param in params}

    def before(self) -> Seen:
        """Return the gradients and their versions before a pass; a write changes the version."""
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
            self.pending.note_problem(problem)
        elif not self.pending.problem:
            self.pending.add(loss, 1.0, None, "sum")

    def _problem(self, there: dict[int, tuple[int, int]]) -> str:
        """Return why the loss of gradients to which a pass has added is unknown, else ""."""
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
        """Multiply the losses, if all gradients are of these parameters."""
        if self.shares(params):
            self.pending.multiply(factor)
            self._last = self._state()

    def clipped(self, params: Sequence[Tensor], factor: Tensor) -> None:
        """Record a factor of clipping, if all gradients are of these parameters."""
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
            self.pending.note_problem(_PARTLY)


def _known(grad: Tensor, version: int) -> tuple[int, int]:
    """Return a key of a gradient; a constant for views, which DDP replaces at any time."""
    inner = getattr(grad, "_local_tensor", grad)
    return (0, 0) if inner._is_view() else (id(grad), version)


def _version(grad: Tensor | None) -> int:
    """Return a number that grows with each write to a gradient; FSDP2 writes to the local shard."""
    if grad is None:
        return 0
    inner = None if type(grad) is Tensor else getattr(grad, "_local_tensor", None)
    return grad._version + (0 if inner is None else inner._version)

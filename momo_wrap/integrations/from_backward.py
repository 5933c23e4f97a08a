"""The loss of a step, learned from the backward passes: for code that can't be touched.

`Tensor.backward` differentiates its root, and adds the gradient to `.grad` of the parameters. After
several passes `.grad` holds the gradient of the sum of their roots, scaled or divided as they were.
So that sum is the loss of the step, whoever calls `backward()`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from momo_wrap.engine.clipping import clipping_by
from momo_wrap.integrations.watching import BROKEN, NO_ROOT, Watched
from momo_wrap.recorder import wrapper_of

_lock = threading.RLock()
_watched: list[Watched] = []
_within = threading.local()


@contextmanager
def _here() -> Iterator[list[Watched]]:
    """Give what is watched in this thread, but nothing to what is called within.

    A pass may run others, as activation checkpointing does; they end in no loss.
    """
    if not _watched or getattr(_within, "one", False):
        yield []
        return
    _within.one = True
    try:
        yield [watched for watched in _watched if watched.thread == threading.get_ident()]
    finally:
        _within.one = False


def _root(tensors: Any, gradients: Any) -> tuple[Tensor | None, str]:
    """Return the function whose gradient a pass computes, else why it is unknown."""
    single = isinstance(tensors, (Tensor, GradientEdge))
    roots = [tensors] if single else list(tensors)
    if gradients is None or isinstance(gradients, Tensor):
        gradients = [gradients] * len(roots)
    total: Tensor | None = None
    for root, gradient in zip(roots, gradients, strict=False):
        if not isinstance(root, Tensor):
            return None, NO_ROOT.format("an edge of the graph")
        if root.numel() != 1 or root.is_complex():
            return None, NO_ROOT.format(f"a tensor of shape {list(root.shape)}")
        value = root.detach().reshape(())
        value = value if gradient is None else value * gradient.detach().reshape(())
        total = value if total is None else total + value.to(total.device, non_blocking=True)
    return total, "" if total is not None else NO_ROOT.format("nothing")


def _untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that Dynamo calls as it is, after a graph break."""
    disabled: Callable[..., Any] = torch._disable_dynamo(function)  # type: ignore[attr-defined]

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Elsewhere Dynamo, which takes long to import, is not even asked.
        called = disabled if torch.compiler.is_dynamo_compiling() else function
        return called(*args, **kwargs)

    return call


def _backward(original: Callable[..., Any]) -> Callable[..., Any]:
    def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
        with _here() as watched:
            if not watched:
                return original(tensors, grad_tensors, *args, **kwargs)
            if not isinstance(tensors, (Tensor, GradientEdge)):
                tensors = tuple(tensors)
            if grad_tensors is not None and not isinstance(grad_tensors, Tensor):
                grad_tensors = tuple(grad_tensors)
            loss, problem = _root(tensors, kwargs.get("grad_variables", grad_tensors))
            seen = [one.before() for one in watched]
            try:
                return original(tensors, grad_tensors, *args, **kwargs)
            except BaseException:
                problem = BROKEN
                raise
            finally:
                for one, its in zip(watched, seen, strict=True):
                    one.after(its, loss, problem)

    return backward


def _module_zero_grad(original: Callable[..., Any]) -> Callable[..., Any]:
    def zero_grad(module: nn.Module, set_to_none: bool = True) -> None:
        original(module, set_to_none)
        if not set_to_none:
            with _here() as watched:
                for one in watched:
                    one.was_reset(list(module.parameters()))

    return zero_grad


def _unscale(original: Callable[..., Any]) -> Callable[..., Any]:
    def unscale(scaler: Any, optimizer: Any, inv_scale: Tensor, *args: Any, **kwargs: Any) -> Any:
        with _here() as watched:
            result = original(scaler, optimizer, inv_scale, *args, **kwargs)
            params = [param for group in optimizer.param_groups for param in group["params"]]
            for one in watched:
                if one.shares(params):
                    one.pending.multiply(inv_scale)
        return result

    return unscale


def _clip(original: Callable[..., Any]) -> Callable[..., Any]:
    def clip_grad_norm_(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Tensor:
        params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        with _here() as watched:
            norm: Tensor = original(params, max_norm, *args, **kwargs)
            for one in watched:
                # Some only ask for the norm so.
                if max_norm != float("inf") and one.shares(params):
                    one.pending.clipped(clipping_by(norm, float(max_norm)))
        return norm

    return clip_grad_norm_


class _Patch:
    """A function that is replaced while something is watched."""

    def __init__(self, owner: Any, name: str, made: Callable[[Any], Callable[..., Any]]) -> None:
        self._owner, self._name, self._made = owner, name, made
        self._original: Any = None
        self._mine: Any = None

    def on(self) -> None:
        self._original = getattr(self._owner, self._name)
        self._mine = _untraced(self._made(self._original))
        setattr(self._owner, self._name, self._mine)

    def off(self) -> None:
        # What others have put over it since calls it; with nothing to watch it only hands on.
        if getattr(self._owner, self._name) is self._mine:
            setattr(self._owner, self._name, self._original)


_PATCHES = (
    _Patch(torch.autograd, "backward", _backward),  # which Tensor.backward calls
    _Patch(nn.Module, "zero_grad", _module_zero_grad),
    _Patch(torch.amp.GradScaler, "_unscale_grads_", _unscale),
    _Patch(nn.utils, "clip_grad_norm_", _clip),
)


@contextmanager
def losses_from_backward(*optimizers: object) -> Iterator[None]:
    """Learn the losses of optimizers from the backward passes, for code that calls `step()` bare.

    For code that can't be changed and for which there is no integration. The loss of a step is the
    sum of the roots of `backward()` since the last `zero_grad`, of those passes that added to the
    gradients of that optimizer: with several optimizers, each learns its own. It is the sum whose
    gradient the optimizer gets, so that losses that were divided for accumulation make the mean.
    `GradScaler` divides it by its scale with the gradients, and where `clip_grad_norm_` clips them,
    the model of the loss knows of it. No host synchronisation, and no graph is kept.

    While it is open, `torch.autograd.backward`, `Module.zero_grad`, `GradScaler` and
    `torch.nn.utils.clip_grad_norm_` are wrapped, in the whole process; what they do stays the same.
    Passes in other threads than the one that opened it are not looked at. It may be nested for
    different optimizers. What else is done to gradients after `backward()`, such as to divide
    them, is not seen. Rules that ask for probes get none.

    A step whose loss can't be told is refused with the reason: after a `backward()` on several
    elements, or one that added to gradients that were used, or reset in part.

    Args:
        *optimizers: The wrappers, or what a trainer made of them.

    Raises:
        TypeError: One is no `MoMoWrapper`, or there is none.
        ValueError: One is learned already.

    Example:
        >>> with losses_from_backward(model.policy.optimizer):
        ...     model.learn(10_000)
    """
    if not optimizers:
        raise TypeError(
            "losses_from_backward() got no optimizer. Write losses_from_backward(optimizer)."
        )
    mine: list[Watched] = []
    with _lock:
        for wrapper in map(wrapper_of, optimizers):
            if any(one.wrapper is wrapper for one in (*_watched, *mine)):
                raise ValueError(
                    "losses_from_backward() got an optimizer whose losses are learned already. "
                    "Name each optimizer once, in the outer with."
                )
            mine.append(Watched(wrapper))
        if not _watched:
            for patch in _PATCHES:
                patch.on()
        _watched.extend(mine)
    try:
        yield
    finally:
        with _lock:
            _watched[:] = [one for one in _watched if one not in mine]
            if not _watched:
                for patch in _PATCHES:
                    patch.off()
        for one in mine:
            one.pending.clear()

"""The loss of a step, taken from the backward passes, for code that can't be changed.

`Tensor.backward` differentiates its root, and adds the gradient to `.grad` of the parameters. After
several passes `.grad` is the gradient of the sum of their roots, with any scale or divisor. So that
sum is the loss of the step, for any caller of `backward()`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.utils import clip_grad

from momo_wrap.engine.clipping import clipping_by
from momo_wrap.engine.scalars import as_scalar
from momo_wrap.integrations.watching import BROKEN, NO_ROOT, Watched
from momo_wrap.recorder import wrapper_of

_lock = threading.RLock()
_watched: list[Watched] = []
_within = threading.local()
_patched: list[_Patch] = []
_UNSCALE = "_unscale_grads_"


@contextmanager
def _here() -> Iterator[list[Watched]]:
    """Yield the optimizers watched in this thread, or none for nested calls.

    A pass may run others, as activation checkpointing does, whose root is no loss.
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
    """Return the function whose gradient a pass computes, or None and why it is unknown."""
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
        if total is None:
            total = root.new_zeros((), dtype=torch.promote_types(root.dtype, torch.float32))
        value = as_scalar(root, total)
        total = total + (value if gradient is None else value * as_scalar(gradient, total))
    return total, "" if total is not None else NO_ROOT.format("nothing")


def _untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that Dynamo calls untraced, after a graph break."""
    disabled: Callable[..., Any] = torch._disable_dynamo(function)  # type: ignore[attr-defined]

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Outside of Dynamo, avoid its slow import.
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
                one.multiplied(params, inv_scale)
        return result

    return unscale


def _clip(original: Callable[..., Any]) -> Callable[..., Any]:
    def clip_grads_with_norm_(
        parameters: Any, max_norm: float, total_norm: Tensor, *args: Any, **kwargs: Any
    ) -> None:
        params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        original(params, max_norm, total_norm, *args, **kwargs)
        _tell_clipping(params, max_norm, total_norm)

    return clip_grads_with_norm_


def _clip_norm(original: Callable[..., Any]) -> Callable[..., Any]:
    def clip_grad_norm_(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Tensor:
        params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        norm: Tensor = original(params, max_norm, *args, **kwargs)
        _tell_clipping(params, max_norm, norm)
        return norm

    return clip_grad_norm_


def _tell_clipping(params: Sequence[Tensor], max_norm: float, norm: Tensor) -> None:
    """Note the factor of clipping for the watched optimizers."""
    with _here() as watched:
        for one in watched:
            if max_norm != float("inf"):  # with inf, callers only want the norm
                one.clipped(params, clipping_by(norm, float(max_norm)))


class _Patch:
    """A function that is patched while optimizers are watched."""

    def __init__(self, owner: Any, name: str, made: Callable[[Any], Callable[..., Any]]) -> None:
        self._owner, self._name, self._made = owner, name, made
        self._original: Any = None
        self._mine: Any = None

    def on(self) -> None:
        self._original = getattr(self._owner, self._name)
        self._mine = _untraced(self._made(self._original))
        setattr(self._owner, self._name, self._mine)

    def off(self) -> None:
        # A later patch by others still calls ours, which then only calls the original.
        if getattr(self._owner, self._name) is self._mine:
            setattr(self._owner, self._name, self._original)


def _patches() -> list[_Patch]:
    """Return the patches."""
    # `clip_grad_norm_` calls it, also if imported earlier; missing before torch 2.6.
    inner, outer = "_clip_grads_with_norm_", "clip_grads_with_norm_"
    clips = [_Patch(nn.utils, "clip_grad_norm_", _clip_norm)]
    if hasattr(clip_grad, inner):
        clips = [_Patch(clip_grad, inner, _clip), _Patch(nn.utils, outer, _clip)]
    scalers = [torch.amp.GradScaler]
    for scaler in scalers:
        scalers += scaler.__subclasses__()
    return [
        _Patch(torch.autograd, "backward", _backward),  # Tensor.backward calls it
        _Patch(nn.Module, "zero_grad", _module_zero_grad),
        *(_Patch(its, _UNSCALE, _unscale) for its in scalers if _UNSCALE in vars(its)),
        *clips,
    ]


@contextmanager
def losses_from_backward(*optimizers: object) -> Iterator[None]:
    """Take losses from the backward passes, for code that calls `step()` without a loss.

    Use it if the code can't be changed and has no integration. The loss of a step is the sum of the
    roots of `backward()` since the last `zero_grad`, over the passes that added to the gradients of
    that optimizer. Its gradient is that of the optimizer, so losses divided for accumulation add up
    to the mean. `GradScaler` divides the loss by its scale together with the gradients, and if
    `clip_grad_norm_` clips them, the model of the loss accounts for it. There is no host
    synchronization, and no graph is kept.

    Inside the `with` statement, `torch.autograd.backward`, `Module.zero_grad`, `GradScaler` and the
    function behind `torch.nn.utils.clip_grad_norm_` are patched in the whole process, with the same
    behavior. Passes in other threads are ignored. It may be nested for different optimizers. It
    does not detect other changes of gradients after `backward()`, such as a division. A rule that
    requests probes gets none, and works without them.

    A step with an unknown loss raises, with the reason: after a `backward()` on several elements,
    or one that added to gradients that were used, partly reset, clipped, or changed undetected.
    `record_loss` and `record_clipping` raise, because they would count twice.

    Args:
        *optimizers: The wrappers, or a trainer's wrappers around them.

    Raises:
        TypeError: An argument is not a `MoMoWrapper`, or there are no arguments.
        ValueError: The losses of an optimizer are already taken from backward passes.

    Example:
        >>> with losses_from_backward(model.policy.optimizer):
        ...     model.learn(10_000)
    """
    if not optimizers:
        raise TypeError(
            "losses_from_backward() got no optimizer. Write losses_from_backward(optimizer)."
        )
    wrappers = [wrapper_of(optimizer) for optimizer in optimizers]
    with _lock:
        named = {id(wrapper) for wrapper in wrappers}
        if len(named) < len(wrappers) or named & {id(one.wrapper) for one in _watched}:
            raise ValueError(
                "losses_from_backward() got an optimizer that is already inside such a with "
                "statement. Pass each optimizer once, to the outer one."
            )
        mine = [Watched(wrapper) for wrapper in wrappers]
        if not _watched:
            _patched[:] = _patches()
            for patch in _patched:
                patch.on()
        _watched.extend(mine)
    try:
        yield
    finally:
        with _lock:
            _watched[:] = [one for one in _watched if one not in mine]
            if not _watched:
                for patch in _patched:
                    patch.off()
        for one in mine:
            one.close()

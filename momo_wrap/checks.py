"""What the wrapper refuses, before anything is changed, each with the line to write instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter, ParamGroup, maximizes
from momo_wrap.distributed import local
from momo_wrap.rules import StepRule, WeightDecayForm

Loss: TypeAlias = Tensor | float
NonFinite: TypeAlias = Literal["propagate", "skip", "raise"]

# Schedules that end at 0 can end this far below it.
ROUNDING = 1e-12

_DECAY_FORMS = get_args(WeightDecayForm)


def check_arguments(optimizer: object, rule: object, adapter: object, nonfinite: object) -> None:
    """Refuse arguments of `MoMoWrapper` of the wrong type.

    Args:
        optimizer: The base.
        rule: The step rule or None.
        adapter: The adapter, a list of them, or None.
        nonfinite: What to do where numbers are not finite.

    Raises:
        TypeError: One of the first three is of the wrong type.
        ValueError: There is no such choice.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"MoMoWrapper expects a torch.optim.Optimizer, got {type(optimizer).__name__}. Write "
            "MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=1e-2))."
        )
    if not (rule is None or isinstance(rule, StepRule)):
        raise TypeError(
            f"rule must be a StepRule, got {rule!r}. Write MoMoWrapper(optimizer, "
            "MoMo(lower_bound=0.0))."
        )
    for entry in adapter if isinstance(adapter, (list, tuple)) else [adapter]:
        if not (entry is None or isinstance(entry, Adapter)):
            raise TypeError(
                f"adapter must be an instance of Adapter, got {entry!r}. Write "
                "MoMoWrapper(optimizer, adapter=MyAdapter())."
            )
    if nonfinite not in get_args(NonFinite):
        raise ValueError(
            f"nonfinite must be 'propagate', 'skip' or 'raise', got {nonfinite!r}. Write "
            "MoMoWrapper(optimizer, nonfinite='skip')."
        )


def decay_form(chosen: WeightDecayForm | None, rule: StepRule) -> WeightDecayForm:
    """Return the form of weight decay: the one that was chosen, else the one of the rule.

    Args:
        chosen: The form, or None.
        rule: The step rule.

    Raises:
        ValueError: There is no such form.
    """
    form = rule.weight_decay_form if chosen is None else chosen
    if form not in _DECAY_FORMS:
        where = f"{type(rule).__name__}.weight_decay_form" if chosen is None else "weight_decay"
        raise ValueError(
            f"{where} chooses the form of the decay and must be 'proximal', "
            f"'decoupled' or 'scaled', got {form!r}. Its strength is the base's own weight_decay."
        )
    return form


def check_bound(lower_bound: float) -> None:
    """Refuse a bound that no loss is above.

    Args:
        lower_bound: The bound in the sense of minimisation.

    Raises:
        ValueError: It is infinite.
    """
    if lower_bound == math.inf:
        raise ValueError(
            "The lower bound is infinite, so that no step would ever be taken. For no bound, write "
            "MoMo(-math.inf), or MoMo(math.inf) for a base with maximize=True."
        )


def check_step_arguments(closure: object, loss: object) -> None:
    """Refuse a step without a loss, or with two.

    Args:
        closure: Computes the loss and its gradients.
        loss: The loss, where gradients are there already.

    Raises:
        TypeError: None was given, both were, or the closure is none.
    """
    if closure is None and loss is None:
        raise TypeError(
            "step() needs the loss that the gradients belong to. After loss.backward(), write "
            "optimizer.step(loss=loss), or pass a closure that returns the loss. Where a trainer "
            "calls step(), write optimizer.record_loss(loss) before, after the last zero_grad()."
        )
    if closure is not None and loss is not None:
        raise TypeError(
            "step() got a closure and a loss, expected one of them. After loss.backward(), write "
            "optimizer.step(loss=loss); with a closure, write optimizer.step(closure)."
        )
    if closure is not None and not callable(closure):
        raise TypeError(
            f"step() takes a closure as its positional argument, got {type(closure).__name__}. "
            "To pass a loss, write optimizer.step(loss=loss)."
        )


def check_loss(loss: object, source: str) -> Loss:
    """Refuse what is no loss.

    Args:
        loss: A one-element tensor or a number.
        source: The beginning of the error's sentence.

    Returns:
        The tensor itself, or the number as a float.

    Raises:
        TypeError: It is neither.
        ValueError: The tensor has several elements.
    """
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(
                f"{source} a tensor of shape {list(loss.shape)}, expected one element. Reduce it "
                "as for backward(), e.g. optimizer.step(loss=loss.mean())."
            )
        if loss.is_complex():
            raise TypeError(
                f"{source} a complex tensor, expected a real number. Write "
                "optimizer.step(loss=loss.real)."
            )
        return loss
    if isinstance(loss, Real):
        return float(loss)
    raise TypeError(
        f"{source} {'None' if loss is None else type(loss).__name__}, expected a one-element "
        "tensor or a number. Write optimizer.step(loss=loss) with such a loss, for example "
        "float(loss), or return it from the closure."
    )


def check_gradients(groups: Sequence[ParamGroup]) -> None:
    """Refuse sparse gradients.

    Args:
        groups: The base's parameter groups.

    Raises:
        TypeError: A gradient is not dense.
    """
    for index, group in enumerate(groups):
        for position, param in enumerate(group["params"]):
            grad = param.grad
            if grad is not None and grad.layout is not torch.strided:
                raise TypeError(
                    f"Parameter {position} of group {index}, of shape {list(param.shape)}, has a "
                    f"{grad.layout} gradient; the momentum model needs dense ones. Use "
                    "sparse=False in the embedding that made it."
                )


def check_groups(base: Optimizer, adapter: Adapter, *, tensors: bool = False) -> None:
    """Refuse settings that the model can't be built with.

    Args:
        base: The optimizer that is wrapped.
        adapter: The adapter that reads it.
        tensors: Also look into settings that are tensors, which visits the host, and at the
            parameters.

    Raises:
        ValueError: A learning rate or weight decay is not a finite number of at least 0, groups
            differ where they must not, one asks for `differentiable=True`, or the adapter can't
            read the base with these settings.
    """
    if not any(group["params"] for group in base.param_groups):
        raise ValueError(
            "The optimizer has no parameters. Give it those of the model: model.parameters()."
        )
    if tensors:
        _check_overlap(base)
    index, maximize = 0, []
    for optimizer, its_adapter in adapter.parts(base):
        for group in optimizer.param_groups:
            _check_group(index, group, its_adapter, tensors=tensors)
            maximize.append(maximizes(optimizer, group))
            index += 1
        reason = its_adapter.obstacle(optimizer)
        if reason is not None:
            raise ValueError(
                f"{its_adapter!r} can't read {type(optimizer).__name__}: {reason}. Change that, or "
                "write MoMoWrapper(optimizer, adapter=ProposingAdapter())."
            )
    if any(maximize) and not all(maximize):
        raise ValueError(
            f"Groups have maximize={maximize}, but all groups share one loss. Set the same "
            "maximize for all, or wrap two optimizers."
        )


def _check_group(index: int, group: ParamGroup, adapter: Adapter, *, tensors: bool) -> None:
    if tensors:
        _check_storage(index, group["params"])
    if group.get("lr") is None and adapter.needs_lr:
        raise ValueError(
            f"Group {index} has no 'lr', which the step is measured against. Wrap an "
            "optimizer that has a learning rate."
        )
    for name in ("lr", "weight_decay"):
        if group.get(name) is not None:
            _check_number(index, name, group[name], tensors=tensors)
    if group.get("differentiable"):
        raise ValueError(
            f"Group {index} has differentiable=True, but MoMo's step does not record "
            "gradients. Make the base optimizer with differentiable=False."
        )


def _check_number(index: int, name: str, value: object, *, tensors: bool) -> None:
    if isinstance(value, Tensor):
        if not tensors:
            return
        value = float(value)
    if not (isinstance(value, Real) and math.isfinite(value) and float(value) >= -ROUNDING):
        instead = {"lr": "lr=1e-2", "weight_decay": "weight_decay=0.0"}[name]
        hint = "For no cap, choose a large one: lr=1e2" if value == math.inf else f"Write {instead}"
        raise ValueError(
            f"Group {index} has {name}={value!r}, expected a finite number of at least 0. {hint}."
        )


def _check_storage(index: int, params: Sequence[Tensor]) -> None:
    for position, param in enumerate(params):
        if param.is_conj() or param.is_neg():
            raise ValueError(
                f"Parameter {position} of group {index} is a view that is conjugated or negated "
                "only when it is read, and can't be written through. Make it with "
                "param.detach().resolve_conj().resolve_neg().requires_grad_()."
            )


def _check_overlap(base: Optimizer) -> None:
    """Refuse two parameters that begin at the same place in memory."""
    seen: dict[tuple[torch.device, int], str] = {}
    for index, group in enumerate(base.param_groups):
        for position, param in enumerate(group["params"]):
            if param.device.type == "meta" or local(param).numel() == 0:
                continue
            where, name = (param.device, local(param).data_ptr()), f"{position} of group {index}"
            if where in seen:
                raise ValueError(
                    f"Parameters {seen[where]} and {name}, of shape {list(param.shape)}, share "
                    "their memory but are two parameters, so that each would move the other. Make "
                    "them one: second.weight = first.weight, not second.weight.data = ..."
                )
            seen[where] = name

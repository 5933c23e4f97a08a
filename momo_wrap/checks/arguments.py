"""What the wrapper refuses, before anything is changed, each with the line to write instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from numbers import Real
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter
from momo_wrap.rules import MoMo, StepRule, TrustedMoMo, WeightDecayForm

Loss: TypeAlias = Tensor | float
Compiled: TypeAlias = bool | Literal["auto"]
NonFinite: TypeAlias = Literal["propagate", "skip", "raise"]


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
    if rule is not None:
        check_rule(rule)
    for entry in adapter if isinstance(adapter, (list, tuple)) else [adapter]:
        if not (entry is None or isinstance(entry, Adapter)):
            raise TypeError(
                f"adapter must be an instance of Adapter, got {entry!r}. Write "
                "MoMoWrapper(optimizer, adapter=MyAdapter())."
            )
    check_nonfinite(nonfinite)


def check_unknown_arguments(arguments: Mapping[str, object]) -> None:
    """Refuse keyword arguments that `MoMoWrapper` does not have.

    Args:
        arguments: Name to value. Those of a rule or of an optimizer are named as such.

    Raises:
        TypeError: There is one.
    """
    for name, value in arguments.items():
        for rule in (MoMo, TrustedMoMo):
            if name in inspect.signature(rule).parameters:
                raise TypeError(
                    f"MoMoWrapper takes no {name}; write "
                    f"MoMoWrapper(optimizer, {rule.__name__}({name}={value!r}))."
                )
        if name == "weight_decay" and isinstance(value, str):
            raise TypeError(
                "MoMoWrapper takes no weight_decay; to choose its form, write "
                f"MoMoWrapper(optimizer, weight_decay_form={value!r})."
            )
        if name in inspect.signature(torch.optim.AdamW).parameters:
            raise TypeError(
                f"MoMoWrapper takes no {name}; it is a setting of the base. Write "
                f"MoMoWrapper(torch.optim.AdamW(model.parameters(), {name}=...))."
            )
        raise TypeError(
            f"MoMoWrapper takes no {name}. Its arguments are listed by help(momo_wrap.MoMoWrapper)."
        )


def check_rule(rule: object) -> StepRule:
    """Refuse what is no step rule.

    Args:
        rule: The value.

    Returns:
        The rule.

    Raises:
        TypeError: It is none.
        ValueError: Its form of weight decay is none.
    """
    if not isinstance(rule, StepRule):
        raise TypeError(
            f"rule must be a StepRule, got {rule!r}. Write MoMoWrapper(optimizer, "
            "MoMo(lower_bound=0.0))."
        )
    check_decay_form(rule.weight_decay_form, f"{type(rule).__name__}.")
    return rule


def check_nonfinite(nonfinite: object) -> None:
    """Refuse what is no choice of what to do where numbers are not finite.

    Args:
        nonfinite: The value.

    Raises:
        ValueError: It is none.
    """
    if nonfinite not in get_args(NonFinite):
        raise ValueError(
            f"nonfinite must be 'propagate', 'skip' or 'raise', got {nonfinite!r}. Write "
            "MoMoWrapper(optimizer, nonfinite='skip')."
        )


def check_compiled(compiled: object) -> None:
    """Refuse what is no choice of whether to compile.

    Args:
        compiled: The value.

    Raises:
        ValueError: It is none.
    """
    if not (isinstance(compiled, bool) or compiled == "auto"):
        raise ValueError(
            f"compiled must be True, False or 'auto', got {compiled!r}. Write "
            "MoMoWrapper(optimizer, compiled=True)."
        )


def check_decay_form(form: object, whose: str = "") -> None:
    """Refuse what is no form of weight decay.

    Args:
        form: The value.
        whose: What the error's sentence begins with.

    Raises:
        ValueError: There is no such form.
    """
    if form not in get_args(WeightDecayForm):
        raise ValueError(
            f"{whose}weight_decay_form chooses the form of the decay and must be 'proximal', "
            f"'decoupled' or 'scaled', got {form!r}. Its strength is the base's own weight_decay."
        )


def decay_form(chosen: WeightDecayForm | None, rule: StepRule) -> WeightDecayForm:
    """Return the form of weight decay: the one that was chosen, else the one of the rule.

    Args:
        chosen: The form, or None.
        rule: The step rule.

    Raises:
        ValueError: There is no such form.
    """
    if chosen is not None:
        check_decay_form(chosen)
        return chosen
    check_decay_form(rule.weight_decay_form, f"{type(rule).__name__}.")
    return rule.weight_decay_form


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

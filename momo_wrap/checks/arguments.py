"""Checks of the wrapper's arguments. Each error says what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from numbers import Real
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter
from momo_wrap.distributed import check_process_group
from momo_wrap.rules import MoMo, StepRule, TrustedMoMo, WeightDecayForm, signed_bound

Loss: TypeAlias = Tensor | float
Closure: TypeAlias = Callable[[], Loss]
Compiled: TypeAlias = bool | Literal["auto"]
NonFinite: TypeAlias = Literal["propagate", "skip", "raise"]


def check_arguments(
    optimizer: object,
    rule: StepRule,
    adapter: object,
    nonfinite: object,
    compiled: object,
    weight_decay_form: WeightDecayForm | None,
    max_grad_norm: object,
) -> None:
    """Raise for wrong arguments of `MoMoWrapper`."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"MoMoWrapper expects a torch.optim.Optimizer, got {type(optimizer).__name__}. Write "
            "MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=1e-2)); the class that takes "
            "parameters is momo_wrap.optim.MoMoAdamW, or MoMoWrapper.of(torch.optim.AdamW)."
        )
    check_rule(rule)
    for entry in adapter if isinstance(adapter, (list, tuple)) else [adapter]:
        if not (entry is None or isinstance(entry, Adapter)):
            raise TypeError(
                f"adapter must be an instance of Adapter, got {entry!r}. Write "
                "MoMoWrapper(optimizer, adapter=MyAdapter())."
            )
    check_nonfinite(nonfinite)
    check_compiled(compiled)
    decay_form(weight_decay_form, rule)
    check_max_grad_norm(max_grad_norm)


def check_unknown_arguments(arguments: Mapping[str, object]) -> None:
    """Raise for unknown keyword arguments of `MoMoWrapper`, and say where they belong."""
    for name, value in arguments.items():
        rules = [rule for rule in (MoMo, TrustedMoMo) if name in signature(rule).parameters]
        if rules:
            hint = f"; write MoMoWrapper(optimizer, {rules[0].__name__}({name}={value!r}))."
        elif name == "weight_decay" and isinstance(value, str):
            hint = (
                f"; to choose its form, write MoMoWrapper(optimizer, weight_decay_form={value!r})."
            )
        elif name in signature(torch.optim.AdamW).parameters:
            hint = (
                "; it is an argument of the base. Write "
                f"MoMoWrapper(torch.optim.AdamW(model.parameters(), {name}=...)); the class that "
                "takes it is momo_wrap.optim.MoMoAdamW, or MoMoWrapper.of(torch.optim.AdamW)."
            )
        else:
            hint = ". For its arguments, see help(momo_wrap.MoMoWrapper)."
        raise TypeError(f"MoMoWrapper takes no {name}{hint}")


def check_rule(rule: object) -> StepRule:
    """Return a step rule; raise if it is not one, or its form of weight decay is unknown."""
    if not isinstance(rule, StepRule):
        raise TypeError(
            f"rule must be a StepRule, got {rule!r}. Write MoMoWrapper(optimizer, "
            "MoMo(lower_bound=0.0))."
        )
    check_decay_form(rule.weight_decay_form, f"{type(rule).__name__}.")
    return rule


def check_nonfinite(nonfinite: object) -> None:
    """Raise for an unknown choice of `nonfinite`."""
    if nonfinite not in get_args(NonFinite):
        raise ValueError(
            f"nonfinite must be 'propagate', 'skip' or 'raise', got {nonfinite!r}. Write "
            "MoMoWrapper(optimizer, nonfinite='skip')."
        )


def check_probe(
    probe: object,
    source: str = "step()",
    instead: str = "optimizer.step(loss=loss, probe=lambda: loss_function(model(inputs), targets))",
) -> None:
    """Raise for a probe that can't be called."""
    if not callable(probe):
        raise TypeError(
            f"{source} got as probe {type(probe).__name__}, expected a function that returns the "
            f"loss of the batch at the current parameters. Write {instead}."
        )


def check_compiled(compiled: object) -> None:
    """Raise for an unknown choice of `compiled`."""
    if not (isinstance(compiled, bool) or compiled == "auto"):
        raise ValueError(
            f"compiled must be True, False or 'auto', got {compiled!r}. Write "
            "MoMoWrapper(optimizer, compiled=True)."
        )


def check_max_grad_norm(value: object) -> None:
    """Raise for a norm that gradients can't be clipped to."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"max_grad_norm must be a Python number or None, got {value!r}. Write "
            "MoMoWrapper(optimizer, max_grad_norm=1.0)."
        )
    if not float(value) > 0:
        raise ValueError(
            f"max_grad_norm must be above 0, got {value!r}. Write MoMoWrapper(optimizer, "
            "max_grad_norm=1.0), or None for no clipping."
        )


def check_decay_form(form: object, whose: str = "") -> None:
    """Raise for an unknown form of weight decay; the message begins with `whose`."""
    if form not in get_args(WeightDecayForm):
        raise ValueError(
            f"{whose}weight_decay_form must be 'base', 'proximal', 'decoupled' or 'scaled', got "
            f"{form!r}. It is the form of the decay; for its strength, set the weight_decay of the "
            "base."
        )


def decay_form(chosen: WeightDecayForm | None, rule: StepRule) -> WeightDecayForm:
    """Return the chosen form of weight decay, else that of the rule; raise if it is unknown."""
    if chosen is not None:
        check_decay_form(chosen)
        return chosen
    return check_rule(rule).weight_decay_form


# The attributes of the wrapper that may be set, each with the check of a value.
WRAPPER_CHECKS: Mapping[str, Callable[[Any, Any], object]] = {
    "rule": lambda self, rule: signed_bound(check_rule(rule), self._bases.sign),
    "nonfinite": lambda _, value: check_nonfinite(value),
    "compiled": lambda _, value: check_compiled(value),
    "weight_decay_form": lambda self, value: decay_form(value, self.rule),
    "process_group": lambda self, value: check_process_group(value, self.param_groups),
    "max_grad_norm": lambda _, value: check_max_grad_norm(value),
}


class CheckedAttributes:
    """An object that checks the attributes in `CHECKS`, and sets those in `FIXED` only once."""

    # From the name of an attribute to its check, called with the object and the value.
    CHECKS: ClassVar[Mapping[str, Callable[[Any, Any], object]]] = {}
    FIXED: ClassVar[frozenset[str]] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        check = self.CHECKS.get(name)
        if check is not None:
            check(self, value)
        elif name in self.FIXED and name in self.__dict__:
            raise AttributeError(
                f"{name} of a {type(self).__name__} can't be set. Create a new "
                f"{type(self).__name__}."
            )
        super().__setattr__(name, value)
        if check is not None:
            self._changed(name)

    def _changed(self, name: str) -> None:
        """React to a change of a checked attribute."""

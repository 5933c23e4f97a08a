"""Classes of wrapped optimizers that are created from parameters, like `torch.optim`'s.

Trainers, command lines and sweeps create an optimizer by `Class(params, **settings)`, and may
import, pickle, print and inspect the class.
"""

from __future__ import annotations

import copy
import copyreg
import inspect
import sys
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple, get_type_hints

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from momo_wrap.checks.arguments import check_rule
from momo_wrap.of import MakesClasses
from momo_wrap.rules import MoMo, StepRule
from momo_wrap.wrapper import MoMoWrapper


def _own_parameters() -> dict[str, Parameter]:
    """Return the settings of the wrapper, and the bound of its rule, as keyword-only parameters."""
    types = get_type_hints(MoMoWrapper.__init__, localns={"ProcessGroup": Any})
    given = inspect.signature(MoMoWrapper).parameters
    own = {
        name: given[name].replace(kind=Parameter.KEYWORD_ONLY, annotation=types[name])
        for name in given
        if name not in ("optimizer", "unknown")
    }
    bound = own["rule"].replace(name="lower_bound", annotation=float | None)
    return {"rule": own.pop("rule"), "lower_bound": bound, **own}


_OWN = _own_parameters()


class _Recipe(NamedTuple):
    """The base, rule and defaults of a class, and its signature."""

    base: type[Optimizer]
    rule: StepRule
    signature: Signature
    of_base: Mapping[str, Any]  # the base's default arguments
    own: Mapping[str, Any]  # the wrapper's


class MoMoOptimizer(MoMoWrapper):
    """A `MoMoWrapper` that creates its base optimizer; the parent of those in `momo_wrap.optim`.

    To define a class that can be imported by name, write

        class TrustedNAdam(MoMoOptimizer, base=torch.optim.NAdam, rule=TrustedMoMo(), lr=100.0):
            pass

    with the arguments of `MoMoWrapper.of`, which returns such a class without a class statement.

    Args:
        params: Parameters, named parameters, or parameter groups, as for the base.
        *args: Further arguments of the base.
        **settings: Keyword arguments of the base and of `MoMoWrapper`: `rule`, `adapter`,
            `weight_decay_form`, `nonfinite`, `max_grad_norm`, `process_group`, `compiled`; and
            `lower_bound`.
        rule: The step rule; None: that of the class.
        lower_bound: The lower bound of the class's rule; None: its default.
        adapter: How to read the base; None: `adapter_for(optimizer)`.

    Raises:
        TypeError: The class has no such argument, or both `rule` and `lower_bound` are given.
        ValueError: A setting is out of range.
    """

    _recipe: ClassVar[_Recipe | None] = None

    def __init_subclass__(
        cls,
        *,
        base: type[Optimizer] | None = None,
        rule: StepRule | None = None,
        **defaults: Any,
    ) -> None:
        super().__init_subclass__()
        if base is None:
            if rule is not None or defaults:
                raise TypeError(
                    f"{cls.__name__} has settings for a base, but no base. Write class "
                    f"{cls.__name__}(MoMoOptimizer, base=torch.optim.AdamW, ...)."
                )
            return
        _check_base(base)
        rule = _chosen(MoMo(), rule, defaults.pop("lower_bound", None), cls.__name__)
        signature = _signature(base, defaults)
        own = {name: defaults.pop(name) for name in _OWN if name in defaults}
        cls._recipe = _Recipe(base, copy.deepcopy(rule), signature, defaults, own)
        if "__init__" not in vars(cls):
            cls.__init__ = _constructor(cls, signature)  # type: ignore[method-assign]

    def __init__(self, params: ParamsT, *args: Any, **settings: Any) -> None:
        self._make((params, *args), settings)

    def _make(self, args: tuple[Any, ...], settings: dict[str, Any]) -> None:
        name, recipe = type(self).__name__, type(self)._recipe
        if recipe is None:
            raise TypeError(
                f"{name} has no base. Write momo_wrap.optim.MoMoAdamW(params), or "
                "MoMoWrapper.of(torch.optim.AdamW)(params) for another base."
            )
        try:
            given = recipe.signature.bind(*args, **settings)
        except TypeError as error:
            names = ", ".join(recipe.signature.parameters)
            raise TypeError(f"{name} {error}. Its arguments are: {names}.") from None
        arguments = given.arguments
        own = {**recipe.own, **{name: arguments.pop(name) for name in _OWN if name in arguments}}
        rule = _chosen(recipe.rule, own.pop("rule", None), own.pop("lower_bound", None), name)
        of_base = {k: _own_copy(v) for k, v in recipe.of_base.items() if k not in arguments}
        super().__init__(recipe.base(*given.args, **{**of_base, **given.kwargs}), rule, **own)


class _Made(type):
    """The type of classes created by a call, which can't be imported by name."""

    def __repr__(cls) -> str:
        return _call(cls) if _made_by_call(cls) else super().__repr__()


_classes: dict[Any, type[MoMoOptimizer]] = {}


def class_of(
    wrapper: type[Any], base: type[Optimizer], rule: StepRule | None, defaults: Mapping[str, Any]
) -> type[MoMoOptimizer]:
    """Return the class for `MoMoWrapper.of`, called on `wrapper`."""
    _check_base(base)
    defaults = dict(defaults)
    rule = copy.deepcopy(_chosen(MoMo(), rule, defaults.pop("lower_bound", None), "MoMoWrapper.of"))
    key: Any = wrapper, base, type(rule), _frozen(vars(rule)), _frozen(defaults)
    try:
        if key in _classes:
            return _classes[key]
    except TypeError:  # a setting is not hashable
        key = None
    parents = (wrapper,) if issubclass(wrapper, MoMoOptimizer) else (MoMoOptimizer, wrapper)
    what = {
        "__doc__": f"{base.__name__} in a `MoMoWrapper` with {rule!r}; see `MoMoOptimizer`.",
        "__module__": __name__,
        "_arguments": (wrapper, base, rule, defaults),
    }
    name = f"{type(rule).__name__.removesuffix('MoMo') or 'MoMo'}{base.__name__}"
    made: Any = _Made(name, parents, what, base=base, rule=rule, **defaults)
    return made if key is None else _classes.setdefault(key, made)


MakesClasses._class_of = staticmethod(class_of)


def _made_by_call(cls: type) -> bool:
    return "_arguments" in vars(cls)  # a subclass of such a class has a class statement


def _reduced(cls: Any) -> str | tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return what pickle writes for a class: its name, or the call that created it."""
    return (class_of, cls._arguments) if _made_by_call(cls) else cls.__qualname__


copyreg.pickle(_Made, _reduced)


def _call(cls: Any) -> str:
    wrapper, base, rule, defaults = cls._arguments
    settings = "".join(f", {name}={value!r}" for name, value in defaults.items())
    return f"{wrapper.__name__}.of({_path(base)}, {rule!r}{settings})"


def _path(cls: type) -> str:
    """Return the shortest import path of a class: torch.optim.NAdam."""
    packages = list(accumulate(cls.__module__.split("."), lambda left, right: f"{left}.{right}"))
    found = (p for p in packages if getattr(sys.modules.get(p), cls.__name__, None) is cls)
    return f"{next(found, cls.__module__)}.{cls.__qualname__}"


def _frozen(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return settings as a key, where 1, 1.0 and True differ."""
    return tuple((name, type(settings[name]), settings[name]) for name in sorted(settings))


def _chosen(own: StepRule, rule: StepRule | None, bound: float | None, whose: str) -> StepRule:
    """Return the given rule, else a copy of the class's rule with the bound."""
    if rule is not None:
        check_rule(rule)
        if bound is not None:
            raise TypeError(
                f"{whose} got rule and lower_bound, expected one of them. Put the bound into the "
                f"rule: rule={type(rule).__name__}(lower_bound={bound!r})."
            )
        return rule
    own = copy.deepcopy(own)
    if bound is not None:
        own.lower_bound = bound
    return own


def _own_copy(value: Any) -> Any:
    """Return a copy of a default for one optimizer: schedulers change learning rates in place."""
    return value.clone() if isinstance(value, Tensor) else value


def _check_base(base: object) -> None:
    if not (isinstance(base, type) and issubclass(base, Optimizer)):
        raise TypeError(
            f"MoMoWrapper.of expects an optimizer class, got {base!r}. Write "
            "MoMoWrapper.of(torch.optim.AdamW); for an existing optimizer, MoMoWrapper(optimizer)."
        )
    if issubclass(base, MoMoWrapper):
        raise TypeError(
            f"MoMoWrapper.of got {base.__name__}, whose optimizers are already wrapped; their "
            "steps would be shortened twice. Pass the class of the base, such as torch.optim.AdamW."
        )


def _signature(base: type[Optimizer], defaults: Mapping[str, Any]) -> Signature:
    """Return the signature of a class: the parameters of its base, and those of the wrapper."""
    first, *others = inspect.signature(base).parameters.values()
    shared = sorted(_OWN.keys() & {parameter.name for parameter in others})
    if shared:
        raise TypeError(
            f"{base.__name__} and MoMoWrapper both have arguments named {shared}, which is "
            f"ambiguous. Write MoMoWrapper({base.__name__}(params, ...))."
        )
    rest = [parameter for parameter in others if parameter.kind is Parameter.VAR_KEYWORD]
    named = {p.name: p for p in others if p.kind is not Parameter.VAR_KEYWORD} | _OWN
    for name, value in defaults.items():
        if name in named:
            named[name] = named[name].replace(default=value)
        elif not rest:
            raise TypeError(
                f"Neither {base.__name__} nor MoMoWrapper has an argument {name!r}, got the "
                f"default {value!r} for it. Their arguments are: {', '.join(named)}."
            )
    return Signature([first, *_in_order([*named.values()]), *rest], return_annotation=None)


def _in_order(parameters: list[Parameter]) -> list[Parameter]:
    """Return parameters, keyword-only from the first without a default after one with a default."""
    has_default = False
    for i, parameter in enumerate(parameters):
        is_required = parameter.default is Parameter.empty
        if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD and is_required and has_default:
            return [*parameters[:i], *(_by_keyword(its) for its in parameters[i:])]
        has_default = has_default or not is_required
    return parameters


def _by_keyword(parameter: Parameter) -> Parameter:
    is_positional = parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
    return parameter.replace(kind=Parameter.KEYWORD_ONLY) if is_positional else parameter


def _constructor(cls: type[MoMoOptimizer], signature: Signature) -> Callable[..., None]:
    """Return the `__init__` of a class, with its signature."""

    def __init__(self: MoMoOptimizer, *args: Any, **settings: Any) -> None:  # noqa: N807
        MoMoOptimizer._make(self, args, settings)

    parameters = signature.parameters.values()
    itself = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    __init__.__module__ = cls.__module__
    __init__.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    __init__.__signature__ = signature.replace(parameters=[itself, *parameters])  # type: ignore[attr-defined]
    return __init__

"""Settings of a rule: their ranges, checked whenever they are set."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import NamedTuple


class Range(NamedTuple):
    """The allowed values of a setting, and the end of "expected a number ..."."""

    holds: Callable[[float], bool]
    text: str


ABOVE_0 = Range(lambda value: value > 0.0, "above 0")
AT_LEAST_0 = Range(lambda value: value >= 0.0, "of at least 0")
AT_LEAST_1 = Range(lambda value: value >= 1.0, "of at least 1")
FROM_2 = Range(lambda value: 2.0 <= value < math.inf, "of at least 2 that is finite")
ABOVE_0_TO_1 = Range(lambda value: 0.0 < value <= 1.0, "above 0 and of at most 1")
FROM_0_TO_1 = Range(lambda value: 0.0 <= value <= 1.0, "from 0 to 1")
FROM_0_BELOW_1 = Range(lambda value: 0.0 <= value < 1.0, "of at least 0 and below 1")
FINITE = Range(math.isfinite, "that is finite")
A_BOUND = Range(lambda value: not math.isnan(value), "below every loss, or -math.inf for no bound")


class Setting:
    """A dataclass field: a number that is checked whenever it is set, and stored as a float.

    It is stored in the object's `__dict__` under its own name, for `repr`, `copy` and `pickle`.

    Args:
        allowed: The range of the value.
        default: The value until one is set; errors suggest it.
    """

    def __init__(self, allowed: Range, default: float) -> None:
        self.allowed = allowed
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        # The type for tools that read the signature. mypy takes it from `__set__`.
        if name in owner.__annotations__:
            owner.__annotations__[name] = float

    def __get__(self, instance: object | None, owner: type) -> float:
        # The class returns the default, where `dataclass` looks for it.
        own: float = (vars(instance) if instance is not None else {}).get(self.name, self.default)
        return own

    def __set__(self, instance: object, value: float) -> None:
        vars(instance)[self.name] = checked(instance, self.name, value, self.allowed, self.default)


def checked(owner: object, name: str, value: object, allowed: Range, example: float) -> float:
    """Return a setting as a float; raise if it is not a number or is out of range."""
    kind = type(owner).__name__
    if not isinstance(value, Real):
        raise TypeError(
            f"{name} must be a Python number, got {type(value).__name__}. Write "
            f"{kind}({name}={example})."
        )
    if not allowed.holds(float(value)):
        raise ValueError(
            f"{kind} got {name}={value}, expected a number {allowed.text}. Write "
            f"{kind}({name}={example})."
        )
    return float(value)

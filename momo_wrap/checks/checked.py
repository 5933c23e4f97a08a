"""Attributes that are checked when they are set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar


class CheckedAttributes:
    """An object that refuses wrong values of attributes, and other values of those set once."""

    # From the name of an attribute to what raises, called with the object and the value.
    CHECKS: ClassVar[Mapping[str, Callable[[Any, Any], object]]] = {}
    FIXED: ClassVar[frozenset[str]] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        check = self.CHECKS.get(name)
        if check is not None:
            check(self, value)
        elif name in self.FIXED and name in self.__dict__:
            raise AttributeError(
                f"{name} of a {type(self).__name__} can't be set. Make a new {type(self).__name__}."
            )
        super().__setattr__(name, value)
        if check is not None:
            self._changed(name)

    def _changed(self, name: str) -> None:
        """Follow a change of one of the checked attributes."""

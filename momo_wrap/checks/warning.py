"""Warnings: their category, and their stack level."""

from __future__ import annotations

import inspect


class MoMoWarning(UserWarning):
    """A wrapped optimizer can't work with these settings; the text names cause and remedy."""


def users_level() -> int:
    """Return the `stacklevel` of the caller's first frame outside of this package and torch."""
    frame, level = inspect.currentframe(), 0
    inside = ("momo_wrap.", "torch.")
    while frame is not None and frame.f_globals.get("__name__", "").startswith(inside):
        frame, level = frame.f_back, level + 1
    return level

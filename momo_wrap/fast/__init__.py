"""Compiled passes: an optional wing. Without this folder everything works, only slower."""

from momo_wrap.fast.engine import FastEngine, is_chosen

__all__ = ["FastEngine", "is_chosen"]

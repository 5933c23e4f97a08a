"""Compiled passes: an optional wing. Without this folder everything works, only slower."""

from momo_wrap.fast.engine import FastEngine, engine_class

__all__ = ["FastEngine", "engine_class"]

"""Faster engines for SGD and the Adam family. Without this folder everything works, slower."""

from momo_wrap.fast.engine import CompiledEngine, UpdatingEngine, choose_engine

__all__ = ["CompiledEngine", "UpdatingEngine", "choose_engine"]

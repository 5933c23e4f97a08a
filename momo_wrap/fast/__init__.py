"""Faster engines for SGD and the Adam family. Without this subpackage everything works, slower."""

from momo_wrap.fast.choice import choose_engine
from momo_wrap.fast.engine import CompiledEngine, UpdatingEngine

__all__ = ["CompiledEngine", "UpdatingEngine", "choose_engine"]

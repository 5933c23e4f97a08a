"""Adapters: small classes that read a base optimizer's momentum buffer and preconditioner."""

from momo_wrap.adapters.adam import AdamAdapter
from momo_wrap.adapters.base import Adapter, Observation, StepSums
from momo_wrap.adapters.reading import Reading, ReadingAdapter
from momo_wrap.adapters.registry import adapter_for, register_adapter
from momo_wrap.adapters.sgd import SGDAdapter
from momo_wrap.blocks import Block

__all__ = [
    "AdamAdapter",
    "Adapter",
    "Block",
    "Observation",
    "Reading",
    "ReadingAdapter",
    "SGDAdapter",
    "StepSums",
    "adapter_for",
    "register_adapter",
]

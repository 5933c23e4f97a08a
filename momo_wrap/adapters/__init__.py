"""Adapters: small classes that read a base optimizer's momentum buffer and preconditioner."""

from momo_wrap.adapters.adagrad import (
    AdadeltaAdapter,
    AdagradAdapter,
    GradientAdapter,
    RMSpropAdapter,
)
from momo_wrap.adapters.adam import AdamAdapter
from momo_wrap.adapters.adam_relatives import AdamaxAdapter, NAdamAdapter, RAdamAdapter
from momo_wrap.adapters.base import Adapter, Observation, ParamGroup, State, StepSums
from momo_wrap.adapters.joint import JointAdapter
from momo_wrap.adapters.lion import LionAdapter
from momo_wrap.adapters.proposing import ProposingAdapter
from momo_wrap.adapters.reading import Reading, ReadingAdapter
from momo_wrap.adapters.registry import adapter_for, register_adapter
from momo_wrap.adapters.sgd import SGDAdapter
from momo_wrap.blocks import Block

__all__ = [
    "AdadeltaAdapter",
    "AdagradAdapter",
    "AdamAdapter",
    "AdamaxAdapter",
    "Adapter",
    "Block",
    "GradientAdapter",
    "JointAdapter",
    "LionAdapter",
    "NAdamAdapter",
    "Observation",
    "ParamGroup",
    "ProposingAdapter",
    "RAdamAdapter",
    "RMSpropAdapter",
    "Reading",
    "ReadingAdapter",
    "SGDAdapter",
    "State",
    "StepSums",
    "adapter_for",
    "register_adapter",
]

"""Adapters: small classes that read a base optimizer's momentum buffer and preconditioner."""

from momo_wrap.adapters.adadelta import AdadeltaAdapter
from momo_wrap.adapters.adagrad import AdagradAdapter, GradientAdapter
from momo_wrap.adapters.adam import AdamAdapter
from momo_wrap.adapters.adamax import AdamaxAdapter
from momo_wrap.adapters.base import Adapter, BaseStep, ParamGroup, State
from momo_wrap.adapters.lion import LionAdapter
from momo_wrap.adapters.nadam import NAdamAdapter
from momo_wrap.adapters.planned_step import Reading
from momo_wrap.adapters.proposing import ProposingAdapter
from momo_wrap.adapters.radam import RAdamAdapter
from momo_wrap.adapters.reading import ReadingAdapter
from momo_wrap.adapters.registry import adapter_for, register_adapter
from momo_wrap.adapters.rmsprop import RMSpropAdapter
from momo_wrap.adapters.sgd import SGDAdapter
from momo_wrap.engine.blocks import Block
from momo_wrap.model import Averaging

__all__ = [
    "AdadeltaAdapter",
    "AdagradAdapter",
    "AdamAdapter",
    "AdamaxAdapter",
    "Adapter",
    "Averaging",
    "BaseStep",
    "Block",
    "GradientAdapter",
    "LionAdapter",
    "NAdamAdapter",
    "ParamGroup",
    "ProposingAdapter",
    "RAdamAdapter",
    "RMSpropAdapter",
    "Reading",
    "ReadingAdapter",
    "SGDAdapter",
    "State",
    "adapter_for",
    "register_adapter",
]

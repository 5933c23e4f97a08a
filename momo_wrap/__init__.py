"""MoMo step sizes for any momentum-style PyTorch optimizer, in one line.

Example:
    >>> optimizer = MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=1e-2))
    >>> loss.backward()
    >>> optimizer.step(loss=loss)
"""

from momo_wrap import optim as optim
from momo_wrap.about import info
from momo_wrap.adapters import (
    Adapter,
    ProposingAdapter,
    ReadingAdapter,
    adapter_for,
    register_adapter,
)
from momo_wrap.checks.warning import MoMoWarning
from momo_wrap.diagnosis import Diagnosis
from momo_wrap.joint import JointOptimizer
from momo_wrap.model import Averaging
from momo_wrap.optim.muon import muon_and_adamw
from momo_wrap.record import StepRecord
from momo_wrap.recorder import Recorder
from momo_wrap.rules import ModelStats, MoMo, MoMoStar, StepDecision, StepRule, TrustedMoMo
from momo_wrap.wrapper import MoMoWrapper

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Averaging",
    "Diagnosis",
    "JointOptimizer",
    "MoMo",
    "MoMoStar",
    "MoMoWarning",
    "MoMoWrapper",
    "ModelStats",
    "ProposingAdapter",
    "ReadingAdapter",
    "Recorder",
    "StepDecision",
    "StepRecord",
    "StepRule",
    "TrustedMoMo",
    "adapter_for",
    "info",
    "muon_and_adamw",
    "register_adapter",
]

"""Step rules, which choose the fraction θ of the base's step."""

from momo_wrap.rules.base import (
    StepDecision,
    StepRule,
    WeightDecayForm,
    checked_theta,
    no_fraction,
    scaled,
    signed_bound,
    truncate,
)
from momo_wrap.rules.momo import MoMo
from momo_wrap.rules.momo_star import MoMoStar
from momo_wrap.rules.stats import GroupStats, ModelStats
from momo_wrap.rules.trusted import TrustedMoMo

__all__ = [
    "GroupStats",
    "MoMo",
    "MoMoStar",
    "ModelStats",
    "StepDecision",
    "StepRule",
    "TrustedMoMo",
    "WeightDecayForm",
    "checked_theta",
    "no_fraction",
    "scaled",
    "signed_bound",
    "truncate",
]

from momo_wrap.rules.base import (
    GroupStats,
    ModelStats,
    MoMo,
    MoMoStar,
    StepDecision,
    StepRule,
    WeightDecayForm,
    check_decision,
    scaled,
    truncate,
)
from momo_wrap.rules.trusted import TrustedMoMo

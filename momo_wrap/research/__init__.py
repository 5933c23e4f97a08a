"""Step rules for research: variants of the truncation, each a few lines over the same statistics.

They work with every base, weight decay and several groups, and are saved with the optimizer, as
`MoMo` is. What they are called by is their source; where several statistics of the paper have to
share the single θ of a step, the docstring says what was changed. `PerGroup` alone has a θ for each
parameter group. None is recommended over `MoMo`:
defaults are plausible, not tuned.

Example:
    >>> optimizer = MoMoWrapper(torch.optim.SGD(model.parameters(), lr=1.0), NGN())
"""

from momo_wrap.research.bounds import MovingTarget, ScheduledBound, WarmTarget
from momo_wrap.research.fractions import NGN, LimitedGrowth, SPSMax, TrustRegion
from momo_wrap.research.per_group import PerGroup
from momo_wrap.research.schedules import LinearSchedule, PowerLaw

__all__ = [
    "NGN",
    "LimitedGrowth",
    "LinearSchedule",
    "MovingTarget",
    "PerGroup",
    "PowerLaw",
    "SPSMax",
    "ScheduledBound",
    "TrustRegion",
    "WarmTarget",
]

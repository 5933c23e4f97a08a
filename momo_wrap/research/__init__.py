"""Step rules for research: variants of the truncation, each a few lines over the same statistics.

They work with every base, weight decay and several groups, and are saved with the optimizer, like
`MoMo`. Each docstring names the source and the differences from it, which come from a single θ per
step. Only `PerGroup` has a θ for each parameter group, and `TwinPolyak` one for each of two copies
of a model. None is recommended over `MoMo`: defaults are plausible, not tuned. `HeavyBall` is a
base optimizer; with it, some rules become methods with heavy-ball momentum.

Example:
    >>> optimizer = MoMoWrapper(torch.optim.SGD(model.parameters(), lr=1.0), NGN())
"""

from momo_wrap.research.dec_sps import DecSPS
from momo_wrap.research.heavy_ball import HeavyBall
from momo_wrap.research.moving_target import MovingTarget
from momo_wrap.research.muon_max import MuonMax
from momo_wrap.research.ngn import NGN, ModelNGN
from momo_wrap.research.per_group import PerGroup
from momo_wrap.research.scheduled_bound import LinearSchedule, PowerLaw, ScheduledBound
from momo_wrap.research.sps_max import SPSMax
from momo_wrap.research.sps_safe import SPSSafe
from momo_wrap.research.twin_polyak import TwinPolyak

__all__ = [
    "NGN",
    "DecSPS",
    "HeavyBall",
    "LinearSchedule",
    "ModelNGN",
    "MovingTarget",
    "MuonMax",
    "PerGroup",
    "PowerLaw",
    "SPSMax",
    "SPSSafe",
    "ScheduledBound",
    "TwinPolyak",
]

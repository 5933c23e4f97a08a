"""Ready-made classes of wrapped optimizers, created from parameters like those of `torch.optim`.

They are for trainers, command lines and sweeps that take a class, or its name. `MoMoSGD`,
`MoMoAdam` and `MoMoAdamW` have the base's default learning rate; `TrustedSGD`, `TrustedAdam` and
`TrustedAdamW` one of 100, because it is only a cap and the rule finds the step size. For another
base or another rule, see `MoMoWrapper.of`.

Example:
    >>> optimizer = TrustedAdamW(model.parameters(), weight_decay=0.1, lower_bound=1.5)
    >>> loss.backward()
    >>> optimizer.step(loss=loss)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor
from torch.optim import SGD, Adam, AdamW

from momo_wrap.adapters.base import Adapter
from momo_wrap.checks.arguments import Compiled, NonFinite
from momo_wrap.distributed import ProcessGroup
from momo_wrap.optim.classes import MoMoOptimizer
from momo_wrap.rules import MoMo, StepRule, TrustedMoMo, WeightDecayForm

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT
    from typing_extensions import Unpack

__all__ = [
    "MoMoAdam",
    "MoMoAdamW",
    "MoMoOptimizer",
    "MoMoSGD",
    "TrustedAdam",
    "TrustedAdamW",
    "TrustedSGD",
]


class WrapperSettings(TypedDict, total=False):
    """The arguments of every class, see `MoMoWrapper`; `lower_bound` sets that of its rule."""

    rule: StepRule | None
    lower_bound: float | None
    adapter: Adapter | None
    weight_decay_form: WeightDecayForm | None
    nonfinite: NonFinite
    max_grad_norm: float | None
    process_group: ProcessGroup
    compiled: Compiled


class SGDSettings(WrapperSettings, total=False):
    """The arguments of `torch.optim.SGD`, and those of every class."""

    lr: float | Tensor
    momentum: float
    dampening: float
    weight_decay: float | Tensor
    nesterov: bool
    maximize: bool
    foreach: bool | None
    differentiable: bool
    fused: bool | None


class AdamWSettings(WrapperSettings, total=False):
    """The arguments of `torch.optim.AdamW`, and those of every class."""

    lr: float | Tensor
    betas: tuple[float | Tensor, float | Tensor]
    eps: float
    weight_decay: float
    amsgrad: bool
    maximize: bool
    foreach: bool | None
    capturable: bool
    differentiable: bool
    fused: bool | None


class AdamSettings(AdamWSettings, total=False):
    """The arguments of `torch.optim.Adam`, and those of every class."""

    decoupled_weight_decay: bool


class MoMoSGD(MoMoOptimizer, base=SGD, rule=MoMo()):
    """`torch.optim.SGD` with steps that `MoMo` shortens; see `MoMoOptimizer` for arguments.

    Without `momentum` each step uses only the loss of its own batch.
    """

    if TYPE_CHECKING:

        def __init__(
            self, params: ParamsT, *args: Any, **settings: Unpack[SGDSettings]
        ) -> None: ...


class MoMoAdam(MoMoOptimizer, base=Adam, rule=MoMo()):
    """`torch.optim.Adam` with steps that `MoMo` shortens; see `MoMoOptimizer` for arguments."""

    if TYPE_CHECKING:

        def __init__(
            self, params: ParamsT, *args: Any, **settings: Unpack[AdamSettings]
        ) -> None: ...


class MoMoAdamW(MoMoOptimizer, base=AdamW, rule=MoMo()):
    """`torch.optim.AdamW` with steps that `MoMo` shortens; see `MoMoOptimizer` for arguments."""

    if TYPE_CHECKING:

        def __init__(
            self, params: ParamsT, *args: Any, **settings: Unpack[AdamWSettings]
        ) -> None: ...


class TrustedSGD(MoMoOptimizer, base=SGD, rule=TrustedMoMo(), lr=100.0, momentum=0.9):
    """`torch.optim.SGD` whose step size `TrustedMoMo` finds, with a momentum of 0.9 and lr=100.

    The learning rate is only a cap. The rule needs the momentum. See `MoMoOptimizer` for the
    arguments.
    """

    if TYPE_CHECKING:

        def __init__(
            self, params: ParamsT, *args: Any, **settings: Unpack[SGDSettings]
        ) -> None: ...


class TrustedAdam(MoMoOptimizer, base=Adam, rule=TrustedMoMo(), lr=100.0):
    """`torch.optim.Adam` whose step size `TrustedMoMo` finds, with lr=100, which is only a cap.

    See `MoMoOptimizer` for the arguments.
    """

    if TYPE_CHECKING:

        def __init__(
            self, params: ParamsT, *args: Any, **settings: Unpack[AdamSettings]
        ) -> None: ...


class TrustedAdamW(MoMoOptimizer, base=AdamW, rule=TrustedMoMo(), lr=100.0):
    """`torch.optim.AdamW` whose step size `TrustedMoMo` finds, with lr=100, which is only a cap.

    Its weight decay is shortened with the step. See `MoMoOptimizer` for the arguments.
    """

    if TYPE_CHECKING:

        def __init__(
            self, params: ParamsT, *args: Any, **settings: Unpack[AdamWSettings]
        ) -> None: ...

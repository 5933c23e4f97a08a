"""`MoMoWrapper.of`, apart from the wrapper, which the classes that it returns are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch.optim import Optimizer

from momo_wrap.rules import StepRule


class MakesClasses:
    """What `MoMoWrapper` has to be given as a class."""

    # Set where the classes are, `momo_wrap.optim.classes`, which needs the wrapper.
    _class_of: ClassVar[Callable[..., type[Any]]]

    @classmethod
    def of(cls, base: type[Optimizer], rule: StepRule | None = None, **defaults: Any) -> type[Any]:
        """Return a class of wrapped optimizers that are made from parameters.

        For trainers, command lines and sweeps that make the optimizer themselves, and take a class:
        `MoMoWrapper.of(AdamW)(params, lr=1e-2)` is `MoMoWrapper(AdamW(params, lr=1e-2))`. The class
        takes the arguments of the base and those of the wrapper, has them in its signature, and
        can be pickled. `momo_wrap.optim` has ready-made ones, which can also be imported by name.

        Args:
            base: The class of the base optimizer.
            rule: The step rule, of which each optimizer gets a copy; None: `MoMo()`.
            **defaults: Arguments of the class, of the base or of the wrapper, that have this value
                unless they are given.

        Returns:
            A subclass of `momo_wrap.optim.MoMoOptimizer`, the same one for the same arguments, if
            these are hashable.

        Raises:
            TypeError: `base` is no class of optimizers, `rule` no rule, or the class has no such
                argument.

        Example:
            >>> TrustedNAdam = MoMoWrapper.of(torch.optim.NAdam, TrustedMoMo(), lr=100.0)
            >>> optimizer = TrustedNAdam(model.parameters(), lower_bound=1.5)
        """
        return MakesClasses._class_of(cls, base, rule, defaults)

"""`MoMoWrapper.of`, in a separate module, because the classes that it returns need the wrapper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch.optim import Optimizer

from momo_wrap.rules import StepRule


class MakesClasses:
    """The class method that makes classes for trainers which take a class."""

    # `momo_wrap.optim.classes`, which imports the wrapper, sets it.
    _class_of: ClassVar[Callable[..., type[Any]]]

    @classmethod
    def of(cls, base: type[Optimizer], rule: StepRule | None = None, **defaults: Any) -> type[Any]:
        """Return a class of wrapped optimizers that takes parameters.

        For trainers, command lines and sweeps that create the optimizer and need its class:
        `MoMoWrapper.of(AdamW)(params, lr=1e-2)` is `MoMoWrapper(AdamW(params, lr=1e-2))`. The
        signature of the class has the arguments of the base and of the wrapper, and the class can
        be pickled. The classes of `momo_wrap.optim` can also be imported by name.

        Args:
            base: The class of the base optimizer.
            rule: The step rule; each optimizer gets a copy. None: `MoMo()`.
            **defaults: New default values for arguments of the base or of the wrapper.

        Returns:
            A subclass of `momo_wrap.optim.MoMoOptimizer`; the same class for the same arguments,
            if they are hashable.

        Raises:
            TypeError: `base` is not an optimizer class, `rule` is not a step rule, or the class
                has no argument of a name in `defaults`.

        Example:
            >>> TrustedNAdam = MoMoWrapper.of(torch.optim.NAdam, TrustedMoMo(), lr=100.0)
            >>> optimizer = TrustedNAdam(model.parameters(), lower_bound=1.5)
        """
        return MakesClasses._class_of(cls, base, rule, defaults)

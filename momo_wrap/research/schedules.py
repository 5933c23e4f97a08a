"""Functions of the step count, for `ScheduledBound`; unlike a lambda, they can be pickled."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from momo_wrap.rules.arguments import ABOVE_0, checked


@dataclass(frozen=True)
class LinearSchedule:
    """From one value to another in equal steps, then constant.

        l_k = start + (end - start) min(k/steps, 1)

    Attributes:
        start: The value at k = 0; steps count from 1.
        end: The value from k = steps on.
        steps: How many steps it takes.

    Raises:
        TypeError: `steps` is not a number.
        ValueError: `steps` is not positive.
    """

    start: float
    end: float
    steps: float

    def __post_init__(self) -> None:
        checked(self, "steps", self.steps, ABOVE_0, 1000.0)

    def __call__(self, step: Tensor) -> Tensor:
        """Return l_k.

        Args:
            step: k, 0-dim.
        """
        return self.start + (self.end - self.start) * (step / self.steps).clamp(max=1.0)


@dataclass(frozen=True)
class PowerLaw:
    """The power law that training curves are fitted with.

        l_k = offset + scale k^(-exponent)

    Source: the form of Hoffmann et al., "Training Compute-Optimal Large Language Models", NeurIPS
    2022, arXiv 2203.15556, L(N, D) = E + A N^(-α) + B D^(-β), at a fixed number of parameters N,
    where the data D grow in proportion to the steps.

    Attributes:
        offset: The loss that is left after infinitely many steps.
        scale: How far above it step 1 is.
        exponent: How fast it is approached.

    Raises:
        TypeError: `exponent` is not a number.
        ValueError: `exponent` is not positive.
    """

    offset: float
    scale: float
    exponent: float

    def __post_init__(self) -> None:
        checked(self, "exponent", self.exponent, ABOVE_0, 0.3)

    def __call__(self, step: Tensor) -> Tensor:
        """Return l_k.

        Args:
            step: k, 0-dim.
        """
        return self.offset + self.scale * step.pow(-self.exponent)

"""Losses that are recorded before the step, for accumulated gradients and for trainers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from momo_wrap.checks.arguments import Loss, check_loss, check_step_arguments
from momo_wrap.distributed import whole


class PendingLosses:
    """The weighted mean of the losses of the next step, without host synchronisation."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        self._due = False
        self._total: Tensor | float = 0.0
        self._weights: Tensor | float = 0.0
        self.count = 0

    def mark_due(self) -> None:
        """Note that the step that they belong to is taken now, or skipped.

        Only a skipped step leaves losses that are due behind; they do not count for the next.
        """
        self._due = True

    def add(self, loss: object, weight: object) -> None:
        """Record a loss.

        Args:
            loss: A one-element tensor or a number.
            weight: Its weight in the mean, the same.

        Raises:
            TypeError: One is of the wrong type.
            ValueError: A tensor has several elements, or a weight that is a number is not positive.
        """
        value = _detached(check_loss(loss, "record_loss() got as loss"))
        its_weight = _detached(check_loss(weight, "record_loss() got as weight"))
        if not isinstance(its_weight, Tensor) and not its_weight > 0:
            raise ValueError(
                f"record_loss() got weight={its_weight}, expected a positive number, for example "
                "the number of tokens of the batch."
            )
        if self._due:
            self.clear()
        self._total = self._total + value * its_weight
        self._weights = self._weights + its_weight
        self.count += 1

    def evaluate(self, closure: Callable[[], Loss] | None, loss: Loss | None) -> Loss:
        """Return the loss of a step, and forget what was recorded.

        Args:
            closure: Computes loss and gradients, and may record.
            loss: The loss, where nothing was recorded.

        Returns:
            The mean of what was recorded, else the loss that was given or computed.

        Raises:
            TypeError: There is none, or two.
            ValueError: The loss has several elements.
        """
        if self.count and loss is not None:
            raise TypeError(
                f"step() got a loss, but {self.count} were recorded before. Write either "
                "optimizer.record_loss(loss) and optimizer.step(), or optimizer.step(loss=loss)."
            )
        if self.count and closure is None:
            return self.take()
        check_step_arguments(closure, loss)
        if closure is None:
            return check_loss(loss, "step() got as loss")
        with torch.enable_grad():
            returned = closure()
        # A trainer's closure may return nothing, or only the last of several losses.
        return self.take() if self.count else check_loss(returned, "the closure returned")

    def take(self) -> Loss:
        """Return the mean, and forget what was recorded."""
        mean = self._total / self._weights
        self.clear()
        return mean

    def __bool__(self) -> bool:
        return self.count > 0


def _detached(value: Loss) -> Loss:
    """Return a value in at least float32, without its graph."""
    if not isinstance(value, Tensor):
        return value
    wide = torch.promote_types(value.dtype, torch.float32)
    return whole(value.detach()).reshape(()).to(wide)

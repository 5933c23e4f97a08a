"""Losses that are recorded before the step, for accumulated gradients and for trainers."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from momo_wrap.checks.arguments import Loss
from momo_wrap.distributed import whole


class PendingLosses:
    """The weighted mean of the losses of the next step, without host synchronisation."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        self._due = False
        self._total: Loss = 0.0
        self._weights: Loss = 0.0
        self.count = 0
        self.averaged = False  # whether the last loss was a mean of what was recorded

    def mark_due(self) -> None:
        """Note that the step that they belong to is taken now, or skipped.

        Only a skipped step leaves losses that are due behind; they do not count for the next.
        """
        self._due = True

    def add(self, loss: object, weight: object) -> None:
        """Record a loss with its weight in the mean; see `MoMoWrapper.record_loss`."""
        value = _detached(checked_loss(loss, "record_loss() got as loss"))
        its_weight = _detached(checked_loss(weight, "record_loss() got as weight"))
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

    def evaluate(self, closure: object, loss: object) -> Loss:
        """Return the loss of a step, and forget what was recorded.

        It is the mean of what was recorded, by the closure too, else what was given or computed.
        """
        self.averaged = False
        if self.count and loss is not None:
            raise TypeError(
                f"step() got a loss, but {self.count} were recorded before. Write either "
                "optimizer.record_loss(loss) and optimizer.step(), or optimizer.step(loss=loss)."
            )
        if closure is not None and loss is not None:
            raise TypeError(
                "step() got a closure and a loss, expected one of them. After loss.backward(), "
                "write optimizer.step(loss=loss); with a closure, write optimizer.step(closure)."
            )
        if loss is not None:
            return checked_loss(loss, "step() got as loss")
        if closure is None and not self.count:
            raise TypeError(
                "step() needs the loss that the gradients belong to. After loss.backward(), write "
                "optimizer.step(loss=loss), or pass a closure that returns the loss. Where a "
                "trainer calls step(), write optimizer.record_loss(loss) before, after the last "
                "zero_grad()."
            )
        if closure is not None:
            if not callable(closure):
                raise TypeError(
                    f"step() takes a closure as its positional argument, got "
                    f"{type(closure).__name__}. To pass a loss, write optimizer.step(loss=loss)."
                )
            with torch.enable_grad():
                returned = closure()
            # A trainer's closure may return nothing, or only the last of several losses.
            if not self.count:
                return checked_loss(returned, "the closure returned")
        mean = self._total / self._weights
        self.clear()
        self.averaged = True
        return mean


class RecordsLosses:
    """An optimizer that is told the losses of its next step."""

    _pending: PendingLosses

    def record_loss(self, loss: Loss, weight: Loss = 1.0) -> None:
        """Record a loss for the next `step()`, which then takes none.

        The mean of what was recorded is the loss of the step: that of several batches whose
        gradients add up, or that of one where a trainer calls `step()` by itself. `zero_grad`
        forgets what was recorded, with the gradients that belong to it.

        Args:
            loss: The loss of a batch, before it is divided by the number of batches: a one-element
                tensor on any device, or a number. No host synchronisation.
            weight: Its weight in the mean, such as the number of tokens.

        Raises:
            TypeError: One is neither a tensor nor a number.
            ValueError: A tensor has several elements, or the weight is not positive.
        """
        self._pending.add(loss, weight)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler asks for this just before it takes the step or skips it, and tells no more.
        self._pending.mark_due()
        return False


_INSTEAD = (
    "optimizer.step(loss=loss.mean())",
    "optimizer.step(loss=loss.real)",
    "optimizer.step(loss=loss) with such a loss, for example float(loss), or return it from the "
    "closure",
)


def checked_loss(loss: object, source: str, instead: Sequence[str] = _INSTEAD) -> Loss:
    """Return a one-element tensor as it is or a number as a float; refuse what is no loss."""
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(
                f"{source} a tensor of shape {list(loss.shape)}, expected one element. Reduce it "
                f"as for backward(), e.g. {instead[0]}."
            )
        if loss.is_complex():
            raise TypeError(
                f"{source} a complex tensor, expected a real number. Write {instead[1]}."
            )
        return loss
    if isinstance(loss, Real):
        return float(loss)
    raise TypeError(
        f"{source} {'None' if loss is None else type(loss).__name__}, expected a one-element "
        f"tensor or a number. Write {instead[2]}."
    )


def _detached(value: Loss) -> Loss:
    """Return a value in at least float32, without its graph."""
    if not isinstance(value, Tensor):
        return value
    wide = torch.promote_types(value.dtype, torch.float32)
    return whole(value.detach()).reshape(()).to(wide)

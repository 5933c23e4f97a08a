"""Losses and probes that are recorded before the step, for accumulated gradients and trainers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from momo_wrap.checks.arguments import Loss, check_probe
from momo_wrap.checks.losses import checked_loss
from momo_wrap.distributed import whole
from momo_wrap.probes import Before, Probe, probed_loss, same_function


class PendingLosses:
    """The weighted mean of the losses of the next step, without host synchronisation.

    Attributes:
        before: The parameters before the last step, where it is to be probed.
        count: How many losses were recorded.
    """

    def __init__(self) -> None:
        self.before: Before | None = None
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        self._due = False
        self._total: Loss = 0.0
        self._weights: Loss = 0.0
        self.count = 0
        self._has_probe = False
        # Each with the weight of its batch, which it keeps alive; none where none is called.
        self._probes: list[tuple[Probe, Loss]] = []

    def __getstate__(self) -> dict[str, object]:
        # Functions can't be saved, and copies of them would bring their model along.
        return {**vars(self), "_probes": [], "_has_probe": False}

    def mark_due(self) -> None:
        """Note that the step that they belong to is taken now, or skipped.

        Only a skipped step leaves losses that are due behind; they do not count for the next.
        """
        self._due = True

    def add(self, loss: object, weight: object, probe: Probe | None) -> None:
        """Record a loss with its weight in the mean; see `MoMoWrapper.record_loss`."""
        value = _detached(checked_loss(loss, "record_loss() got as loss"))
        its_weight = _detached(checked_loss(weight, "record_loss() got as weight"))
        if not isinstance(its_weight, Tensor) and not its_weight > 0:
            raise ValueError(
                f"record_loss() got weight={its_weight}, expected a positive number, for example "
                "the number of tokens of the batch."
            )
        if probe is not None:
            check_probe(probe, "record_loss()", _BOUND)
        if self._due:
            self.clear()
        if probe is not None:
            if self.before is not None and self.before.wants_probe:
                self._keep(probe, its_weight)
            self._has_probe = True
        self._total = self._total + value * its_weight
        self._weights = self._weights + its_weight
        self.count += 1

    def _keep(self, probe: Probe, weight: Loss) -> None:
        if any(same_function(probe, other) for other, _ in self._probes):
            raise ValueError(
                "record_loss() got as probe for two batches of a step functions that return the "
                "same, as those do that read a variable, which has become another batch since. "
                f"Expected one that holds its batch. Write {_BOUND}."
            )
        self._probes.append((probe, weight))

    def evaluate(
        self, closure: object, loss: object, probe: Probe | None
    ) -> tuple[Loss, Probe | None, bool]:
        """Return the loss of a step, its probe and whether that is of this very loss.

        The loss is the mean of what was recorded, by the closure too, else what was given or
        computed; likewise the probe. What was recorded is forgotten.
        """
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
            return checked_loss(loss, "step() got as loss"), probe, True
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
                return checked_loss(returned, "the closure returned"), probe, True
        if probe is not None and self._has_probe:
            raise TypeError(
                "step() got a probe, but probes were recorded with the losses. Write either "
                f"{_BOUND} and optimizer.step(), or optimizer.step(loss=loss, probe=probe)."
            )
        mean, probes, complete = self._total / self._weights, self._probes, False
        if self._has_probe:
            probe, complete = partial(_mean, probes), len(probes) == self.count
        self.clear()
        return mean, probe, complete


class RecordsLosses:
    """An optimizer that is told the losses of its next step."""

    _pending: PendingLosses

    def record_loss(self, loss: Loss, weight: Loss = 1.0, *, probe: Probe | None = None) -> None:
        """Record a loss for the next `step()`, which then takes none.

        The mean of what was recorded is the loss of the step: that of several batches whose
        gradients add up, or that of one where a trainer calls `step()` by itself. `zero_grad`
        forgets what was recorded, with the gradients that belong to it.

        Args:
            loss: The loss of a batch, before it is divided by the number of batches: a one-element
                tensor on any device, or a number. No host synchronisation.
            weight: Its weight in the mean, such as the number of tokens.
            probe: Returns this loss at the parameters as they are; see `step`, which then takes
                none. It must hold its batch, as `functools.partial(loss_of, inputs, targets)`. It
                is kept until `step()` where it is called there, else dropped at once.

        Raises:
            TypeError: One is neither a tensor nor a number, or the probe is no function.
            ValueError: A tensor has several elements, the weight is not positive, or the probe is
                that of another batch.
        """
        self._pending.add(loss, weight, probe)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler asks for this just before it takes the step or skips it, and tells no more.
        self._pending.mark_due()
        return False


_BOUND = "optimizer.record_loss(loss, probe=functools.partial(loss_of, inputs, targets))"


def _mean(probes: Sequence[tuple[Probe, Loss]]) -> Loss:
    """Return the weighted mean of what probes return, as `PendingLosses` takes it of losses."""
    total: Loss = 0.0
    weights: Loss = 0.0
    for probe, weight in probes:
        total = total + _detached(probed_loss(probe)) * weight
        weights = weights + weight
    return total / weights


def _detached(value: Loss) -> Loss:
    """Return a value in at least float32, without its graph."""
    if not isinstance(value, Tensor):
        return value
    wide = torch.promote_types(value.dtype, torch.float32)
    return whole(value.detach()).reshape(()).to(wide)

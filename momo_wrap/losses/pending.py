"""Losses and probes that are recorded before the step, for accumulated gradients and trainers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from momo_wrap.checks.arguments import Loss, check_probe
from momo_wrap.checks.callers import caller, no_loss
from momo_wrap.checks.losses import (
    Reduction,
    checked_bound,
    checked_loss,
    checked_reduction,
    returned_by,
    same_function,
)
from momo_wrap.engine.clipping import clipping_of
from momo_wrap.engine.scalars import detached, to_device
from momo_wrap.probes import Before, Probe, probed_loss


class PendingLosses:
    """The weighted mean or sum of the losses of the next step, without host synchronization.

    Attributes:
        before: The parameters before the last step, if it is to be measured.
        count: The number of recorded losses.
        clipping: The factor by which the gradients were clipped; None: unknown.
        used: Whether a step was taken, or skipped, with the current gradients.
        problem: Why their loss is unknown; else empty.
        emptied: Whether all gradients were set to None, and no loss was recorded since.
        unseen: In `losses_from_backward`, the error message for a missing loss; else empty.
    """

    clipping: Loss | None

    def __init__(self) -> None:
        self.before: Before | None = None
        self.unseen = ""
        self.clear()

    def clear(self) -> None:
        """Discard the recorded losses."""
        self.used = self.emptied = self._due = self._clipping_due = False
        self.problem = ""
        self._reduction: Reduction = "mean"
        self._total: Loss = 0.0
        self._weights: Loss = 0.0
        self._bound: Loss | None = None  # the total of the bounds
        self.count = 0
        self.clipping = None
        self._has_probe = False
        # Each with the weight of its batch. A probe keeps its batch alive, so only those to be
        # called.
        self._probes: list[tuple[Probe, Loss]] = []

    def __getstate__(self) -> dict[str, object]:
        # Functions can't be pickled, and copies of them would copy their model.
        return {**vars(self), "_probes": [], "_has_probe": False, "unseen": ""}

    def mark_due(self) -> None:
        """Note that the step of these losses is taken now, or skipped.

        Only a skipped step leaves losses marked; the next step discards them. Clipping may still be
        recorded: with Lightning, the scaler reads `_step_supports_amp_scaling` before it clips.
        """
        self._due = self._clipping_due = self.used = True

    def note_problem(self, problem: str) -> None:
        """Note why the loss of the gradients is unknown, for a step without a loss."""
        self.clear()
        self.problem = problem

    def multiply(self, factor: Tensor) -> None:
        """Multiply the recorded losses by a factor that the gradients were multiplied by."""
        if isinstance(self._total, Tensor):
            self._total = self._total * to_device(factor, self._total.device, self._total.dtype)

    def add(
        self,
        loss: object,
        weight: object,
        probe: Probe | None,
        reduction: Reduction = "mean",
        bound: object = None,
    ) -> None:
        """Record a loss with its weight in the mean; see `MoMoWrapper.record_loss`."""
        value = detached(checked_loss(loss, "record_loss() got as loss"))
        its_weight = detached(checked_loss(weight, "record_loss() got as weight"))
        its_bound = None if bound is None else detached(checked_bound(bound, "record_loss()"))
        if not isinstance(its_weight, Tensor) and not its_weight > 0:
            raise ValueError(
                f"record_loss() got weight={its_weight}, expected a positive number, for example "
                "the number of tokens of the batch."
            )
        if probe is not None:
            check_probe(probe, "record_loss()", _WITH_PROBE)
        if self._due:
            clipping = None if self._clipping_due else self.clipping
            self.clear()
            self.clipping = clipping
        self._reduction = checked_reduction(reduction, self._reduction if self.count else None)
        if self.count and (its_bound is None) != (self._bound is None):
            raise ValueError(_SOME_BOUNDS)
        if probe is not None:
            if self.before is not None and self.before.wants_probe:
                self._keep(probe, its_weight)
            self._has_probe = True
        self._total = self._total + value * its_weight
        if its_bound is not None:
            self._bound = (0.0 if self._bound is None else self._bound) + its_bound * its_weight
        self._weights = self._weights + its_weight
        self.count += 1

    def clipped(self, factor: object) -> None:
        """Record the factor of clipped gradients; see `MoMoWrapper.record_clipping`."""
        value = detached(checked_loss(factor, "record_clipping() got"))
        if not isinstance(value, Tensor) and not 0.0 <= value <= 1.0:
            raise ValueError(
                f"record_clipping() got {value}, expected the factor that the gradients were "
                "multiplied by, from 0 to 1. After norm = clip_grad_norm_(parameters, 1.0), write "
                "optimizer.record_clipping((1.0 / (norm + 1e-6)).clamp(max=1.0))."
            )
        before = None if self._clipping_due else self.clipping
        self.clipping = value if before is None else before * value
        self._clipping_due = False

    def clip(
        self, groups: Sequence[Mapping[str, Any]], limit: float | None, like: Tensor
    ) -> Tensor:
        """Clip gradients, and return the factor by which they were clipped in total.

        The factor is kept: if the step fails, a retry finds gradients that are already clipped.
        """
        factor = clipping_of(groups, limit, self.clipping, like)
        self.clipping, self._due, self._clipping_due = factor, True, True
        return factor

    def _keep(self, probe: Probe, weight: Loss) -> None:
        if any(same_function(probe, other) for other, _ in self._probes):
            raise ValueError(
                "record_loss() got the same probe for two batches of a step. A function that reads "
                "its batch from a variable sees the latest one; expected one that holds its batch. "
                f"Write {_WITH_PROBE}."
            )
        self._probes.append((probe, weight))

    def _of_closure(self, returned: object, groups: Sequence[Mapping[str, Any]]) -> Loss | None:
        """Return the loss that a closure returned; None if it skipped its batch."""
        if returned is None:
            if all(param.grad is None for group in groups for param in group["params"]):
                self.clear()
                return None
            if self.problem or self.unseen or caller():
                raise TypeError(self.problem or self.unseen or no_loss())
        return checked_loss(returned, "the closure returned")

    def evaluate(
        self,
        closure: object,
        loss: object,
        probe: Probe | None,
        bound: object,
        groups: Sequence[Mapping[str, Any]],
    ) -> tuple[Loss | None, Probe | None, Loss | None, bool]:
        """Return the loss of a step, its probe, its bound, and whether the probe is for this loss.

        The loss is the mean or sum of the recorded losses, including those of the closure, else the
        loss that was given or computed; likewise probe and bound. Recorded losses are discarded.
        The loss is None if the closure returned None and left no gradients: a skipped batch.
        """
        own_bound = None if bound is None else checked_bound(bound, "step()")
        self._check_sources(closure, loss)
        if loss is not None:
            self._due = self._clipping_due = True
            return checked_loss(loss, "step() got as loss"), probe, own_bound, True
        if closure is not None:
            returned = returned_by(closure)
            self._due = self._clipping_due = True
            # A trainer's closure may return None, or only the last of several losses.
            if not self.count:
                own = self._of_closure(returned, groups)
                return own, None if own is None else probe, own_bound, True
        return self._of_recorded(probe, own_bound)

    def _check_sources(self, closure: object, loss: object) -> None:
        """Raise an error if there are two losses, or none."""
        if self.count and loss is not None:
            raise TypeError(
                f"step() got a loss, but {self.count} were already recorded. Write either "
                "optimizer.record_loss(loss) and optimizer.step(), or optimizer.step(loss=loss)."
            )
        if closure is not None and loss is not None:
            raise TypeError(
                "step() got a closure and a loss, expected one of them. After loss.backward(), "
                "write optimizer.step(loss=loss); with a closure, write optimizer.step(closure). "
                "If a trainer passes its own closure, as in Lightning's manual optimization, write "
                "optimizer.record_loss(loss) and optimizer.step()."
            )
        if closure is None and loss is None and not self.count:
            raise TypeError(self.problem or self.unseen or no_loss())

    def _of_recorded(
        self, probe: Probe | None, bound: Loss | None
    ) -> tuple[Loss, Probe | None, Loss | None, bool]:
        """Return the mean or sum of the recorded losses, and discard them; see `evaluate`."""
        if probe is not None and self._has_probe:
            raise TypeError(
                "step() got a probe, but probes were recorded with the losses. Write either "
                f"{_WITH_PROBE} and optimizer.step(), or optimizer.step(loss=loss, probe=probe)."
            )
        as_mean, probes, complete = self._reduction == "mean", self._probes, False
        loss = self._total / self._weights if as_mean else self._total
        if self._bound is not None:
            if bound is not None:
                raise TypeError(_TWO_BOUNDS)
            bound = self._bound / self._weights if as_mean else self._bound
        if self._has_probe:
            probe, complete = partial(_reduced, probes, as_mean), len(probes) == self.count
        clipping = self.clipping
        self.clear()
        self.mark_due()
        self.clipping = clipping
        return loss, probe, bound, complete


_WITH_PROBE = "optimizer.record_loss(loss, probe=functools.partial(loss_of, inputs, targets))"
_SOME_BOUNDS = (
    "record_loss() got a lower_bound for some of the losses of a step, expected one for each or "
    "none. Write optimizer.record_loss(loss, lower_bound=bound) for all of them."
)
_TWO_BOUNDS = (
    "step() got a lower_bound, but bounds were recorded with the losses. Write either "
    "optimizer.record_loss(loss, lower_bound=bound) and optimizer.step(), or "
    "optimizer.step(loss=loss, lower_bound=bound)."
)


def _reduced(probes: Sequence[tuple[Probe, Loss]], as_mean: bool) -> Loss:
    """Return the weighted mean or sum of the losses of probes, like that of `PendingLosses`."""
    total: Loss = 0.0
    weights: Loss = 0.0
    for probe, weight in probes:
        total = total + detached(probed_loss(probe)) * weight
        weights = weights + weight
    return total / weights if as_mean else total

"""The methods of an optimizer that record losses before the step."""

from __future__ import annotations

from momo_wrap.checks.arguments import Loss
from momo_wrap.checks.losses import Reduction
from momo_wrap.losses.pending import PendingLosses
from momo_wrap.probes import Probe


class RecordsLosses:
    """An optimizer that records the losses of its next step."""

    _pending: PendingLosses

    def record_loss(
        self,
        loss: Loss,
        weight: Loss = 1.0,
        *,
        probe: Probe | None = None,
        reduction: Reduction = "mean",
        lower_bound: Loss | None = None,
    ) -> None:
        """Record a loss for the next `step()`, which then takes no loss.

        The loss of the step is the mean of the recorded losses: of several batches whose gradients
        add up, or of one batch if a trainer calls `step()`. `zero_grad` discards the recorded
        losses with their gradients.

        Args:
            loss: The loss of a batch, before it is divided by the number of batches: a one-element
                tensor on any device, or a number. No host synchronization.
            weight: Its weight in the mean or sum, such as the number of tokens.
            probe: Returns this loss at the current parameters; see `step`, which then takes no
                probe. It must hold its batch, as `functools.partial(loss_of, inputs, targets)`
                does. It is kept until `step()` if it is called there, else dropped at once.
            reduction: "sum" if `backward()` is called on each loss as given here, such as the
                losses of real and fake images for a discriminator: their gradients add up to that
                of the sum. With the mean of k losses θ would be up to k times too small.
            lower_bound: A lower bound of this loss; see `step`. The bound of the step is the mean
                or sum of the recorded bounds, like the loss.

        Raises:
            TypeError: An argument is neither a tensor nor a number, or the probe can't be called.
            ValueError: A tensor has several elements, the weight is not positive, the probe belongs
                to another batch, the reduction is unknown or differs from earlier losses, or only
                some of the losses of a step have a bound.
        """
        if self._pending.unseen:
            raise TypeError(_TWICE.format("record_loss", "losses are recorded", "record_loss()"))
        self._pending.add(loss, weight, probe, reduction, lower_bound)

    def record_clipping(self, factor: Loss) -> None:
        """Record the factor by which the gradients of the next `step()` were clipped.

        With a clipped gradient c g alone, the model of the loss is less steep than the loss, and
        predicts too small a decrease. With c it knows the slope, equation (2'') of
        `momo_wrap.model`. `MoMoWrapper(optimizer, max_grad_norm=1.0)` clips, and needs no record.

            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.record_clipping((1.0 / (norm + 1e-6)).clamp(max=1.0))
            optimizer.step(loss=loss)

        Args:
            factor: c, in [0, 1]: a one-element tensor on any device, without host synchronization,
                or a number. The factors of several calls are multiplied. `zero_grad` discards them.

        Raises:
            TypeError: `factor` is neither a tensor nor a number.
            ValueError: `factor` has several elements, or is a number out of range.
        """
        if self._pending.unseen:
            raise TypeError(_TWICE.format("record_clipping", "clip_grad_norm_() is seen", "it"))
        self._pending.clipped(factor)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, and discard the losses and clipping recorded with them.

        Args:
            set_to_none: Whether to set gradients to None instead of zeros.
        """
        super().zero_grad(set_to_none)  # type: ignore[misc]
        self._pending.clear()
        self._pending.emptied = set_to_none

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler reads this just before it takes or skips the step, and says nothing else.
        self._pending.mark_due()
        return False


_TWICE = (
    "{}() was called within losses_from_backward(optimizer), where {} already, so it would count "
    "twice. Remove {}, or losses_from_backward()."
)

"""What an optimizer has for those that tell it its losses before the step."""

from __future__ import annotations

from momo_wrap.checks.arguments import Loss
from momo_wrap.checks.losses import Reduction
from momo_wrap.losses.pending import PendingLosses
from momo_wrap.probes import Probe


class RecordsLosses:
    """An optimizer that is told the losses of its next step."""

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
        """Record a loss for the next `step()`, which then takes none.

        The mean of what was recorded is the loss of the step: that of several batches whose
        gradients add up, or that of one where a trainer calls `step()` by itself. `zero_grad`
        forgets what was recorded, with the gradients that belong to it.

        Args:
            loss: The loss of a batch, before it is divided by the number of batches: a one-element
                tensor on any device, or a number. No host synchronisation.
            weight: Its weight in the mean, such as the number of tokens, or in the sum.
            probe: Returns this loss at the parameters as they are; see `step`, which then takes
                none. It must hold its batch, as `functools.partial(loss_of, inputs, targets)`. It
                is kept until `step()` where it is called there, else dropped at once.
            reduction: "sum" where `backward()` is called on each loss as it is given here, as on
                those of real and fake images for a discriminator: their gradients make that of the
                sum. With the mean of k losses θ would be up to k times too small.
            lower_bound: A number that this loss can't go below; see `step`. The bound of the step
                is the mean or sum of those that were recorded, as the loss is.

        Raises:
            TypeError: One is neither a tensor nor a number, or the probe is no function.
            ValueError: A tensor has several elements, the weight is not positive, the probe is
                that of another batch, the reduction is unknown or another one than before, or only
                some of the losses of a step have a bound.
        """
        if self._pending.unseen:
            raise TypeError(_TWICE.format("record_loss", "losses are recorded", "record_loss()"))
        self._pending.add(loss, weight, probe, reduction, lower_bound)

    def record_clipping(self, factor: Loss) -> None:
        """Record by what the gradients of the next `step()` were multiplied.

        Of a gradient c g that was clipped the model of the loss would take the loss to be less
        steep than it is, and foretell too little. With c it knows the slope, equation (2'') of
        `momo_wrap.model`. `MoMoWrapper(optimizer, max_grad_norm=1.0)` clips, and needs no record.

            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.record_clipping((1.0 / (norm + 1e-6)).clamp(max=1.0))
            optimizer.step(loss=loss)

        Args:
            factor: c, in [0, 1]: a one-element tensor on any device, which is not read on the host,
                or a number. Those of several calls are multiplied. `zero_grad` forgets it.

        Raises:
            TypeError: It is neither a tensor nor a number.
            ValueError: A tensor has several elements, or a number is out of range.
        """
        if self._pending.unseen:
            raise TypeError(_TWICE.format("record_clipping", "clip_grad_norm_() is told", "it"))
        self._pending.clipped(factor)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, and forget the losses and clipping that were recorded with them.

        Args:
            set_to_none: To None rather than to zeros.
        """
        super().zero_grad(set_to_none)  # type: ignore[misc]
        self._pending.clear()
        self._pending.emptied = set_to_none

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler asks for this just before it takes the step or skips it, and tells no more.
        self._pending.mark_due()
        return False


_TWICE = (
    "{}() was called within losses_from_backward(optimizer), where {} already, so that it would "
    "count twice. Leave {} out, or losses_from_backward()."
)

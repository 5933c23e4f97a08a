"""Lightning: a callback that hands the loss to the optimizer and logs what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from momo_wrap.integrations import step_metrics, wrapper_of
from momo_wrap.wrapper import MoMoWrapper

if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    try:
        import lightning.pytorch as pl
    except ModuleNotFoundError:  # Lightning under its older name
        import pytorch_lightning as pl


class MoMoCallback(pl.Callback):
    """Records the loss of each batch, and logs θ and the effective learning rates.

    Lightning's closure returns the loss of the last batch only, divided by
    `accumulate_grad_batches`, and with a GradScaler none. The callback records the loss of every
    batch whose gradients add up, without that division and scale; the loss of a step is their mean.

    It records in automatic optimisation. In manual optimisation give `step` a closure that
    returns the loss.

    Args:
        log: Whether to log, on steps, what `step_metrics` returns. Lightning waits for the values
            at its log intervals only.

    Raises:
        TypeError: When training starts: `configure_optimizers` did not return a `MoMoWrapper`.

    Example:
        >>> class Classifier(LightningModule):
        ...     def configure_optimizers(self):
        ...         return MoMoWrapper(torch.optim.AdamW(self.parameters(), lr=1e-2))
        >>> Trainer(callbacks=[MoMoCallback()]).fit(Classifier(), loader)
    """

    def __init__(self, *, log: bool = True) -> None:
        super().__init__()
        self.log_metrics = log

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse an optimizer that is no wrapper."""
        wrapper_of(trainer.optimizers[0])

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Record the loss of a batch, as `training_step` returned it."""
        if pl_module.automatic_optimization:
            # Divided and scaled for the backward pass that comes next.
            loss = loss.detach() * trainer.accumulate_grad_batches
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            if scaler is not None:
                loss = loss / scaler.scale(torch.ones_like(loss))
            # Automatic optimisation has one optimizer.
            wrapper_of(trainer.optimizers[0]).record_loss(loss)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any
    ) -> None:
        """Log θ and the effective learning rates."""
        if self.log_metrics:
            for optimizer in trainer.optimizers:
                if isinstance(optimizer, MoMoWrapper):
                    pl_module.log_dict(step_metrics(optimizer))

"""Lightning: a callback that records the loss for the optimizer and logs its steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from momo_wrap.engine.clipping import clipping_by
from momo_wrap.engine.compat import total_norm
from momo_wrap.integrations import step_metrics, wrapper_of
from momo_wrap.integrations.repeating import undone, with_own_container
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

    Lightning's closure returns only the loss of the last batch, divided by
    `accumulate_grad_batches`, and with a GradScaler no loss. The callback records the loss of every
    batch whose gradients add up, neither divided nor scaled; the loss of a step is their mean. If
    `gradient_clip_val` clips gradients by their norm, the model of the loss accounts for it. If the
    rule probes a step, `training_step` is called once more with the batches of the next step,
    without gradients and logs.

    This works in automatic optimization. In manual optimization, pass `step` a closure that returns
    the loss, and a probe.

    Args:
        log: Whether to log the result of `step_metrics` at every step. Lightning synchronizes with
            the host only at its log intervals.

    Raises:
        TypeError: When training starts, if `configure_optimizers` did not return a `MoMoWrapper`.

    Example:
        >>> class Classifier(LightningModule):
        ...     def configure_optimizers(self):
        ...         return MoMoWrapper(torch.optim.AdamW(self.parameters(), lr=1e-2))
        >>> Trainer(callbacks=[MoMoCallback()]).fit(Classifier(), loader)
    """

    def __init__(self, *, log: bool = True) -> None:
        super().__init__()
        self.log_metrics = log
        self._arguments: tuple[Any, ...] = ()  # of training_step
        self._number = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise if the optimizer is not a `MoMoWrapper`."""
        wrapper_of(trainer.optimizers[0])
        self._number = _number_of_arguments(pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch until its loss is recorded."""
        self._arguments = (with_own_container(batch), batch_idx)[: self._number]

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Record the loss of a batch, as `training_step` returned it, and its probe."""
        if pl_module.automatic_optimization:
            # Divided and scaled for the backward pass that comes next.
            loss = loss.detach() * trainer.accumulate_grad_batches
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            if scaler is not None:
                loss = loss / scaler.scale(torch.ones_like(loss))
            # Automatic optimization has one optimizer.
            wrapper = wrapper_of(trainer.optimizers[0])
            probe = partial(_evaluate, trainer, pl_module, *self._arguments)
            wrapper.record_loss(loss, probe=probe if self._arguments else None)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Record the factor by which Lightning will clip the gradients."""
        largest, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        if pl_module.automatic_optimization and largest and algorithm in (None, "norm"):
            wrapper = wrapper_of(optimizer)
            params = [param for group in wrapper.param_groups for param in group["params"]]
            norm = total_norm([param.grad for param in params if param.grad is not None])
            wrapper.record_clipping(clipping_by(norm, float(largest)))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any
    ) -> None:
        """Log θ and the effective learning rates."""
        self._arguments = ()
        if self.log_metrics:
            for optimizer in trainer.optimizers:
                if isinstance(optimizer, MoMoWrapper):
                    pl_module.log_dict(step_metrics(optimizer))


def _number_of_arguments(module: pl.LightningModule) -> int:
    """Return the number of arguments of `training_step`; 0 if it takes an iterator of batches."""
    takes = signature(module.training_step)
    if "dataloader_iter" in takes.parameters:
        return 0
    try:
        takes.bind("batch", "batch_idx")
    except TypeError:
        return 1
    return 2


def _evaluate(trainer: pl.Trainer, module: pl.LightningModule, *arguments: Any) -> Any:
    """Return the loss of a batch, without side effects.

    It calls the module, because DDP would broadcast buffers, and skip that the next time.
    """
    metrics = [part for part in module.modules() if isinstance(part, (Metric, MetricCollection))]
    with (
        undone(module, module, *metrics, without=((module, "log"),)),
        trainer.precision_plugin.train_step_context(),
    ):
        output = module.training_step(*map(with_own_container, arguments))
    return output["loss"] if isinstance(output, Mapping) else output

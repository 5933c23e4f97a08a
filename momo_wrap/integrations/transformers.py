"""transformers: a Trainer that records the loss for the optimizer and logs its steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from momo_wrap.engine.clipping import clipping_by
from momo_wrap.integrations import step_metrics, wrapper_of
from momo_wrap.integrations.repeating import undone, with_own_container


class MoMoTrainer(Trainer):
    """A `transformers.Trainer` for a `MoMoWrapper`; takes the arguments of `Trainer`.

    Trainer calls `optimizer.step()` without a loss. This class records the loss of each batch
    before. Trainer divides the losses of accumulated batches, by their number or by
    `num_items_in_batch`; the loss of a step is the sum of the divided losses. If Trainer clips
    gradients, the model of the loss accounts for it. If the rule probes a step, Trainer's
    `training_step` evaluates the batches of the next step once more, without gradients and logs.
    The result of `step_metrics` is logged together with the training loss.

    For another Trainer class, write `class MyTrainer(MoMoTrainer, Seq2SeqTrainer)`. Its
    `training_step`, if it overrides that, must call this one.

    Raises:
        TypeError: In the first step, if `optimizers` has no `MoMoWrapper`.

    Example:
        >>> optimizer = MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=1e-2))
        >>> scheduler = transformers.get_constant_schedule_with_warmup(optimizer, 100)
        >>> MoMoTrainer(model, args, train_dataset=data, optimizers=(optimizer, scheduler)).train()
    """

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Add the gradients of a batch, and record its loss; see `Trainer.training_step`."""
        wrapper = wrapper_of(self.optimizer)
        params = [param for group in wrapper.param_groups for param in group["params"]]
        if all(param.grad is None for param in params):
            # Trainer resets the model's gradients without the wrapper, also after a skipped step.
            wrapper.zero_grad()
        probe = partial(self._loss_again, model, with_own_container(inputs), num_items_in_batch)
        loss = super().training_step(model, inputs, num_items_in_batch)
        wrapper.record_loss(loss, probe=probe, reduction="sum")
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip as Trainer does, and record the factor."""
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        value = torch.as_tensor(norm)
        wrapper_of(self.optimizer).record_clipping(clipping_by(value, self.args.max_grad_norm))
        return norm

    def _loss_again(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor:
        """Return the loss of a batch as recorded, without side effects."""
        if isinstance(model, DistributedDataParallel):
            model = model.module  # DDP would broadcast buffers, and skip that the next time
        without = ((self, "log"), (self.accelerator, "backward"))
        with undone(model, self, self.accelerator, without=without):
            return super().training_step(model, with_own_container(inputs), num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and add θ and the effective learning rates to the logs of the training loss."""
        if "learning_rate" in logs:
            logs.update({name: float(v) for name, v in step_metrics(self.optimizer).items()})
        super().log(logs, start_time)

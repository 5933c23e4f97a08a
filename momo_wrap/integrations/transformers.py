"""transformers: a Trainer that hands the loss to the optimizer and logs what came of it."""

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

    Trainer calls `optimizer.step()` bare. This one records the loss of each batch before, in the
    proportion in which its gradients count: however Trainer divides the losses of accumulated
    batches (by their number, or by `num_items_in_batch`), the loss of a step is the sum of the
    divided ones. Where Trainer clips gradients, the model of the loss knows of it. Where the rule
    has a step probed, the batches of the next one are evaluated once more by Trainer's own
    `training_step`, without its gradients and logs. With the logs of the training loss come those
    of `step_metrics`.

    A Trainer of another kind becomes one by `class MyTrainer(MoMoTrainer, Seq2SeqTrainer)`, unless
    it has a `training_step` of its own that does not call this one.

    Raises:
        TypeError: In the first step: `optimizers` has no `MoMoWrapper`.

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
        """Add the gradients of a batch, and record its loss."""
        wrapper = wrapper_of(self.optimizer)
        params = [param for group in wrapper.param_groups for param in group["params"]]
        if all(param.grad is None for param in params):
            # Trainer resets the model's gradients by itself, also those of a step that was skipped.
            wrapper.zero_grad()
        probe = partial(self._loss_again, model, with_own_container(inputs), num_items_in_batch)
        loss = super().training_step(model, inputs, num_items_in_batch)
        wrapper.record_loss(loss, probe=probe, reduction="sum")
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip as Trainer does, and tell the model of the loss."""
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
        """Return the loss of a batch as it is recorded, and leave no trace."""
        if isinstance(model, DistributedDataParallel):
            model = model.module  # which would broadcast buffers, and leave it out the next time
        without = ((self, "log"), (self.accelerator, "backward"))
        with undone(model, self, self.accelerator, without=without):
            return super().training_step(model, with_own_container(inputs), num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and add θ and the effective learning rates to the logs of the training loss."""
        if "learning_rate" in logs:
            logs.update({name: float(v) for name, v in step_metrics(self.optimizer).items()})
        super().log(logs, start_time)

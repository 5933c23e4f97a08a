"""fastai: a callback that records the loss for the optimizer."""

from __future__ import annotations

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientClip

from momo_wrap.engine.clipping import clipping_by
from momo_wrap.engine.compat import total_norm
from momo_wrap.integrations import wrapper_of


class MoMoCallback(Callback):  # type: ignore[misc]
    """Records the loss of each batch, because a `Learner` calls `opt.step()` without it.

    It records the loss that `backward()` is called on, without the scale of `MixedPrecision`. With
    `GradientAccumulation` the loss of a step is the sum of the divided losses. If `GradientClip`
    clips gradients, the model of the loss accounts for it. Rules that request probes get none.

    fastai's own optimizers can't be wrapped; its `OptimWrapper` takes a torch optimizer.

    Raises:
        TypeError: When training starts, if the Learner's optimizer is not a `MoMoWrapper`.

    Example:
        >>> opt_func = partial(OptimWrapper, opt=TrustedAdamW)
        >>> Learner(dls, model, opt_func=opt_func, lr=100.0, cbs=MoMoCallback()).fit_one_cycle(5)
    """

    order = MixedPrecision.order + 0.5  # after scaling, before clipping
    run_valid = False

    def before_fit(self) -> None:
        """Raise if the optimizer is not a `MoMoWrapper`."""
        try:
            wrapper_of(self.learn.opt)
        except TypeError:
            raise TypeError(
                "MoMoCallback found no MoMoWrapper in the Learner. Pass it, for example, "
                "opt_func=partial(OptimWrapper, opt=momo_wrap.optim.TrustedAdamW), lr=100.0."
            ) from None

    def before_backward(self) -> None:
        """Record the loss of a batch."""
        loss = self.learn.loss_grad.detach()
        scaler = getattr(self.learn, "scaler", None)
        if scaler is not None:
            loss = loss / scaler.scale(torch.ones_like(loss))
        wrapper_of(self.learn.opt).record_loss(loss, reduction="sum")

    def before_step(self) -> None:
        """Record the factor by which fastai will clip the gradients."""
        for callback in self.learn.cbs:
            if isinstance(callback, GradientClip):
                grads = [p.grad for p in self.learn.model.parameters() if p.grad is not None]
                norm = total_norm(grads, callback.norm_type)
                clipping = clipping_by(norm, float(callback.max_norm))
                wrapper_of(self.learn.opt).record_clipping(clipping)

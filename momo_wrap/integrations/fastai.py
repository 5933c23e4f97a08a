"""fastai: a callback that hands the loss to the optimizer."""

from __future__ import annotations

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientClip

from momo_wrap.engine.clipping import clipping_by
from momo_wrap.engine.compat import total_norm
from momo_wrap.integrations import wrapper_of


class MoMoCallback(Callback):  # type: ignore[misc]
    """Records the loss of each batch for the bare `opt.step()` of a `Learner`.

    What is recorded is the loss that `backward()` is called on, without the scale of
    `MixedPrecision`. With `GradientAccumulation` the loss of a step is the sum of those that it
    divided. Where `GradientClip` clips gradients, the model of the loss knows of it. Rules that ask
    for probes get none.

    fastai's own optimizers can't be wrapped, and its `OptimWrapper` takes one of torch's.

    Raises:
        TypeError: When training starts: the Learner's optimizer is no `MoMoWrapper`.

    Example:
        >>> opt_func = partial(OptimWrapper, opt=TrustedAdamW)
        >>> Learner(dls, model, opt_func=opt_func, lr=100.0, cbs=MoMoCallback()).fit_one_cycle(5)
    """

    order = MixedPrecision.order + 0.5  # scaled by then, and not clipped yet
    run_valid = False

    def before_fit(self) -> None:
        """Refuse an optimizer that is no wrapper."""
        try:
            wrapper_of(self.learn.opt)
        except TypeError:
            raise TypeError(
                "MoMoCallback found no MoMoWrapper in the Learner. Give it, for example, "
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
        """Record by what fastai is about to multiply the gradients."""
        for callback in self.learn.cbs:
            if isinstance(callback, GradientClip):
                grads = [p.grad for p in self.learn.model.parameters() if p.grad is not None]
                norm = total_norm(grads, callback.norm_type)
                clipping = clipping_by(norm, float(callback.max_norm))
                wrapper_of(self.learn.opt).record_clipping(clipping)

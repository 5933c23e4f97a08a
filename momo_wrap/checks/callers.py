"""What to write if a step has no loss, by the framework that calls it."""

from __future__ import annotations

import sys
from types import FrameType

_NO_LOSS = (
    "step() needs the loss that the gradients belong to. After loss.backward(), write "
    "optimizer.step(loss=loss), or pass a closure that returns the loss. If a trainer calls "
    "step(), write optimizer.record_loss(loss) before, after the last zero_grad()."
)
_FROM_BACKWARD = "with momo_wrap.integrations.losses_from_backward(optimizer):"
_LIGHTNING = (
    "Lightning calls it: give the Trainer callbacks=[MoMoCallback()] of "
    "momo_wrap.integrations.lightning; in manual optimization write optimizer.record_loss(loss) "
    "before optimizer.step()."
)
# The first one on the stack counts: transformers calls through accelerate, and others through
# transformers.
_ADVICE = {
    "lightning": _LIGHTNING,
    "pytorch_lightning": _LIGHTNING,
    "fastai": (
        "fastai calls it: give the Learner cbs=MoMoCallback() of momo_wrap.integrations.fastai."
    ),
    "ignite": (
        "ignite calls it: give create_supervised_trainer the loss function "
        "recorded(loss_function, optimizer) of momo_wrap.integrations.ignite, or write "
        f"{_FROM_BACKWARD} trainer.run(...)"
    ),
    "stable_baselines3": (
        "stable-baselines3 calls it: write with "
        "momo_wrap.integrations.losses_from_backward(model.policy.optimizer): model.learn(...)"
    ),
    "transformers": (
        "transformers calls it: use MoMoTrainer of momo_wrap.integrations.transformers instead of "
        f"Trainer, or write {_FROM_BACKWARD} trainer.train()"
    ),
    "accelerate": (
        "accelerate calls it: write backward(accelerator, loss, optimizer) of "
        "momo_wrap.integrations.accelerate instead of accelerator.backward(loss)."
    ),
}
_OTHERS = f"If you can't change the code, write {_FROM_BACKWARD} around it."


def caller() -> str:
    """Return the name of the calling framework, "" if it is unknown."""
    found = set()
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        found.add(str(frame.f_globals.get("__name__")).partition(".")[0])
        frame = frame.f_back
    return next((name for name in _ADVICE if name in found), "")


def no_loss() -> str:
    """Return the error message for `step()` without a loss."""
    return f"{_NO_LOSS} {_ADVICE.get(caller(), _OTHERS)}"

"""What is a loss, and what to write where something else was given for one."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Literal, TypeAlias

from torch import Tensor

from momo_wrap.checks.arguments import Loss

Reduction: TypeAlias = Literal["mean", "sum"]

_INSTEAD = (
    "optimizer.step(loss=loss.mean())",
    "optimizer.step(loss=loss.real)",
    "optimizer.step(loss=loss) with such a loss, for example float(loss), or return it from the "
    "closure",
)


def checked_loss(loss: object, source: str, instead: Sequence[str] = _INSTEAD) -> Loss:
    """Return a one-element tensor as it is or a number as a float; refuse what is no loss."""
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(
                f"{source} a tensor of shape {list(loss.shape)}, expected one element. Reduce it "
                f"as for backward(), e.g. {instead[0]}."
            )
        if loss.is_complex():
            raise TypeError(
                f"{source} a complex tensor, expected a real number. Write {instead[1]}."
            )
        return loss
    if isinstance(loss, Real):
        return float(loss)
    raise TypeError(
        f"{source} {'None' if loss is None else type(loss).__name__}, expected a one-element "
        f"tensor or a number. Write {instead[2]}."
    )


def checked_reduction(reduction: Reduction, before: Reduction | None) -> Reduction:
    """Return the reduction of a recorded loss; `before` is that of the losses before, if any."""
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f"record_loss() got reduction={reduction!r}, expected 'mean' or 'sum'. Write 'sum' "
            "where the losses of several backward() were not divided by their number."
        )
    if before not in (None, reduction):
        raise ValueError(
            f"record_loss() got reduction={reduction!r}, but the losses before had {before!r}. "
            "Write the same for all losses of a step. Within losses_from_backward() they are "
            "recorded already, as a sum."
        )
    return reduction

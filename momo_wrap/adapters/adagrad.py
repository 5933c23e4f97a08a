"""Preconditioned gradients without momentum: Adagrad, Adadelta, RMSprop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import ParamGroup, State
from momo_wrap.adapters.reading import Reading, ReadingAdapter
from momo_wrap.averaging import Averaging
from momo_wrap.blocks import Block


class GradientAdapter(ReadingAdapter):
    """Optimizers that average no gradients: B_k = d_k = g_k.

    Attributes:
        columns: Names in the base's state of the tensors that `preconditioned` needs.
    """

    columns: Sequence[str] = ()

    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return that there is none; see `ReadingAdapter`."""
        return Averaging(decay=0.0, weight=1.0)

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Return the tensors named in `columns`; see `ReadingAdapter`."""
        return Reading(None, {name: [state[p][name] for p in params] for name in self.columns})


class AdagradAdapter(GradientAdapter):
    """`torch.optim.Adagrad`: D_k = (sqrt(Σ g²) + ε) (1 + (k - 1) η) with η = `lr_decay`."""

    columns = ("sum",)

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Return the sums of squares and the slowdown by `lr_decay`; see `ReadingAdapter`."""
        reading = super().read(group, params, state)
        # The base counts in float32, in which the product would be rounded.
        steps = torch.stack([state[p]["step"] for p in params]).double()
        slowdown = 1.0 + (steps - 1.0) * group["lr_decay"]
        return Reading(reading.buffer, reading.tensors, {"slowdown": slowdown})

    def preconditioned(self, group: ParamGroup, block: Block) -> Tensor:
        """Return u = d / D of a block; see `ReadingAdapter`."""
        denominator = block.flat("sum").sqrt().add_(group["eps"]).mul_(block.scalar("slowdown"))
        return torch.div(block.flat("grad"), denominator, out=denominator)


class AdadeltaAdapter(GradientAdapter):
    """`torch.optim.Adadelta`: D_k = sqrt(v_k + ε) / sqrt(w_{k-1} + ε).

    v_k is `square_avg` and w_k `acc_delta`, the average of squared steps. When the state is read it
    holds w_k already, but with r = g² / (v_k + ε) and the decay ρ,

        w_k = ρ w_{k-1} + (1 - ρ) (w_{k-1} + ε) r ,  so  w_{k-1} + ε = (w_k + ρ ε) / (ρ + (1 - ρ) r)
    """

    columns = ("square_avg", "acc_delta")

    def obstacle(self, base: Optimizer) -> str | None:
        """Return whether ρ = 0 makes the last average of steps impossible to recover."""
        if any(group["rho"] == 0.0 for group in base.param_groups):
            return "with rho=0 its state does not tell by how much it would move"
        return None

    def preconditioned(self, group: ParamGroup, block: Block) -> Tensor:
        """Return u = d / D of a block; see `ReadingAdapter`."""
        rho, eps, grad = group["rho"], group["eps"], block.flat("grad")
        variance = block.flat("square_avg") + eps
        weights = (grad * grad).div_(variance).mul_(1.0 - rho).add_(rho)
        moves = (block.flat("acc_delta") + rho * eps).div_(weights)
        return torch.mul(moves.div_(variance).sqrt_(), grad)


class RMSpropAdapter(GradientAdapter):
    """`torch.optim.RMSprop` without momentum: D_k = sqrt(v_k) + ε, centered sqrt(v_k - m_k²) + ε.

    v_k is `square_avg` and m_k `grad_avg`.
    """

    def obstacle(self, base: Optimizer) -> str | None:
        """Return whether there is momentum, which averages preconditioned gradients."""
        if any(group["momentum"] > 0 for group in base.param_groups):
            return "with momentum its buffer averages preconditioned gradients, not gradients"
        return None

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Return the second moments, and the first where centered; see `ReadingAdapter`."""
        names = ("square_avg", "grad_avg") if group["centered"] else ("square_avg",)
        return Reading(None, {name: [state[p][name] for p in params] for name in names})

    def preconditioned(self, group: ParamGroup, block: Block) -> Tensor:
        """Return u = d / D of a block; see `ReadingAdapter`."""
        second = block.flat("square_avg")
        if group["centered"]:
            first = block.flat("grad_avg")
            second = second.addcmul(first, first, value=-1.0)
        denominator = second.sqrt().add_(group["eps"])
        return torch.div(block.flat("grad"), denominator, out=denominator)

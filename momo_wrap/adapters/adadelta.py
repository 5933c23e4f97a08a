"""Adadelta."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.adagrad import GradientAdapter
from momo_wrap.engine.blocks import Block


class AdadeltaAdapter(GradientAdapter):
    """`torch.optim.Adadelta`: D_k = sqrt(v_k + ε) / sqrt(w_{k-1} + ε).

    v_k is `square_avg` and w_k `acc_delta`, the average of squared steps. The state that is read
    already holds w_k, but with r = g² / (v_k + ε) and the decay ρ,

        w_k = ρ w_{k-1} + (1 - ρ) (w_{k-1} + ε) r ,  so  w_{k-1} + ε = (w_k + ρ ε) / (ρ + (1 - ρ) r)
    """

    columns = ("square_avg", "acc_delta")
    settings = ("rho", "eps")

    def obstacle(self, base: Optimizer) -> str | None:
        """Return a reason if ρ = 0, because w_{k-1} can't be recovered then; see `Adapter`."""
        if any(group["rho"] == 0.0 for group in base.param_groups):
            return "with rho=0 its state does not determine its step"
        return None

    def preconditioned(self, block: Block) -> Tensor:
        """Return u = d / D of a block; see `ReadingAdapter`."""
        rho, eps, grad = block.scalar("rho"), block.scalar("eps"), block.flat("grad")
        variance = block.flat("square_avg") + eps
        weights = (grad * grad).div_(variance).mul_(1.0 - rho).add_(rho)
        moves = (block.flat("acc_delta") + rho * eps).div_(weights)
        return torch.mul(moves.div_(variance).sqrt_(), grad)

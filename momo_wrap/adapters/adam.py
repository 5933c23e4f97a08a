"""Adam and AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from momo_wrap.adapters.base import ParamGroup
from momo_wrap.adapters.reading import Reading, ReadingAdapter
from momo_wrap.blocks import Block
from momo_wrap.model import Averaging, Scalar
from momo_wrap.scalars import scalar


class AdamAdapter(ReadingAdapter):
    """`torch.optim.Adam` and `AdamW`, with or without amsgrad.

    B_k is `exp_avg`, d_k = B_k / (1 - β1^k) and D_k = sqrt(v_k / (1 - β2^k)) + ε, where v_k is
    `exp_avg_sq`, with amsgrad its running maximum. k counts the steps of each parameter.
    """

    def averaging(self, group: ParamGroup) -> Averaging:
        """Return a bias-corrected average with decay β1; see `Adapter`."""
        beta1 = scalar(group["betas"][0])
        return Averaging(decay=beta1, weight=1.0 - beta1, bias_corrected=True)

    def while_advancing(self, group: ParamGroup) -> dict[str, Any]:
        """Avoid the single-tensor capturable form, which divides 0 by 0 at learning rate 0."""
        return {"foreach": True} if group["capturable"] and not group["fused"] else {}

    def read(
        self, group: ParamGroup, params: Sequence[Tensor], state: Mapping[Tensor, dict[str, Any]]
    ) -> Reading:
        """Return both moments and the bias corrections; see `ReadingAdapter`."""
        entries = [state[p] for p in params]
        second_moment = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
        steps = torch.stack([entry["step"] for entry in entries])
        correction1, correction2 = (bias_correction(beta, steps) for beta in group["betas"])
        return Reading(
            buffer=[entry["exp_avg"] for entry in entries],
            tensors={"second_moment": [entry[second_moment] for entry in entries]},
            scalars={
                "buffer_scale": correction1.reciprocal(),
                "root_scale": correction1 / correction2.sqrt(),
                "eps": correction1 * group["eps"],
            },
        )

    def preconditioned(self, group: ParamGroup, block: Block) -> Tensor:
        """Return u = B / ((1 - β1^k) D) of a block; see `ReadingAdapter`."""
        denominator = block.flat("second_moment").sqrt()
        denominator.mul_(block.scalar("root_scale")).add_(block.scalar("eps"))
        return torch.div(block.flat("buffer"), denominator, out=denominator)


def bias_correction(beta: Scalar, steps: Tensor) -> Tensor:
    """Return 1 - β^k, the sum of the weights of an exponential average after k steps.

    Args:
        beta: The decay of the average, a number or a one-element tensor.
        steps: k, of any shape.

    Returns:
        A float64 tensor of the shape of `steps`, on its device (float32 where it has no float64).
    """
    if isinstance(beta, Tensor):
        log_beta: Scalar = beta.detach().reshape(()).log()
    else:
        log_beta = math.log(beta) if beta > 0 else -math.inf
    # expm1 keeps all digits where β^k is close to 1.
    wide = steps.dtype if steps.device.type == "mps" else torch.float64
    return -torch.expm1(steps.to(wide) * log_beta)

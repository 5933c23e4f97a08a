"""The relatives of Adam: RAdam, NAdam and Adamax."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from momo_wrap.adapters.adam import (
    AdamAdapter,
    Corrections,
    bias_correction,
    root,
    weights,
    wide,
)
from momo_wrap.adapters.base import ParamGroup, State
from momo_wrap.adapters.reading import Reading
from momo_wrap.averaging import Averaging
from momo_wrap.blocks import Block
from momo_wrap.reductions import Scalar
from momo_wrap.scalars import scalar


class RAdamAdapter(AdamAdapter):
    """`torch.optim.RAdam`, coupled or decoupled.

    Buffer and direction are Adam's. While the variance of 1/sqrt(v_k) is unbounded, D_k = I; from
    then on D_k = (sqrt(v_k) + ε) / (r_k sqrt(1 - β2^k)) with the rectification r_k.

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020, arXiv
    1908.03265, algorithm 2.
    """

    advances = frozenset({torch.optim.RAdam})

    def denominator(self, group: ParamGroup, corrections: Corrections) -> tuple[Tensor, Tensor]:
        """Return the rectified denominator, or 1; see `AdamAdapter`."""
        steps, first, second = corrections.steps, corrections.first, corrections.second
        longest = 2.0 / (1.0 - scalar(group["betas"][1])) - 1.0  # ρ_∞
        length = longest - 2.0 * steps * (1.0 - second) / second  # ρ_k
        squared = (length - 4.0) * (length - 2.0) * longest
        rectification = (squared / ((longest - 4.0) * (longest - 2.0) * length)).sqrt()
        root_scale = first / (rectification * second.sqrt())
        rectified = length > 5.0
        return (
            torch.where(rectified, root_scale, 0.0),
            torch.where(rectified, root_scale * group["eps"], first),
        )


class NAdamAdapter(AdamAdapter):
    """`torch.optim.NAdam`, coupled or decoupled.

    B_k is `exp_avg` and D_k as in Adam. The momentum μ_k = β1 (1 - 0.96^(k ψ) / 2) grows towards β1
    (ψ is `momentum_decay`), and with it the two terms of the direction,

        d_k = μ_{k+1} / (1 - Π_{j≤k+1} μ_j) B_k + (1 - μ_k) / (1 - Π_{j≤k} μ_j) g_k

    The model of a group takes the coefficients of the first parameter that has taken a step.
    """

    advances = frozenset({torch.optim.NAdam})

    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return the average with the coefficients of this step; see `ReadingAdapter`."""
        beta1 = scalar(group["betas"][0])
        if not isinstance(beta1, Tensor) and beta1 == 0.0:
            return Averaging(decay=0.0, weight=1.0)  # the buffer is the gradient, and has no part
        buffer_scale: Scalar = beta1
        grad_scale: Scalar = 1.0 - beta1
        started = next((p for p in group["params"] if "mu_product" in state.get(p, {})), None)
        if started is not None:
            entry = state[started]
            scales = _nesterov_scales(group, entry["step"], entry["mu_product"])
            # The factor of the mean of the gradients, B_k / (1 - β1^k).
            buffer_scale = scales[0] * bias_correction(beta1, entry["step"])
            grad_scale = scales[1]
        return Averaging(
            decay=beta1,
            weight=1.0 - beta1,
            buffer_scale=buffer_scale,
            grad_scale=grad_scale,
            bias_corrected=True,
        )

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Return both moments and the coefficients of each parameter; see `ReadingAdapter`."""
        reading = super().read(group, params, state)
        entries = [state[p] for p in params]
        steps = torch.stack([entry["step"] for entry in entries])
        products = torch.stack([entry["mu_product"] for entry in entries])
        buffer_scale, grad_scale = _nesterov_scales(group, steps, products)
        scales = {"buffer_scale": buffer_scale, "grad_scale": grad_scale}
        return Reading(reading.buffer, reading.tensors, {**reading.scalars, **scales})

    def count_step(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> None:
        """Count the step and extend the product of the μ_j; see `ReadingAdapter`."""
        super().count_step(group, params, state)
        steps = torch.stack([state[p]["step"] for p in params])
        momenta = _nesterov_momentum(group, wide(steps))
        products = [state[p]["mu_product"] for p in params]
        torch._foreach_mul_(products, list(momenta.to(products[0].dtype).unbind()))

    def denominator(self, group: ParamGroup, corrections: Corrections) -> tuple[Tensor, Tensor]:
        """Return what makes D_k itself; see `AdamAdapter`."""
        root_scale = corrections.second.rsqrt()
        return root_scale, torch.full_like(root_scale, group["eps"])

    def preconditioned(self, group: ParamGroup, block: Block) -> Tensor:
        """Return u = d / D of a block; see `ReadingAdapter`."""
        return self.grad_avg(group, block).div_(root(block))


class AdamaxAdapter(AdamAdapter):
    """`torch.optim.Adamax`: as Adam, with D_k = `exp_inf`, the decaying maximum of |g| + ε."""

    advances = frozenset({torch.optim.Adamax})

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Return the first moment, the maximum and the bias correction; see `ReadingAdapter`."""
        entries = [state[p] for p in params]
        steps = torch.stack([entry["step"] for entry in entries])
        correction = bias_correction(group["betas"][0], steps)
        return Reading(
            buffer=[entry["exp_avg"] for entry in entries],
            tensors={"maximum": [entry["exp_inf"] for entry in entries]},
            scalars={
                "buffer_scale": correction.reciprocal(),
                "eps": group["eps"],
                **weights(group),
            },
        )

    def advanced(self, group: ParamGroup, block: Block) -> dict[str, Tensor]:
        """Return moment and maximum with the gradient in them; see `ReadingAdapter`."""
        grad = block.flat("grad")
        first = torch.lerp(block.flat("buffer"), grad, block.scalar("first_weight"))
        decayed = block.flat("maximum") * block.scalar("second_decay")
        return {
            "buffer": first,
            "maximum": torch.maximum(decayed, grad.abs() + block.scalar("eps")),
        }

    def preconditioned(self, group: ParamGroup, block: Block) -> Tensor:
        """Return u = d / D of a block; see `ReadingAdapter`."""
        return self.grad_avg(group, block).div_(block.flat("maximum"))


def _nesterov_scales(group: ParamGroup, steps: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of NAdam's buffer and gradient in its direction.

    Args:
        group: The parameter group.
        steps: k, of any shape.
        products: Π_{j≤k} μ_j, of the same shape.
    """
    counts = wide(steps)
    now, following = (_nesterov_momentum(group, count) for count in (counts, counts + 1.0))
    products = products.to(counts.dtype)
    return following / (1.0 - products * following), (1.0 - now) / (1.0 - products)


def _nesterov_momentum(group: ParamGroup, count: Tensor) -> Tensor:
    """Return NAdam's momentum μ_k after `count` steps."""
    schedule = torch.pow(0.96, count * group["momentum_decay"])
    return scalar(group["betas"][0]) * (1.0 - 0.5 * schedule)

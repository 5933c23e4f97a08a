"""The Adam family: Adam, AdamW, NAdam, RAdam and Adamax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from momo_wrap.adapters.base import ParamGroup, State
from momo_wrap.adapters.reading import Reading, ReadingAdapter
from momo_wrap.averaging import Averaging
from momo_wrap.blocks import Block, Scalar
from momo_wrap.scalars import scalar


class AdamAdapter(ReadingAdapter):
    """`torch.optim.Adam` and `AdamW`, with or without amsgrad.

    B_k is `exp_avg`, d_k = B_k / (1 - β1^k) and D_k = sqrt(v_k / (1 - β2^k)) + ε, where v_k is
    `exp_avg_sq`, with amsgrad its running maximum. k counts the steps of each parameter.

    Relatives override `denominator`: u_k = B_k / (root_scale sqrt(v_k) + offset).
    """

    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return a bias-corrected average with decay β1; see `ReadingAdapter`."""
        beta1 = scalar(group["betas"][0])
        return Averaging(decay=beta1, weight=1.0 - beta1, bias_corrected=True)

    def while_advancing(self, group: ParamGroup) -> dict[str, Any]:
        """Avoid the single-tensor capturable form, which divides 0 by 0 at learning rate 0."""
        return {"foreach": True} if group["capturable"] and not group.get("fused") else {}

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Return both moments and the bias corrections; see `ReadingAdapter`."""
        entries = [state[p] for p in params]
        second_moment = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
        steps = torch.stack([entry["step"] for entry in entries])
        corrections = _Corrections(
            steps, *(bias_correction(beta, steps) for beta in group["betas"])
        )
        root_scale, offset = self.denominator(group, corrections)
        return Reading(
            buffer=[entry["exp_avg"] for entry in entries],
            tensors={"second_moment": [entry[second_moment] for entry in entries]},
            scalars={
                "buffer_scale": corrections.first.reciprocal(),
                "root_scale": root_scale,
                "offset": offset,
            },
        )

    def denominator(self, group: ParamGroup, corrections: _Corrections) -> tuple[Tensor, Tensor]:
        """Return what makes the denominator: (1 - β1^k) D_k = root_scale sqrt(v_k) + offset.

        Args:
            group: The parameter group.
            corrections: Step counts and bias corrections, of shape [parameters].

        Returns:
            `root_scale` and `offset`, of shape [parameters].
        """
        first, second = corrections.first, corrections.second
        return first / second.sqrt(), first * group["eps"]

    def preconditioned(self, group: ParamGroup, block: Block) -> Tensor:
        """Return u of a block; see `ReadingAdapter`."""
        root = _root(block)
        return torch.div(block.flat("buffer"), root, out=root)


class RAdamAdapter(AdamAdapter):
    """`torch.optim.RAdam`, coupled or decoupled.

    Buffer and direction are Adam's. While the variance of 1/sqrt(v_k) is unbounded, D_k = I; from
    then on D_k = (sqrt(v_k) + ε) / (r_k sqrt(1 - β2^k)) with the rectification r_k.

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020, arXiv
    1908.03265, algorithm 2.
    """

    def denominator(self, group: ParamGroup, corrections: _Corrections) -> tuple[Tensor, Tensor]:
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

    def denominator(self, group: ParamGroup, corrections: _Corrections) -> tuple[Tensor, Tensor]:
        """Return what makes D_k itself; see `AdamAdapter`."""
        root_scale = corrections.second.rsqrt()
        return root_scale, torch.full_like(root_scale, group["eps"])

    def preconditioned(self, group: ParamGroup, block: Block) -> Tensor:
        """Return u = d / D of a block; see `ReadingAdapter`."""
        return self.grad_avg(group, block).div_(_root(block))


class AdamaxAdapter(AdamAdapter):
    """`torch.optim.Adamax`: as Adam, with D_k = `exp_inf`, the decaying maximum of |g| + ε."""

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Return the first moment, the maximum and the bias correction; see `ReadingAdapter`."""
        entries = [state[p] for p in params]
        steps = torch.stack([entry["step"] for entry in entries])
        return Reading(
            buffer=[entry["exp_avg"] for entry in entries],
            tensors={"maximum": [entry["exp_inf"] for entry in entries]},
            scalars={"buffer_scale": bias_correction(group["betas"][0], steps).reciprocal()},
        )

    def preconditioned(self, group: ParamGroup, block: Block) -> Tensor:
        """Return u = d / D of a block; see `ReadingAdapter`."""
        return self.grad_avg(group, block).div_(block.flat("maximum"))


@dataclass(frozen=True)
class _Corrections:
    """Step counts k and bias corrections 1 - β1^k and 1 - β2^k, each of shape [parameters]."""

    steps: Tensor
    first: Tensor
    second: Tensor


def _root(block: Block) -> Tensor:
    """Return root_scale sqrt(v) + offset of a block, a new tensor."""
    root = block.flat("second_moment").sqrt()
    return root.mul_(block.scalar("root_scale")).add_(block.scalar("offset"))


def _nesterov_scales(group: ParamGroup, steps: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of NAdam's buffer and gradient in its direction.

    Args:
        group: The parameter group.
        steps: k, of any shape.
        products: Π_{j≤k} μ_j, of the same shape.
    """
    wide = _wide(steps)

    def momentum(count: Tensor) -> Tensor:
        schedule = torch.pow(0.96, count * group["momentum_decay"])
        return scalar(group["betas"][0]) * (1.0 - 0.5 * schedule)

    now, following = momentum(wide), momentum(wide + 1.0)
    products = products.to(wide.dtype)
    return following / (1.0 - products * following), (1.0 - now) / (1.0 - products)


def _wide(steps: Tensor) -> Tensor:
    """Return step counts as float64, where the device has it."""
    return steps if steps.device.type == "mps" else steps.double()


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
    return -torch.expm1(_wide(steps) * log_beta)

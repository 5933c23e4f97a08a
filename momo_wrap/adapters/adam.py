"""Adam and AdamW, and what their relatives share with them."""

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
from momo_wrap.blocks import Block
from momo_wrap.reductions import Scalar
from momo_wrap.scalars import scalar


class AdamAdapter(ReadingAdapter):
    """`torch.optim.Adam` and `AdamW`, with or without amsgrad.

    B_k is `exp_avg`, d_k = B_k / (1 - β1^k) and D_k = sqrt(v_k / (1 - β2^k)) + ε, where v_k is
    `exp_avg_sq`, with amsgrad its running maximum. k counts the steps of each parameter.

    Relatives override `denominator`: u_k = B_k / (root_scale sqrt(v_k) + offset).
    """

    advances = frozenset({torch.optim.Adam, torch.optim.AdamW})

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
        tensors = {"second_moment": [entry["exp_avg_sq"] for entry in entries]}
        if group.get("amsgrad"):
            tensors["max_second_moment"] = [entry["max_exp_avg_sq"] for entry in entries]
        steps = torch.stack([entry["step"] for entry in entries])
        corrections = Corrections(steps, *(bias_correction(beta, steps) for beta in group["betas"]))
        root_scale, offset = self.denominator(group, corrections)
        return Reading(
            buffer=[entry["exp_avg"] for entry in entries],
            tensors=tensors,
            scalars={
                "buffer_scale": corrections.first.reciprocal(),
                "root_scale": root_scale,
                "offset": offset,
                **weights(group),
            },
        )

    def is_ready(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> bool:
        """Return whether there is a state, that of amsgrad included; see `ReadingAdapter`."""
        wanted = "max_exp_avg_sq" if group.get("amsgrad") else "step"
        return all(wanted in state.get(param, {}) for param in params)

    def count_step(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> None:
        """Count the step for each parameter; see `ReadingAdapter`."""
        steps = [state[p]["step"] for p in params]
        on_host = steps[0].device.type == "cpu" and not torch.compiler.is_dynamo_compiling()
        # On the CPU a number would become a tensor for each parameter anew.
        torch._foreach_add_(steps, torch.ones((), device="cpu") if on_host else 1.0)

    def advanced(self, group: ParamGroup, block: Block) -> dict[str, Tensor]:
        """Return both moments with the gradient in them; see `ReadingAdapter`."""
        grad = block.flat("grad")
        first = torch.lerp(block.flat("buffer"), grad, block.scalar("first_weight"))
        decayed = block.flat("second_moment") * block.scalar("second_decay")
        second = torch.addcmul(decayed, grad * block.scalar("second_weight"), grad)
        if "max_second_moment" not in block.pieces:
            return {"buffer": first, "second_moment": second}
        largest = torch.maximum(block.flat("max_second_moment"), second)
        return {"buffer": first, "second_moment": second, "max_second_moment": largest}

    def denominator(self, group: ParamGroup, corrections: Corrections) -> tuple[Tensor, Tensor]:
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
        denominator = root(block)
        return torch.div(block.flat("buffer"), denominator, out=denominator)


@dataclass(frozen=True)
class Corrections:
    """Step counts k and bias corrections 1 - β1^k and 1 - β2^k, each of shape [parameters]."""

    steps: Tensor
    first: Tensor
    second: Tensor


def weights(group: ParamGroup) -> dict[str, Scalar]:
    """Return the weights with which gradients enter the two moments."""
    beta1, beta2 = (scalar(beta) for beta in group["betas"])
    return {"first_weight": 1.0 - beta1, "second_decay": beta2, "second_weight": 1.0 - beta2}


def root(block: Block) -> Tensor:
    """Return root_scale sqrt(v) + offset of a block, a new tensor."""
    amsgrad = "max_second_moment" in block.pieces
    root = block.flat("max_second_moment" if amsgrad else "second_moment").sqrt()
    return root.mul_(block.scalar("root_scale")).add_(block.scalar("offset"))


def wide(steps: Tensor) -> Tensor:
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
    return -torch.expm1(wide(steps) * log_beta)

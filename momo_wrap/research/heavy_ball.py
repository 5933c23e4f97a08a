"""Heavy-ball momentum as an average of iterates, for rules that scale only the newest gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.checks.losses import evaluated


class HeavyBall(Optimizer):
    """SGD or Adam-like steps of z, and parameters x that follow as a running average of it.

        z <- z - α D^{-1} g ,    x <- β x + (1 - β) z        (g is taken at x)

    which, written without z, is heavy-ball momentum:

        x_{k+1} = x_k - (1 - β) α_k D_k^{-1} g_k + β (x_k - x_{k-1})

    In this form old moves do not depend on the current α: the wrapper, for which z is the anchor of
    the model (equations (19) and (20) of docs/algorithm.md), scales only the newest gradient. In
    `torch.optim.SGD` it scales the full buffer. With the rules

        MoMo()     IAMS, with `beta2` IAMS-Adam: λ = β/(1 - β); Gower et al., arXiv 2504.01898
        NGN()      NGN-M, with `beta2` NGN-MDv1; arXiv 2508.15071; c = α
        SPSMax(c)  MomSPS_max; Oikonomou and Loizou, arXiv 2406.04142; γ_b = α

    it takes the steps of these methods. Wrapped with `MoMo(-math.inf)`, or unwrapped, it is SGD
    with `momentum=β`, `dampening=β` and a first gradient with the same weight as all others.

    Args:
        params: Parameters or parameter groups.
        lr: α, at least 0.
        momentum: β, in [0, 1).
        beta2: The decay of the squared gradients in D = sqrt(v_k/(1 - β2^k)) + ε, as in Adam, in
            [0, 1); None: D = I.
        eps: ε, at least 0.
        weight_decay: λ, at least 0; λ x is added to the direction of z, as in AdamW.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
        beta2: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
            if not value >= 0.0:
                raise ValueError(
                    f"HeavyBall got {name}={value}, expected at least 0. Write "
                    "HeavyBall(params, lr=1.0, eps=1e-8, weight_decay=0.0)."
                )
        for name, decay in {"momentum": momentum, "beta2": 0.0 if beta2 is None else beta2}.items():
            if not 0.0 <= decay < 1.0:
                raise ValueError(
                    f"HeavyBall got {name}={decay}, expected at least 0 and below 1. Write "
                    "HeavyBall(params, momentum=0.9, beta2=0.999)."
                )
        given = {"lr": lr, "momentum": momentum, "beta2": beta2, "eps": eps}
        super().__init__(params, {**given, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Reevaluates the model and returns the loss.

        Returns:
            What the closure returned; None without one.
        """
        loss = evaluated(closure)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    state = self.state[param]
                    if not state:
                        state["z"] = param.clone()
                    direction = _preconditioned(param.grad, state, group)
                    if group["weight_decay"] != 0.0:
                        direction = direction + group["weight_decay"] * param
                    state["z"].sub_(direction, alpha=group["lr"])
                    param.lerp_(state["z"], 1.0 - group["momentum"])
        return loss


def _preconditioned(grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Return D^{-1} g of a parameter, and update its state."""
    beta2 = group["beta2"]
    if beta2 is None:
        return grad
    if "step" not in state:
        state["step"], state["exp_avg_sq"] = 0, torch.zeros_like(grad.abs())
    state["step"] += 1
    squares = state["exp_avg_sq"]
    squares.mul_(beta2).add_(grad.abs().square(), alpha=1.0 - beta2)
    scale: Tensor = (squares / (1.0 - beta2 ** state["step"])).sqrt() + group["eps"]
    return grad / scale

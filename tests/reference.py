"""MoMo in NumPy float64, written from the paper's form of the model.

It keeps γ_k, the average of ⟨g_j, x_j⟩, and takes ⟨d_k, x_k⟩ anew in each step, where the library
keeps track of displacements (equation (1)). It shares no code with the library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class SGDBase:
    """SGD with momentum: B, d and D of one parameter group, as one vector."""

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    step: int = 0

    def weights(self) -> tuple[float, float, float, float]:
        """(a, b, p, q) of the coming step."""
        b = 1.0 if self.step == 1 or self.momentum == 0 else 1.0 - self.dampening
        return self.momentum, b, self.momentum if self.nesterov else 1.0, float(self.nesterov)

    def preconditioner(self, gradient: Array) -> Array:
        """D of the coming step."""
        return np.ones_like(gradient)


@dataclass
class AdamBase:
    """Adam: B, d and D of one parameter group, as one vector."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    amsgrad: bool = False
    step: int = 0
    second_moment: Array | float = 0.0
    largest: Array | float = 0.0

    def weights(self) -> tuple[float, float, float, float]:
        """(a, b, p, q) of the coming step."""
        return self.beta1, 1 - self.beta1, 1 / (1 - self.beta1**self.step), 0.0

    def preconditioner(self, gradient: Array) -> Array:
        """D of the coming step."""
        self.second_moment = self.beta2 * self.second_moment + (1 - self.beta2) * gradient**2
        self.largest = np.maximum(self.largest, self.second_moment)
        used = self.largest if self.amsgrad else self.second_moment
        return np.asarray(np.sqrt(used / (1 - self.beta2**self.step)) + self.eps)


@dataclass
class ReferenceGroup:
    """A parameter group as one vector."""

    x: Array
    lr: float
    weight_decay: float
    base: SGDBase | AdamBase
    buffer: Array | float = 0.0


@dataclass
class ReferenceMoMo:
    """MoMo over several groups, for a loss that is minimised.

    Args:
        groups: The groups; their bases average alike.
        lower_bound: f*, or f*_0 if it is estimated.
        estimate_bound: MoMo*, equations (6) and (7).
        form: Of weight decay: "decoupled" as AdamW has it, "scaled" as a part of the step that is
            cut, "coupled" as a term λ ‖x‖²/2 of the loss, else "proximal".
    """

    groups: Sequence[ReferenceGroup]
    lower_bound: float = 0.0
    estimate_bound: bool = False
    form: str = "proximal"
    bound: float = field(init=False)
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    gamma_sum: float = 0.0
    theta: float = math.nan
    aimed_at: float = math.nan

    def __post_init__(self) -> None:
        self.bound = self.lower_bound

    def step(self, loss: float, gradients: Sequence[Array]) -> None:
        """Take a step from the loss and the gradient of each group."""
        for group in self.groups:
            group.base.step += 1
        a, b, p, q = self.groups[0].base.weights()
        decays = [0.0 if self.form == "coupled" else group.weight_decay for group in self.groups]
        if self.form == "coupled":
            loss += sum(group.weight_decay / 2 * float(group.x @ group.x) for group in self.groups)
            pairs = zip(gradients, self.groups, strict=True)
            gradients = [g + group.weight_decay * group.x for g, group in pairs]
        at_params = sum(float(g @ group.x) for g, group in zip(gradients, self.groups, strict=True))
        self.loss_sum = a * self.loss_sum + b * loss
        self.weight_sum = a * self.weight_sum + b
        self.gamma_sum = a * self.gamma_sum + b * at_params
        f_bar, rho = p * self.loss_sum + q * loss, p * self.weight_sum + q
        gamma = p * self.gamma_sum + q * at_params

        ds, us = [], []
        for g, group in zip(gradients, self.groups, strict=True):
            group.buffer = a * group.buffer + b * g
            d = p * group.buffer + q * g
            u = d / group.base.preconditioner(g)
            ds.append(d)
            us.append(u + group.weight_decay * group.x if self.form == "scaled" else u)

        cs = [1 / (1 + group.lr * its) for group, its in zip(self.groups, decays, strict=True)]
        if self.form == "scaled":
            cs = [1.0] * len(cs)
        h = f_bar - gamma
        decrease = slope = dot = 0.0
        for c, d, u, group in zip(cs, ds, us, self.groups, strict=True):
            h += c * float(d @ group.x)
            dot += float(d @ group.x)
            decrease += c * group.lr * float(d @ u)
            slope += group.lr * float(d @ u)

        if self.estimate_bound and h < rho * self.bound:  # (6)
            self.bound = max(h / (2 * rho), self.lower_bound)
        self.aimed_at = self.bound
        self.theta = min(max((h - rho * self.bound) / decrease, 0.0), 1.0)  # (3)
        if self.estimate_bound:  # (7)
            estimate = (f_bar + dot - gamma - self.theta * slope / 2) / rho
            self.bound = max(estimate, self.lower_bound)

        for c, u, group in zip(cs, us, self.groups, strict=True):
            move = self.theta * group.lr * u
            if self.form == "decoupled":
                group.x = (1 - group.lr * group.weight_decay) * group.x - move
            else:
                group.x = c * (group.x - move)  # (4)


@dataclass
class ReferenceBlock(ReferenceGroup):
    """A parameter group with an average of its own."""

    loss_sum: float = 0.0
    weight_sum: float = 0.0
    gamma_sum: float = 0.0

    def linearise(self, loss: float, g: Array) -> tuple[float, float, Array]:
        """Take in a loss and a gradient.

        Returns:
            The mean of the losses, the mean of the linear terms at the present x, and the mean of
            the gradients, all with the block's weights divided by their sum.
        """
        self.base.step += 1
        a, b, p, q = self.base.weights()
        dot = float(g @ self.x)
        self.loss_sum = a * self.loss_sum + b * loss
        self.weight_sum = a * self.weight_sum + b
        self.gamma_sum = a * self.gamma_sum + b * dot
        self.buffer = a * self.buffer + b * g
        rho = p * self.weight_sum + q
        d = p * self.buffer + q * g
        linear = float(d @ self.x) - p * self.gamma_sum - q * dot
        self.scale = rho
        return (p * self.loss_sum + q * loss) / rho, linear / rho, d / rho


@dataclass
class ReferenceJointMoMo:
    """MoMo over blocks that average differently, with proximal weight decay.

    The model is Σ_i ω_i f̄_i/ρ_i + Σ_i (e_i + ⟨d_i, x_i - x_{k,i}⟩)/ρ_i, where ω_i is the block's
    share of the decrease that its own step predicts.
    """

    blocks: Sequence[ReferenceBlock]
    lower_bound: float = 0.0
    theta: float = math.nan
    value: float = math.nan

    def step(self, loss: float, gradients: Sequence[Array]) -> None:
        """Take a step from the loss and the gradient of each block."""
        losses, linears, decreases, shifts, moves = [], [], [], [], []
        for g, block in zip(gradients, self.blocks, strict=True):
            mean_loss, linear, slope = block.linearise(loss, g)
            c = 1 / (1 + block.lr * block.weight_decay)
            u = slope * block.scale / block.base.preconditioner(g)
            losses.append(mean_loss)
            linears.append(linear)
            decreases.append(c * block.lr * float(slope @ u))
            shifts.append((c - 1) * float(slope @ block.x))
            moves.append((c, block.lr * u))
        shares = [decrease / sum(decreases) for decrease in decreases]
        mean_loss = sum(w * f for w, f in zip(shares, losses, strict=True))
        self.value = mean_loss + sum(linears) + sum(shifts)
        self.theta = min(max((self.value - self.lower_bound) / sum(decreases), 0.0), 1.0)
        for block, (c, move) in zip(self.blocks, moves, strict=True):
            block.x = c * (block.x - self.theta * move)

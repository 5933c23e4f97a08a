"""The momentum model of the loss: averages of losses and of displacements.

The base optimizer averages gradients as B_k = a B_{k-1} + b g_k and moves along a preconditioned
d_k = p B_k + q g_k. The same weights, applied to the losses, give a model of the loss around the
current parameters x_k (Schaipp, Ohana, Eickenberg, Defazio and Gower, "MoMo: Momentum Models for
Adaptive Learning Rates", ICML 2024, arXiv 2305.07583, section 2):

    F_k = a F_{k-1} + b f_k            R_k = a R_{k-1} + b
    E_k = a (E_{k-1} + ⟨B_{k-1}, x_k - x_{k-1}⟩)                                          (1)

    m(x) = (p F_k + q f_k + p E_k + ⟨d_k, x - x_k⟩) / ρ,    ρ = p R_k + q                 (2)

The paper stores ⟨g_j, x_j⟩ where (1) stores how far the parameters have moved since, which needs
no pass over the parameters and no difference of two large numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = float | Tensor


@dataclass(frozen=True)
class Averaging:
    """How a base optimizer averages gradients: B_k = a B_{k-1} + b g_k, d_k = p B_k + q g_k.

    Each value is a Python number or a 0-dim tensor.

    Attributes:
        decay: a, the weight of the old buffer.
        weight: b, the weight of the new gradient.
        first_weight: b at the very first step, where it differs (SGD starts its buffer with the
            whole gradient); None: the same as `weight`.
        buffer_scale: p, the buffer's factor in the direction.
        grad_scale: q, the gradient's factor in the direction (Nesterov momentum).
        bias_corrected: p is 1 / R_k, so that the direction is a weighted mean of gradients, as in
            Adam. `buffer_scale` and `grad_scale` then keep their defaults.

    Raises:
        ValueError: `buffer_scale` is 0, or `bias_corrected` comes with a factor of its own.
    """

    decay: Scalar
    weight: Scalar
    first_weight: Scalar | None = None
    buffer_scale: Scalar = 1.0
    grad_scale: Scalar = 0.0
    bias_corrected: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.buffer_scale, Tensor) and self.buffer_scale == 0:
            raise ValueError(
                "Averaging has buffer_scale=0, so the buffer would not count. For a direction that "
                "is the gradient itself, write Averaging(decay=0.0, weight=1.0)."
            )
        if self.bias_corrected and not (self.buffer_scale == 1.0 and self.grad_scale == 0.0):
            raise ValueError(
                "Averaging(bias_corrected=True) sets buffer_scale to 1/R_k and has no gradient "
                f"term, but got buffer_scale={self.buffer_scale} and grad_scale={self.grad_scale}. "
                "Leave both out, or give buffer_scale explicitly with bias_corrected=False."
            )

    @property
    def uses_gradient(self) -> bool:
        """Whether the direction has a term in the gradient itself (q is not the number 0)."""
        return isinstance(self.grad_scale, Tensor) or self.grad_scale != 0.0

    def differs_from(self, other: Averaging, *, tensors: bool = False) -> bool:
        """Whether the two are known to differ.

        Args:
            other: The averaging of another parameter group.
            tensors: Also compare values that are tensors, which visits the host.

        Returns:
            True if a field that could be compared has different values.
        """
        pairs = [(getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__]
        return any(
            mine != theirs
            for mine, theirs in pairs
            if tensors or not (isinstance(mine, Tensor) or isinstance(theirs, Tensor))
        )


@dataclass(frozen=True)
class MomentumModel:
    """The model (2) at the current parameters, and what (1) keeps for the next step.

    Attributes:
        loss_sum: F_k, 0-dim, as all the others.
        weight_sum: R_k.
        displacement: E_k.
        buffer_scale: p at this step.
        normaliser: ρ.
        value: m(x_k), the loss that the model has at the current parameters.
    """

    loss_sum: Tensor
    weight_sum: Tensor
    displacement: Tensor
    buffer_scale: Scalar
    normaliser: Tensor
    value: Tensor

    @classmethod
    def initial_scalars(cls) -> dict[str, float]:
        """Return the scalars that are kept between steps, as they are before the first."""
        return {"loss_sum": 0.0, "weight_sum": 0.0, "displacement": 0.0}

    @classmethod
    def of(cls, scalars: Mapping[str, Tensor], averaging: Averaging, loss: Tensor) -> MomentumModel:
        """Take in the loss of this step, equations (1) and (2).

        Args:
            scalars: The values kept since the last step, by the names of `initial_scalars`.
            averaging: The base optimizer's averaging at this step.
            loss: The loss at the current parameters, 0-dim.

        Returns:
            The model. Nothing is changed.
        """
        a, b, q = averaging.decay, averaging.weight, averaging.grad_scale
        if averaging.first_weight is not None:
            one = torch.ones_like(loss)  # two Python numbers would meet in float32
            b = torch.where(scalars["weight_sum"] == 0, averaging.first_weight * one, b * one)
        loss_sum = a * scalars["loss_sum"] + b * loss  # F_k
        weight_sum = a * scalars["weight_sum"] + b  # R_k
        displacement = a * scalars["displacement"]  # E_k
        p = weight_sum.reciprocal() if averaging.bias_corrected else averaging.buffer_scale
        normaliser = p * weight_sum + q
        value = (p * (loss_sum + displacement) + q * loss) / normaliser
        return cls(loss_sum, weight_sum, displacement, p, normaliser, value)

    def scalars_after(self, buffer_move: Tensor) -> dict[str, Tensor]:
        """Return what is kept for the next step, once the parameters have moved.

        Args:
            buffer_move: ⟨p B_k, x_{k+1} - x_k⟩, 0-dim, equation (5) times p.

        Returns:
            The values by the names of `initial_scalars`. The displacement already holds the move:
            the next step has only to multiply it by a.
        """
        # A product that overflowed must not turn into NaN in later steps.
        limit = torch.finfo(self.displacement.dtype).max / 1e6
        displacement = self.displacement + buffer_move / self.buffer_scale
        return {
            "loss_sum": self.loss_sum,
            "weight_sum": self.weight_sum,
            "displacement": displacement.clamp(-limit, limit),
        }

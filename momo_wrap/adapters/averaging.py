"""How a base optimizer averages gradients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from momo_wrap.engine.scalars import Scalar


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
        bias_corrected: p is `buffer_scale` / R_k with R_k the sum of the weights in the buffer, so
            that the direction is made of a weighted mean of gradients, as in Adam.

    Raises:
        ValueError: `buffer_scale` is 0.
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

    @property
    def uses_gradient(self) -> bool:
        """Whether the direction has a term in the gradient itself (q is not the number 0)."""
        return isinstance(self.grad_scale, Tensor) or self.grad_scale != 0.0

    @property
    def is_gradient(self) -> bool:
        """Whether the buffer is the gradient itself (a is the number 0 and b the number 1)."""
        coefficients = (self.decay, self.weight)
        return not any(isinstance(c, Tensor) for c in coefficients) and coefficients == (0.0, 1.0)

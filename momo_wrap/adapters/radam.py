"""RAdam."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from momo_wrap.adapters.adam import AdamAdapter, corrections, wide
from momo_wrap.engine.scalars import Scalar


class RAdamAdapter(AdamAdapter):
    """`torch.optim.RAdam`, coupled or decoupled.

    Buffer and direction are Adam's. While the variance of 1/sqrt(v_k) is unbounded, D_k = I; from
    then on D_k = (sqrt(v_k) + ε) / (r_k sqrt(1 - β2^k)) with the rectification r_k.

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020, arXiv
    1908.03265, algorithm 2.
    """

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return p and the rectified denominator, or 1; see `AdamAdapter`."""
        first, second = corrections(read)
        longest = 2.0 / (1.0 - read["beta2"]) - 1.0  # ρ_∞
        length = longest - 2.0 * wide(read["step"]) * (1.0 - second) / second  # ρ_k
        if not isinstance(length, torch.Tensor):  # the root of a number could be complex
            length = torch.tensor(length, dtype=torch.float64, device="cpu")
        squared = (length - 4.0) * (length - 2.0) * longest
        squared = squared / (length * ((longest - 4.0) * (longest - 2.0)))
        root_scale = first / (squared**0.5 * second**0.5)
        rectified = length > 5.0
        return {
            "buffer_scale": 1.0 / first,
            "root_scale": torch.where(rectified, root_scale, 0.0),
            "offset": torch.where(rectified, root_scale * read["eps"], first),
        }

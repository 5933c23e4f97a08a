"""NAdam."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from momo_wrap.adapters.adam import AdamAdapter, bias_correction, corrections, root, wide
from momo_wrap.adapters.base import ParamGroup, State
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.scalars import Scalar, as_number
from momo_wrap.model import Averaging


class NAdamAdapter(AdamAdapter):
    """`torch.optim.NAdam`, coupled or decoupled.

    B_k is `exp_avg` and D_k as in Adam. The momentum μ_k = β1 (1 - 0.96^(k ψ) / 2) grows towards β1
    (ψ is `momentum_decay`), and with it the two terms of the direction,

        d_k = μ_{k+1} / (1 - Π_{j≤k+1} μ_j) B_k + (1 - μ_k) / (1 - Π_{j≤k} μ_j) g_k

    The model of a group uses the coefficients of the first parameter that has taken a step.
    """

    counts = ("step", "mu_product")
    settings = ("eps", "momentum_decay")

    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return the average with the coefficients of this step; see `ReadingAdapter`."""
        beta1 = as_number(group["betas"][0])
        if not isinstance(beta1, Tensor) and beta1 == 0.0:
            return Averaging(decay=0.0, weight=1.0)  # the buffer is the gradient, and is not used
        scales: tuple[Scalar, Scalar] = (beta1, 1.0 - beta1)
        started = next((p for p in group["params"] if "mu_product" in state.get(p, {})), None)
        if started is not None:
            entry = state[started]
            read = {"step": entry["step"], "mu_product": entry["mu_product"], "beta1": beta1}
            first, second = _nesterov_scales({**read, "momentum_decay": group["momentum_decay"]})
            # The factor of the mean of the gradients, B_k / (1 - β1^k).
            scales = first * bias_correction(beta1, entry["step"]), second
        return Averaging(
            beta1, 1.0 - beta1, buffer_scale=scales[0], grad_scale=scales[1], bias_corrected=True
        )

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return p and q of each parameter, and the scalars for D_k; see `AdamAdapter`."""
        _, second = corrections(read)
        buffer_scale, grad_scale = _nesterov_scales(read)
        return {
            "buffer_scale": buffer_scale,
            "grad_scale": grad_scale,
            "root_scale": second**-0.5,
            "offset": read["eps"],
        }

    def preconditioned(self, block: Block) -> Tensor:
        """Return u = d / D of a block; see `ReadingAdapter`."""
        return self.grad_avg(block).div_(root(block))


def nesterov_momentum(read: Mapping[str, Scalar], count: Scalar) -> Scalar:
    """Return NAdam's momentum μ_k after `count` steps."""
    schedule = 0.96 ** (count * read["momentum_decay"])
    return read["beta1"] * (1.0 - 0.5 * schedule)


def _nesterov_scales(read: Mapping[str, Scalar]) -> tuple[Scalar, Scalar]:
    """Return the factors of NAdam's buffer and gradient in its direction."""
    counts = wide(read["step"])
    now, following = (nesterov_momentum(read, count) for count in (counts, counts + 1.0))
    products = wide(read["mu_product"])
    return following / (1.0 - products * following), (1.0 - now) / (1.0 - products)

"""Lion of several packages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import ParamGroup, State, maximizes
from momo_wrap.adapters.planned_step import Reading
from momo_wrap.adapters.reading import ReadingAdapter
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.scalars import as_number
from momo_wrap.model import Averaging

# Options of some packages that change the direction.
_VARIANTS = ("caution", "cautious", "use_gc", "adanorm")
# Options that change the strength of the weight decay, if there is any.
_DECAYS = ("corrected_weight_decay", "fixed_decay", "decoupled_wd")


class LionAdapter(ReadingAdapter):
    """Lion of lion-pytorch, timm and pytorch-optimizer: u_k = sign(d_k), so `D_k = |d_k|`.

    B_k is `exp_avg` with decay β2. The direction is d_k = β1 B_{k-1} + (1 - β1) g_k, which in terms
    of the stored B_k = β2 B_{k-1} + (1 - β2) g_k has p = β1/β2 and q = (1 - β1) - β1 (1 - β2)/β2.
    If the base stores B_k in low precision, elements of d_k that are 0 up to rounding can get
    another sign than in the base.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023, arXiv
    2302.06675, algorithm 2.
    """

    def obstacle(self, base: Optimizer) -> str | None:
        """Return a reason if an option makes the base another optimizer; see `Adapter`."""
        for group in base.param_groups:
            changed = [name for name in _VARIANTS if group.get(name)]
            if group.get("weight_decay") and not group.get("weight_decouple", True):
                return "with weight_decouple=False it adds its decay to `.grad` in place"
            if group.get("weight_decay"):
                changed += [n for n in _DECAYS if group.get(n) or getattr(base, n, False)]
            if maximizes(base, group) and "maximize" not in group:
                changed.append("maximize")  # it negates `.grad` in place
            if changed:
                return f"with {changed[0]}=True its step is not plain Lion's"
            if any(param.is_complex() for param in group["params"]):
                return "packages differ in the sign of complex numbers"
            if group["betas"][1] == 0:
                return "with betas[1]=0 its state does not determine its direction"
        return None

    def couples_weight_decay(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return False; see `obstacle` and `ReadingAdapter`."""
        return False

    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return the coefficients above; see `ReadingAdapter`."""
        beta1, beta2 = (as_number(beta) for beta in group["betas"])
        if not isinstance(beta1, Tensor) and beta1 == 0.0:
            return Averaging(decay=0.0, weight=1.0)
        return Averaging(
            decay=beta2,
            weight=1.0 - beta2,
            buffer_scale=beta1 / beta2,
            grad_scale=(1.0 - beta1) - beta1 * (1.0 - beta2) / beta2,
        )

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Return the momentum buffers; see `ReadingAdapter`."""
        if isinstance(group["betas"][0], Tensor) or group["betas"][0] != 0.0:
            return Reading([state[p]["exp_avg"] for p in params])
        return Reading(None)

    def preconditioned(self, block: Block) -> Tensor:
        """Return u = sign(d) of a block; see `ReadingAdapter`."""
        return torch.sign(self.grad_avg(block))

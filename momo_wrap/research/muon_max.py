"""MuonMax: steepest descent in a norm that is spectral over matrices and Adam's over the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters import ParamGroup
from momo_wrap.checks.losses import evaluated


class MuonMax(Optimizer):
    """A base optimizer: steepest descent in the norm of MuonMax, with momentum.

        m <- β1 m + (1 - β1) g ,    v <- β2 v + (1 - β2) g² ,    from the first gradient on
        matrices:  M = U S Vᵀ ,    x <- x - α s Σ_j tr(s S_j) U Vᵀ
        the rest:  x <- x - α m / (√v + ε)

    where the sum is over all matrices of all groups. The full step lowers the linear model by α
    times the square of the dual norm, `‖m‖*² = (s Σ_j tr S_j)² + Σ m²/(√v + ε)`. So `MoMoWrapper`
    takes steps of the size `min(α, (F̄ + ⟨m, x⟩ - f*)/‖m‖*²)` with it: this is MuonMax-Momo, with F̄
    the average of f - ⟨g, x⟩. If that is negative, because the model is below the bound, MoMo does
    not move, but the formula steps backwards.

    Singular values are exact, by `torch.linalg.svd`, which is slow for large matrices.

    Source: Crawshaw, Modi, Liu and Gower, "An Exploration of Non-Euclidean Gradient Descent: Muon
    and its Many Variants", arXiv 2510.09827. The paper approximates the singular vectors, and
    decays the weights by the full α λ; here there is no weight decay.

    Args:
        params: Parameters or parameter groups. A group with `matrices=False`, such as embeddings
            and the last layer, belongs to the rest for any shape of its parameters.
        lr: α, the learning rate, at least 0.
        betas: β1 and β2, in [0, 1).
        scale: s; steps of matrices are s² times as long as those of the rest.
        eps: ε, above 0.
        matrices: Whether parameters with two dimensions are matrices.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        scale: float = 1.0,
        eps: float = 1e-8,
        *,
        matrices: bool = True,
    ) -> None:
        if not (lr >= 0.0 and scale > 0.0 and eps > 0.0 and all(0.0 <= b < 1.0 for b in betas)):
            raise ValueError(
                f"MuonMax got lr={lr}, betas={betas}, scale={scale}, eps={eps}, expected an lr of "
                "at least 0, betas of at least 0 and below 1, scale and eps above 0. Write "
                "MuonMax(params, lr=1e-3, betas=(0.95, 0.95))."
            )
        defaults = {"lr": lr, "betas": betas, "scale": scale, "eps": eps, "matrices": matrices}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Reevaluates the model and returns the loss.

        Returns:
            What the closure returned; None without one.
        """
        loss = evaluated(closure)
        moving = [
            (group, p) for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        polars, total = {}, torch.zeros(())
        for group, p in moving:
            self._take_in(group, p)
            if group["matrices"] and p.dim() == 2:
                average = self.state[p]["momentum_buffer"]
                wide = average.to(torch.promote_types(average.dtype, torch.float32))
                u, values, vh = torch.linalg.svd(wide, full_matrices=False)
                polars[p] = u @ vh
                total = total.to(values) + group["scale"] * values.sum()
        for group, p in moving:
            if p in polars:
                polar = polars[p]
                p.sub_((group["lr"] * group["scale"] * total.to(polar) * polar).to(p))
            else:
                state = self.state[p]
                denominator = state["square"].sqrt().add_(group["eps"])
                p.addcdiv_(state["momentum_buffer"], denominator, value=-float(group["lr"]))
        return loss

    def _take_in(self, group: ParamGroup, param: Tensor) -> None:
        """Update the averages with a gradient."""
        state, grad = self.state[param], param.grad
        assert grad is not None
        beta1, beta2 = group["betas"]
        if not state:
            state["momentum_buffer"], state["square"] = grad.clone(), grad.square()
            return
        state["momentum_buffer"].lerp_(grad, 1.0 - beta1)
        state["square"].lerp_(grad.square(), 1.0 - beta2)

"""An engine that lets a fused base take the step with the expected θ."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.distributed import local
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.chunks import lie_alike
from momo_wrap.engine.passes import Engine, Formula, Product, inner_products
from momo_wrap.fast.replacing import has_own_step, is_plain


class SteppingEngine(Engine):
    """Lets the base take the step with the expected θ, and sums up afterwards."""

    foresees = True
    bounds_moves = True

    def lrs_ahead(self, base: Optimizer) -> list[float] | None:
        """Return learning rates times θ°, if the step can be undone; see `Engine`."""
        foreseen, groups = self.foreseen, base.param_groups
        lrs = [group["lr"] for group in groups]
        if foreseen is None or foreseen.reach is None or not is_plain(base):
            return None
        if not all(isinstance(lr, float | int) for lr in lrs) or not has_own_step(type(base)):
            return None
        thetas = foreseen.theta.expand(len(groups)).tolist()
        ahead = [lr * theta for lr, theta in zip(lrs, thetas, strict=True)]
        # With another memory layout, torch's fused kernel is wrong.
        pairs = zip(self.plan.params, self.plan.grads, strict=True)
        if not all(grad is None or lie_alike([local(param), grad]) for param, grad in pairs):
            return None
        # Undoing the step divides by the factor of weight decay.
        decays = zip(ahead, [group["weight_decay"] for group in groups], strict=True)
        self.has_stepped = all(lr >= 0 and lr * decay <= 0.5 for lr, decay in decays)
        return ahead if self.has_stepped else None

    def sum_up(
        self, formula: Formula, blocks: Sequence[Block], products: Sequence[Product], room: int
    ) -> list[Tensor]:
        """Return inner products, with the parameters from before the step; see `Engine`."""
        if not self.has_stepped:
            return super().sum_up(formula, blocks, products, room)
        found = []
        for block in blocks:
            direction, before = formula.preconditioned(block), block
            if block.ahead is not None and any("param" in product for product in products):
                x = block.ahead.put_back(block.flat("param").clone(), direction)
                before = block.replaced({"param": x})
            found.append(inner_products(before, direction, products))
            block.forget()
        return found

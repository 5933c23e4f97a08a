"""The state updates of SGD and the Adam family, for passes that replace `base.step()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.adam import AdamAdapter, wide
from momo_wrap.adapters.adamax import AdamaxAdapter
from momo_wrap.adapters.base import ParamGroup
from momo_wrap.adapters.nadam import NAdamAdapter, nesterov_momentum
from momo_wrap.adapters.radam import RAdamAdapter
from momo_wrap.adapters.sgd import SGDAdapter
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.scalars import Scalar

# A parameter group, and the entries of the base's state of some of its parameters.
Entries: TypeAlias = tuple[ParamGroup, Sequence[Mapping[str, Any]]]
_TENSOR, _is_cpu = {Tensor}, attrgetter("is_cpu")
# A number would become a tensor for each parameter anew.
_ONE = torch.ones((), device="cpu")


class Update:
    """SGD's update of its momentum buffer, B <- a B + b g; the base class of the others.

    Attributes:
        pays_uncompiled: Whether it is faster than the base's also uncompiled.
        bounds_moves: Whether the learning rate bounds the base's moves for gradients of any size:
            those of Adam by α (1 - β1)/sqrt(1 - β2).
        direction: The scalars of u, if it is p B or B / (root_scale sqrt(v) + offset), for the
            kernel that corrects moves; () if it is not.
    """

    pays_uncompiled = False
    bounds_moves = False
    direction: Sequence[str] = ("buffer_scale",)

    def is_ready(self, group: ParamGroup, entries: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether the optimizer state of some parameters of a group exists."""
        buffers = (entry.get("momentum_buffer") for entry in entries)
        return group["momentum"] == 0 or all(buffer is not None for buffer in buffers)

    def count(self, cells: Sequence[Entries]) -> None:
        """Update the base's values per parameter, such as step counts, in place.

        Each cell has the parameters with a gradient of one group, device and dtype.
        """

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return the values that `updated` needs, from the argument of `ReadingAdapter.scalars`."""
        return {"decay": read["decay"], "weight": read["weight"]}

    def updated(self, block: Block) -> dict[str, Tensor]:
        """Return the changed columns, updated with the gradients of the block."""
        if block.number("decay") == 0.0:
            return {}
        decayed = block.flat("buffer") * block.scalar("decay")
        return {"buffer": decayed + block.flat("grad") * block.scalar("weight")}


class AdamUpdate(Update):
    """The update of both moments, with or without amsgrad, and of the step counts."""

    pays_uncompiled = True
    bounds_moves = True
    direction: Sequence[str] = ("root_scale", "offset")

    def is_ready(self, group: ParamGroup, entries: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether the state exists, including that of amsgrad, with usual step counts."""
        if group.get("amsgrad") and not all("max_exp_avg_sq" in entry for entry in entries):
            return False
        # Torch would have made them such; others are in files.
        steps: list[Any] = [entry.get("step") for entry in entries]
        return set(map(type, steps)) == _TENSOR and all(map(Tensor.is_floating_point, steps))

    def count(self, cells: Sequence[Entries]) -> None:
        """Count the step for each parameter."""
        steps = [entry["step"] for _, entries in cells for entry in entries]
        if all(map(_is_cpu, steps)):
            torch._foreach_add_(steps, _ONE, alpha=1.0)
        else:
            torch._foreach_add_(steps, 1.0)

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return the weights of the moments."""
        beta2 = read["beta2"]
        return {"weight": read["weight"], "second_decay": beta2, "second_weight": 1.0 - beta2}

    def updated(self, block: Block) -> dict[str, Tensor]:
        """Return both moments, updated with the gradient."""
        grad = block.flat("grad")
        first = torch.lerp(block.flat("buffer"), grad, block.scalar("weight"))
        second = block.flat("exp_avg_sq") * block.scalar("second_decay")
        weight = block.scalar("second_weight")
        if isinstance(weight, Tensor):
            second.addcmul_(grad * weight, grad)
        else:
            second.addcmul_(grad, grad, value=weight)
        new = {"buffer": first, "exp_avg_sq": second}
        if "max_exp_avg_sq" in block.pieces:
            new["max_exp_avg_sq"] = torch.maximum(block.flat("max_exp_avg_sq"), second)
        return new


class RAdamUpdate(AdamUpdate):
    """Adam's update; the first moves are not divided by the second moment."""

    bounds_moves = False


class NAdamUpdate(AdamUpdate):
    """Adam's update, and that of the product of the momenta."""

    direction = ()

    def count(self, cells: Sequence[Entries]) -> None:
        """Count the step and extend the product of the μ_j."""
        super().count(cells)
        for group, entries in cells:
            steps = wide(torch.stack([entry["step"] for entry in entries]))
            settings = {"beta1": group["betas"][0], "momentum_decay": group["momentum_decay"]}
            momenta: Any = nesterov_momentum(settings, steps)
            products = [entry["mu_product"] for entry in entries]
            torch._foreach_mul_(products, momenta.to(products[0].dtype).unbind())

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return the weights, that of the first moment from β1."""
        return {**super().scalars(read), "weight": 1.0 - read["beta1"]}


class AdamaxUpdate(AdamUpdate):
    """The update of the first moment and of the decaying maximum."""

    direction = ()

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return the weights, and ε."""
        return {**super().scalars(read), "eps": read["eps"]}

    def updated(self, block: Block) -> dict[str, Tensor]:
        """Return moment and maximum, updated with the gradient."""
        grad = block.flat("grad")
        first = torch.lerp(block.flat("buffer"), grad, block.scalar("weight"))
        decayed = block.flat("exp_inf") * block.scalar("second_decay")
        return {
            "buffer": first,
            "exp_inf": torch.maximum(decayed, grad.abs() + block.scalar("eps")),
        }


# By the exact classes of a base and its adapter.
UPDATES: dict[tuple[type[Optimizer], type], Update] = {
    (torch.optim.SGD, SGDAdapter): Update(),
    (torch.optim.Adam, AdamAdapter): AdamUpdate(),
    (torch.optim.AdamW, AdamAdapter): AdamUpdate(),
    (torch.optim.RAdam, RAdamAdapter): RAdamUpdate(),
    (torch.optim.NAdam, NAdamAdapter): NAdamUpdate(),
    (torch.optim.Adamax, AdamaxAdapter): AdamaxUpdate(),
}

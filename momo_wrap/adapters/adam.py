"""Adam and AdamW, and the base class for their relatives."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import ParamGroup, State
from momo_wrap.adapters.planned_step import Reading
from momo_wrap.adapters.reading import ReadingAdapter
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.scalars import Scalar, as_number, wide_dtype
from momo_wrap.model import Averaging


class AdamAdapter(ReadingAdapter):
    """`torch.optim.Adam` and `AdamW`, with or without amsgrad.

    B_k is `exp_avg`, d_k = B_k / (1 - β1^k) and D_k = sqrt(v_k / (1 - β2^k)) + ε, where v_k is
    `exp_avg_sq`, or its running maximum with amsgrad. k counts the steps of each parameter.

    Relatives override `scalars`: u_k = B_k / (root_scale sqrt(v_k) + offset).

    Attributes:
        columns: Names in the optimizer state of the tensors needed besides `exp_avg`.
        counts: Names in the optimizer state of values per parameter.
        settings: Names of the group's settings needed besides the betas.
    """

    columns: Sequence[str] = ("exp_avg_sq",)
    counts: Sequence[str] = ("step",)
    settings: Sequence[str] = ("eps",)

    def obstacle(self, base: Optimizer) -> str | None:
        """Return a reason if β1 is 1, which a momentum schedule may set; see `Adapter`."""
        for group in base.param_groups:
            beta1 = group["betas"][0]
            if not isinstance(beta1, Tensor) and beta1 >= 1.0:
                return (
                    f"with betas[0]={beta1} no gradient enters its average, and the base divides "
                    "by the sum of their weights, which is 0"
                )
        return None

    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return a bias-corrected average with decay β1; see `ReadingAdapter`."""
        beta1 = as_number(group["betas"][0])
        return _mean(beta1) if isinstance(beta1, float) else _mean.__wrapped__(beta1)

    def while_updating(self, group: ParamGroup) -> dict[str, Any]:
        """Use foreach for capturable; see `ReadingAdapter`."""
        # The single-tensor code path divides 0 by 0 at learning rate 0.
        return {"foreach": True} if group["capturable"] and not group.get("fused") else {}

    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Return the tensors, counts and settings named above; see `ReadingAdapter`."""
        entries = [state[p] for p in params]
        columns = (*self.columns, "max_exp_avg_sq") if group.get("amsgrad") else self.columns
        tensors = {name: [entry[name] for entry in entries] for name in columns}
        beta1, beta2 = map(as_number, group["betas"])
        counts = {name: [entry[name] for entry in entries] for name in self.counts}
        settings = {name: group[name] for name in self.settings}
        scalars = {"beta1": beta1, "beta2": beta2, **counts, **settings}
        return Reading([entry["exp_avg"] for entry in entries], tensors, scalars)

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return p and (1 - β1^k) D_k = root_scale sqrt(v_k) + offset; see `ReadingAdapter`."""
        first, second = corrections(read)
        return {
            "buffer_scale": 1.0 / first,
            "root_scale": first / second**0.5,
            "offset": first * read["eps"],
        }

    def preconditioned(self, block: Block) -> Tensor:
        """Return u of a block; see `ReadingAdapter`."""
        denominator = root(block)
        return torch.div(block.flat("buffer"), denominator, out=denominator)


@functools.lru_cache(maxsize=16)
def _mean(beta1: Scalar) -> Averaging:
    """Return how a bias-corrected average weighs; of numbers it is made once."""
    return Averaging(decay=beta1, weight=1.0 - beta1, bias_corrected=True)


def root(block: Block) -> Tensor:
    """Return root_scale sqrt(v) + offset of a block, a new tensor."""
    amsgrad = "max_exp_avg_sq" in block.pieces
    root = block.flat("max_exp_avg_sq" if amsgrad else "exp_avg_sq").sqrt()
    return root.mul_(block.scalar("root_scale")).add_(block.scalar("offset"))


def wide(values: Scalar) -> Scalar:
    """Return a tensor as float64, if the device supports it."""
    return values.to(wide_dtype(values.device)) if isinstance(values, Tensor) else values


def corrections(read: Mapping[str, Scalar]) -> tuple[Scalar, Scalar]:
    """Return the bias corrections 1 - β1^k and 1 - β2^k."""
    steps = wide(read["step"])
    return bias_correction(read["beta1"], steps), bias_correction(read["beta2"], steps)


def bias_correction(beta: Scalar, steps: Scalar) -> Scalar:
    """Return 1 - β^k, the sum of the weights of an exponential average after k steps of any shape.

    A number if both are numbers, else a float64 tensor (float32 if the device has no float64).
    """
    # expm1 keeps all digits for β^k close to 1.
    if isinstance(beta, Tensor):
        return -torch.expm1(steps * beta.to(wide_dtype(beta.device)).log())
    log_beta = math.log(beta) if beta > 0 else -math.inf
    if isinstance(steps, Tensor):
        return -torch.expm1(steps.to(wide_dtype(steps.device)) * log_beta)
    return -math.expm1(steps * log_beta)

"""Which engine a base gets, and what those of several bases have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from momo_wrap.engine.passes import Engine
from momo_wrap.engine.plan import Plan


def engine_for(compiled, groups, weight_sums):
    return Engine(weight_sums)


def common_template(plans: Sequence[Plan]) -> Tensor:
    """Return an empty tensor of the device and dtype of the scalars of several bases.

    Args:
        plans: The plans of all bases, which get it as theirs.
    """
    if len(plans) == 1:
        return plans[0].like
    likes = [plan.like for plan in plans]
    device = next((like.device for like in likes if like.device.type != "cpu"), likes[0].device)
    wide = any(like.dtype is torch.float64 for like in likes)
    dtype = torch.float64 if wide else torch.float32
    if any((like.device, like.dtype) != (device, dtype) for like in likes):
        common = torch.empty(0, device=device, dtype=dtype)
        for plan in plans:
            plan.like = common
    return plans[0].like

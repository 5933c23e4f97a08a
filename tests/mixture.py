"""Parameters of many shapes and memory layouts, and steps of every length on them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap import MoMo, MoMoWrapper, adapter_for
from momo_wrap.checks.arguments import Compiled
from momo_wrap.fast.updates import UPDATES
from momo_wrap.rules import WeightDecayForm
from tests.cases import ALGORITHMS, Case
from tests.problems import kept, take_step

# With blocks of so many elements, the first tensor of each group is large and the last of the first
# one too; those between are packed.
BLOCK = 200
SHAPES = (((30, 20), (3, 4), (5,), (1,), (0, 3), (4, 8, 3, 3)), ((25, 9), (7,), (2, 2)))
# Offsets of the loss by step: the first is too low for any step, the next makes up for it.
UNEXPECTED = {7: -3000.0, 8: 3000.0}
# Learning rates that are far too large, small, and usual.
FACTORS = (50.0, 0.01, 1.0)


def parameters(dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    """Return the parameters of two groups, one of them channels_last."""
    generator = torch.Generator().manual_seed(0)
    groups = []
    for shapes in SHAPES:
        params = [_random(shape, dtype, generator) for shape in shapes]
        groups.append(
            [p.contiguous(memory_format=torch.channels_last) if p.dim() == 4 else p for p in params]
        )
    return [[p.requires_grad_() for p in params] for params in groups]


def two_groups(case: Case, params: list[list[Tensor]], weight_decay: float) -> list[dict[str, Any]]:
    """Return groups with learning rate, weight decay and momentum of their own, or a single one."""
    more: dict[str, Any] = {"lr": case.settings["lr"] / 2, "weight_decay": weight_decay / 3}
    if case.settings.get("momentum"):
        more["momentum"] = 0.7
    if "betas" in inspect.signature(case.kind).parameters:
        more["betas"] = (0.7, 0.9)
    first, *second = [{"params": some} for some in params]
    return [{**first, "weight_decay": weight_decay}, *({**group, **more} for group in second)]


def is_compiled(case: Case) -> bool:
    """Return whether there are compiled passes for a case."""
    base = case.make([torch.ones(1, requires_grad=True)])
    return (type(base), type(adapter_for(base))) in UPDATES


COMPILED = {case.name: case for case in ALGORITHMS if is_compiled(case)}
# Kernels take long to compile; those of these cases serve all further tests.
FEW = [COMPILED["SGD-momentum"], COMPILED["AdamW"]]


def wrapped(
    case: Case,
    compiled: Compiled,
    *,
    params: list[list[Tensor]] | None = None,
    dtype: torch.dtype = torch.float64,
    form: WeightDecayForm = "proximal",
    weight_decay: float = 0.03,
    bound: float = 0.0,
) -> MoMoWrapper:
    """Return the wrapped base of a case, over two groups."""
    groups = two_groups(case, parameters(dtype) if params is None else params, weight_decay)
    rule = MoMo(case.sign * bound)
    return MoMoWrapper(case.make(groups), rule, weight_decay_form=form, compiled=compiled)


def train(
    optimizer: Optimizer,
    steps: Iterable[int],
    *,
    sign: float = 1.0,
    factors: Sequence[float] = FACTORS,
) -> Tensor:
    """Take the steps of these numbers; the same numbers bring the same noise.

    Returns:
        θ at each of them, 1 for a bare optimizer.
    """
    thetas = []
    for step in steps:
        loss = set_gradients(optimizer, step, sign)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factors[step % len(factors)]
        take_step(optimizer, loss + sign * UNEXPECTED.get(step, 0.0))
        record = optimizer.last_step if isinstance(optimizer, MoMoWrapper) else None
        thetas.append(torch.ones(()) if record is None else record.theta)
    return torch.stack(thetas)


def set_gradients(optimizer: Optimizer, step: int, sign: float = 1.0) -> Tensor:
    """Set the gradients of a noisy square norm, and return its value."""
    generator = torch.Generator().manual_seed(step)
    loss = torch.zeros((), dtype=torch.float64)
    for group in optimizer.param_groups:
        for param in group["params"]:
            noise = _random(param.shape, param.dtype, generator)
            param.grad = sign * (param.detach() + 0.3 * noise)
            loss += sign * param.detach().abs().double().square().sum() / 2.0
    return loss


def snapshot(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return copies of the parameters, the base's state and the wrapper's scalars."""
    found: dict[str, Any] = {}
    for i, (group, scalars) in enumerate(zip(optimizer.param_groups, kept(optimizer), strict=True)):
        found.update({f"{i} {key}": value for key, value in scalars.items()})
        for j, param in enumerate(group["params"]):
            found[f"{i}.{j}"] = param.detach()
            state = optimizer.state.get(param, {})
            found.update({f"{i}.{j} {key}": v for key, v in state.items() if v is not None})
    # The moves ahead of an engine are not part of the result.
    found = {key: value for key, value in found.items() if not key.endswith("momo_reach")}
    return {key: torch.as_tensor(value).clone() for key, value in found.items()}


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Return the largest relative distance in norm of two snapshots; small norms count as 0.01."""
    assert left.keys() == right.keys()
    distances = []
    for key in left:
        one, other = (tensors[key].to(torch.complex128) for tensors in (left, right))
        assert one.shape == other.shape, key
        distances.append((one - other).norm() / other.norm().clamp(min=1e-2))
    return float(torch.stack(distances).max())


def _random(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(*shape, generator=generator, dtype=wide).to(dtype)

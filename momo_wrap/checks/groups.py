"""Checks of parameter groups: settings and parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Real

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter, ParamGroup, maximizes
from momo_wrap.distributed import local
from momo_wrap.engine.params import can_move

# Schedules that end at 0 can end this far below 0.
ROUNDING = 1e-12


def check_settings(
    pairs: Sequence[tuple[Optimizer, Adapter]], *, read_tensors: bool = False
) -> None:
    """Raise for settings that the model can't be built with. Cheap enough for each step.

    Settings that are tensors are read only with `read_tensors`, which is a host synchronization.
    """
    maximize: list[bool] = []
    for optimizer, adapter in pairs:
        for group in optimizer.param_groups:
            _check_group(len(maximize), group, adapter, read_tensors=read_tensors)
            maximize.append(maximizes(optimizer, group))
        reason = adapter.obstacle(optimizer)
        if reason is not None:
            raise ValueError(
                f"{adapter!r} can't read {type(optimizer).__name__}: {reason}. Change that, or "
                "write MoMoWrapper(optimizer, adapter=ProposingAdapter())."
            )
    if any(maximize) and not all(maximize):
        raise ValueError(
            f"Groups have maximize={maximize}, but all groups share one loss. Set the same "
            "maximize for all, or wrap two optimizers separately."
        )


def _check_group(index: int, group: ParamGroup, adapter: Adapter, *, read_tensors: bool) -> None:
    lr = group.get("lr")
    if lr is None and adapter.needs_lr:
        raise ValueError(
            f"Group {index} has no 'lr', expected a learning rate, which caps the step size. Wrap "
            "an optimizer that has one."
        )
    for name, value in (("lr", lr), ("weight_decay", group.get("weight_decay"))):
        # Nearly always a float, which is checked at once.
        if value is not None and not (type(value) is float and 0.0 <= value < math.inf):
            _check_number(index, name, value, read_tensors=read_tensors)
    if group.get("differentiable"):
        raise ValueError(
            f"Group {index} has differentiable=True, but MoMo's step is not differentiable. Create "
            "the base optimizer with differentiable=False."
        )


def _check_number(index: int, name: str, value: object, *, read_tensors: bool) -> None:
    if isinstance(value, Tensor):
        if not read_tensors:
            return
        value = float(value)
    if not (isinstance(value, Real) and math.isfinite(value) and float(value) >= -ROUNDING):
        instead = {"lr": "lr=1e-2", "weight_decay": "weight_decay=0.0"}[name]
        hint = "For no cap, choose a large one: lr=1e2" if value == math.inf else f"Write {instead}"
        raise ValueError(
            f"Group {index} has {name}={value!r}, expected a finite number of at least 0. {hint}."
        )


def check_parameters(groups: Sequence[ParamGroup]) -> None:
    """Raise for parameters that can move but not independently of others.

    Frozen parameters may be anything; so may lazy ones, until they are initialized.
    """
    if not any(group["params"] for group in groups):
        raise ValueError(
            "The optimizer has no parameters. Give it those of the model: model.parameters()."
        )
    params, names = [], []
    for index, group in enumerate(groups):
        for position, param in enumerate(group["params"]):
            if not can_move(param) or is_lazy(param):
                continue
            if param.is_conj() or param.is_neg():
                raise ValueError(
                    f"Parameter {position} of group {index} is a view that is conjugated or "
                    "negated on reading, so it can't be written to. Create it with "
                    "param.detach().resolve_conj().resolve_neg().requires_grad_()."
                )
            params.append(param)
            names.append(f"{position} of group {index}")
    for first, second in _overlapping(params):
        if params[first] is params[second]:
            raise ValueError(
                f"Parameters {names[first]} and {names[second]} are the same tensor, which would "
                "move twice. Pass it once: dict.fromkeys(parameters) instead of parameters."
            )
        raise ValueError(
            f"Parameters {names[first]} and {names[second]}, of shape "
            f"{list(params[second].shape)}, share memory but are two parameters, so each would "
            "move the other. Tie them: second.weight = first.weight, not second.weight.data = ..."
        )


def _overlapping(params: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield the positions of any two parameters that have an element in common."""
    extents = []  # the device, the addresses [start, stop) that contain it, and the position
    for position, param in enumerate(params):
        tensor = local(param)
        try:
            # An address of 0 means that there is no memory.
            if param.layout is torch.strided and tensor.untyped_storage().device.type != "meta":
                start = tensor.data_ptr()
                if start and tensor.numel():
                    extents.append((str(tensor.device), start, start + _span(tensor), position))
        except (RuntimeError, NotImplementedError):  # subclasses that wrap other tensors
            continue
    earlier: list[tuple[str, int, int]] = []
    for device, start, stop, position in sorted(extents):
        earlier = [before for before in earlier if before[0] == device and before[1] > start]
        for _, _, other in earlier:
            pair = sorted([other, position])
            if _share_an_element(local(params[pair[0]]), local(params[pair[1]])):
                yield pair
        earlier.append((device, stop, position))


def _span(tensor: Tensor) -> int:
    """Return the number of bytes from the first element to the end of the last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * int(1 + sum((length - 1) * stride for length, stride in steps))


def _share_an_element(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors with overlapping extents share an element."""
    if first.is_contiguous() and second.is_contiguous():
        return True
    # Columns of one matrix, for example, have overlapping extents and no common element.
    start = min(first.data_ptr(), second.data_ptr())
    stop = max(tensor.data_ptr() + _span(tensor) for tensor in (first, second))
    marks = torch.zeros(stop - start, dtype=torch.bool)
    _bytes_of(first, marks, start).fill_(True)
    return bool(_bytes_of(second, marks, start).any())


def _bytes_of(tensor: Tensor, marks: Tensor, start: int) -> Tensor:
    """Return the marks of a tensor, out of one mark for each byte from an address on."""
    size = tensor.element_size()
    strides = [stride * size for stride in tensor.stride()]
    return marks.as_strided((*tensor.shape, size), (*strides, 1), tensor.data_ptr() - start)

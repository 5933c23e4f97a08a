"""Copies of parameters, to restore them, and their moves along the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from momo_wrap.engine.blocks import real
from momo_wrap.engine.chunks import is_small, most_elements, split


class Copies:
    """Copies of parameters: real tensors of the local shards, in at least float32.

    Args:
        params: The parameters, or their anchors, each with the `momo_wrap.distributed.shards` of
            the parameter.

    Attributes:
        values: The copies, in the same order. Those of small parameters of one kind are contiguous.
    """

    def __init__(self, params: Sequence[tuple[Tensor, int]]) -> None:
        now = [real(param) for param, _ in params]
        self._params, self._flat = list(params), list[tuple[Tensor, int, list[int]]]()
        self._large: list[int] = []
        self.values: list[Tensor] = [*now]
        kinds: dict[object, list[int]] = {}
        for i, (value, (_, shards)) in enumerate(zip(now, params, strict=True)):
            if is_small(value.numel(), most_elements(value.device)):
                kinds.setdefault((value.device, value.dtype, shards), []).append(i)
            else:
                self._large.append(i)
                self.values[i] = value.to(_wide(value), copy=True)
        for indices in kinds.values():
            some = [now[i] for i in indices]
            sizes = [value.numel() for value in some]
            flat = torch.empty(sum(sizes), dtype=_wide(some[0]), device=some[0].device)
            pieces = zip(flat.split(sizes), some, strict=True)
            views = [piece.view(value.shape) for piece, value in pieces]
            torch._foreach_copy_(views, some)
            self._flat.append((flat, params[indices[0]][1], indices))
            for i, view in zip(indices, views, strict=True):
                self.values[i] = view

    def take(self, params: Sequence[tuple[Tensor, int]]) -> bool:
        """Copy again into the same memory and return True, or return False for other parameters."""
        known = [(id(param), shards) for param, shards in self._params]
        if known != [(id(param), shards) for param, shards in params]:
            return False
        now = [real(param) for param, _ in params]
        kinds = [(value.shape, value.device, _wide(value)) for value in now]
        if kinds != [(value.shape, value.device, value.dtype) for value in self.values]:
            return False
        torch._foreach_copy_(self.values, now)
        return True

    def slopes(
        self, now: Sequence[Tensor], all_grads: Sequence[Tensor | None]
    ) -> list[tuple[Tensor, int]]:
        """Return ⟨g, x - x'⟩ in parts, each with the `shards` of its parameters.

        The copies of small parameters are overwritten, to allocate no more memory.

        Args:
            now: The current parameters x', real tensors of the local shards.
            all_grads: The gradients g.
        """
        found = [
            (self._of_small(flat, its, now, all_grads), shards) for flat, shards, its in self._flat
        ]
        for i in self._large:
            grad = all_grads[i]
            if _is_dense(grad):
                part = _of_large(self.values[i], now[i], real(grad))
                found.append((part, self._params[i][1]))
        return found

    def _of_small(
        self,
        flat: Tensor,
        indices: Sequence[int],
        now: Sequence[Tensor],
        all_grads: Sequence[Tensor | None],
    ) -> Tensor:
        torch._foreach_sub_([self.values[i] for i in indices], [now[i] for i in indices])
        moved, grads = [], []
        for i in indices:
            grad = all_grads[i]
            if _is_dense(grad):
                moved.append(self.values[i])
                grads.append(real(grad))
            else:
                self.values[i].zero_()
        if moved:
            torch._foreach_mul_(moved, grads)
        return flat.sum()


def _of_large(before: Tensor, now: Tensor, grad: Tensor) -> Tensor:
    parts = []
    for old, new, own in split([before, now, grad], most_elements(now.device), whole=False):
        moved = old - new
        parts.append(torch.dot(moved.view(-1), own.to(moved.dtype).reshape(-1)))
    return torch.stack(parts).sum()


def _is_dense(grad: Tensor | None) -> TypeGuard[Tensor]:
    return grad is not None and grad.layout is torch.strided


def _wide(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)

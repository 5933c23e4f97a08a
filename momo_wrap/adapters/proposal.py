"""The step that a base proposes, and the fraction of it that is taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import ParamGroup, State, maximizes
from momo_wrap.adapters.sums import Kind, along_average
from momo_wrap.averaging import Averaging, last_weight_sum
from momo_wrap.blocks import blocks
from momo_wrap.reductions import Scalar, to_device

# Where the average that the adapter keeps itself is, in the base's state of a parameter.
GRAD_AVG_KEY = "momo_grad_avg"

_PARAM = ""  # among the names of iterates


class Proposing(Protocol):
    """What a proposal has to know of its adapter, the `ProposingAdapter`."""

    momentum: str | None
    iterates: tuple[str, ...]

    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return how a parameter group averages gradients."""

    def keeps_average(self, averaging: Averaging) -> bool:
        """Return whether the average of gradients is the adapter's own."""

    def keeps_gradients(self, averaging: Averaging) -> bool:
        """Return whether the gradients have to be kept while the base steps."""


class Proposal:
    """The step that the base proposes for some parameters of a group, of one device and dtype."""

    def __init__(self, adapter: Proposing, base: Optimizer, group: ParamGroup, kind: Kind) -> None:
        self.group = group
        self._adapter, self._base = adapter, base
        self._params, self._shards, self._grads = kind.params, kind.shards, kind.grads
        self._sign = -1.0 if maximizes(base, group) else 1.0
        self._kept: list[Tensor | None] = []
        self._averages: list[Tensor] = []
        self._old: dict[str, list[Tensor]] = {}

    def start(self) -> None:
        """Remember where the parameters are, and look at the gradients.

        Some bases change gradients in place, and many expect their state to be empty at first.
        """
        averaging = self._adapter.averaging(self.group, self._base.state)
        self._old = {name: [x.clone() for x in column] for name, column in self._moving().items()}
        if self._adapter.keeps_gradients(averaging):
            self._grads = list(torch._foreach_mul(self._grads, self._sign))
            self._sign = 1.0
        if self._adapter.keeps_average(averaging):
            self._take_averages()
            if not self._adapter.keeps_gradients(averaging):
                self._update_averages(averaging)

    def _take_averages(self) -> None:
        state = self._base.state
        kept = [state.get(param, {}).get(GRAD_AVG_KEY) for param in self._params]
        self._averages = [
            # Some bases load their whole state in another dtype.
            torch.zeros_like(param) if average is None else average.to(param.dtype)
            for param, average in zip(self._params, kept, strict=True)
        ]
        self._kept = kept
        for param, average in zip(self._params, kept, strict=True):
            if average is not None:
                del state[param][GRAD_AVG_KEY]

    def _update_averages(self, averaging: Averaging) -> None:
        """B_k = a B_{k-1} + b g_k, rounded once."""
        first = averaging.weight if averaging.first_weight is None else averaging.first_weight
        for is_first, weight in ((False, averaging.weight), (True, first)):
            some = [i for i, average in enumerate(self._kept) if (average is None) == is_first]
            columns = {
                "average": [self._averages[i] for i in some],
                "grad": [self._grads[i] for i in some],
            }
            for block in blocks(columns, {"decay": averaging.decay, "weight": weight}):
                average = block.flat("average").mul_(block.scalar("decay"))
                average.add_(block.flat("grad") * block.scalar("weight"), alpha=self._sign)
                block.write_back("average", average)

    def _moving(self) -> dict[str, list[Tensor]]:
        """Return everything that moves with the parameters, as it is in the base."""
        state = self._base.state
        iterates = {
            name: [state[p].get(name, p) if p in state else p for p in self._params]
            for name in self._adapter.iterates
        }
        return {_PARAM: self._params, **iterates}

    def gather(self) -> None:
        """Find the averages, after the base has stepped."""
        averaging = self._adapter.averaging(self.group, self._base.state)
        if self._averages and self._adapter.keeps_gradients(averaging):
            self._update_averages(averaging)
        self._buffers = self._averages or self._grads
        key = self._adapter.momentum
        if key is None:
            return
        entries = [self._base.state[param] for param in self._params]
        for param, entry in zip(self._params, entries, strict=True):
            if getattr(entry.get(key), "shape", None) != param.shape:
                raise ValueError(
                    f"ProposingAdapter(momentum={key!r}) found no tensor of that name and of shape "
                    f"{list(param.shape)} in the state of {type(self._base).__name__}, which has "
                    f"{sorted(map(str, entry))}. Write ProposingAdapter() to have an average kept."
                )
        self._buffers = [entry[key] for entry in entries]

    def inner_products(self, averaging: Averaging) -> Iterator[tuple[Tensor, Tensor]]:
        """Return ⟨p B, s⟩ and ⟨d, s⟩ of each block, before the step is withdrawn."""
        columns = {
            "new": self._params,
            "old": self._old[_PARAM],
            "buffer": self._buffers,
            "grad": self._grads,
        }
        scales = {
            "buffer_scale": _buffer_scale(averaging, self.group),
            "grad_scale": averaging.grad_scale,
        }
        for block in blocks(columns, scales, shards=self._shards):
            yield along_average(block, block.flat("new") - block.flat("old"))

    def withdraw(self, *, done: bool) -> None:
        """Put the parameters back to where they were, and keep what was proposed instead.

        Args:
            done: Whether all went well; otherwise no average is left that was not there before.
        """
        if not self._old:
            return
        pairs = zip(self._params, self._averages, self._kept, strict=False)
        for param, average, kept in pairs:
            if done or kept is not None:
                self._base.state.setdefault(param, {})[GRAD_AVG_KEY] = average
        for name, column in self._moving().items():
            for block in blocks({"new": column, "old": self._old[name]}, {}):
                proposed = block.flat("new").clone()
                block.write("new", block.flat("old"))
                block.write("old", proposed)

    def apply(self, theta: Tensor) -> None:
        """Move by the fraction θ of what was proposed."""
        for name, column in self._moving().items():
            for block in blocks({"x": column, "proposed": self._old[name]}, {}):
                x = block.flat("x")
                fraction = to_device(theta, x.device, x.dtype)
                moved = torch.lerp(x, block.flat("proposed"), fraction)
                # A proposal that overflowed does not count where nothing moves.
                block.write("x", torch.where(fraction == 0, x, moved))


def _buffer_scale(averaging: Averaging, group: ParamGroup) -> Scalar:
    """Return p, with the wrapper's own count of what is in the average."""
    if not averaging.bias_corrected:
        return averaging.buffer_scale
    last = last_weight_sum(group["momo_weight_sum"], averaging.decay, averaging.weight)
    weight_sum = averaging.decay * last + averaging.weight  # R_k
    return averaging.buffer_scale / weight_sum

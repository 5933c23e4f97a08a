"""Passes over a block, compiled by `torch.compile` into one loop over memory each.

A kernel is compiled once for a kind of parameters, for blocks of any length, so compiling takes
seconds for any number of parameters.
"""

from __future__ import annotations

import functools
import itertools
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from momo_wrap.engine.blocks import Block
from momo_wrap.engine.compat import is_dispatched_by_a_mode
from momo_wrap.engine.scalars import Scalar
from momo_wrap.fast.batches import ROW, in_rows

# Without it, the new state is computed twice, in a loop that sums up and in one that writes:
# Inductor fuses them only if the sum reads the written values. With 16-bit values, two loops are
# faster on CPUs, because the fused one processes half a vector at a time.
_ONE_LOOP: dict[str, str | int | bool | Callable[..., Any]] = {"realize_reads_threshold": 0}

# What a pass returns: a result, and the names of the changed columns.
Done: TypeAlias = tuple[Any, tuple[str, ...]]
# The negated columns, the dtype of computation, the shards, the columns with decay.
BlockForm: TypeAlias = tuple[frozenset[str], torch.dtype, int, frozenset[str]]

_PASS = "momo_wrap_pass"
_numbers = itertools.count()
_FULL = (torch.float32, torch.float64)

# Why kernels can't be compiled, by type of device; filled at the first failure.
failures: dict[str, str] = {}


class _Untraced(threading.local):
    """The number of passes that this thread has run without compiling."""

    runs = 0


_untraced = _Untraced()


def can_compile(params: Iterable[Tensor]) -> bool:
    """Return whether kernels can be compiled for parameters, as far as known."""
    import torch._dynamo.config as dynamo

    # Dynamo would run a kernel uncompiled, and then raise (`fullgraph`).
    if dynamo.disable or is_dispatched_by_a_mode():
        return False
    # Tensors on the meta device need no kernels.
    return all(p.device.type not in {"meta", *failures} for p in params)


def run(
    traced: Callable[..., Done],
    key: object,
    columns: Sequence[Mapping[str, Tensor]],
    scalars: Mapping[str, Scalar],
    form: BlockForm,
    scales: Sequence[Tensor],
) -> list[Done] | None:
    """Run a compiled pass over several blocks; None if it can't be compiled.

    Args:
        traced: Returns a result for a block and `scales`, and the names of the changed columns. It
            is compiled once for a `key`, and the number of blocks.
        key: What `traced` depends on besides the kinds of tensors.
        columns: The flat columns of each block.
        scalars: The scalars of all blocks.
        form: Further attributes of the blocks, see `Block`.
        scales: Further arguments of the pass.
    """
    first = columns[0]["buffer"]
    if first.device.type in failures:
        return None
    rows = in_rows(first)
    flat = [{name: _taken(its, rows) for name, its in own.items()} for own in columns]
    numbers = {k: v for k, v in scalars.items() if not isinstance(v, Tensor)}
    tensors = {k: _taken(v, rows) for k, v in scalars.items() if isinstance(v, Tensor)}
    untraced = _untraced.runs
    try:
        kernel = _kernel(
            _Pass(traced, key),
            frozenset(numbers.items()),
            form,
            rows,
            # Torch would compile these variants anyway, but only a few per function.
            (len(flat), min(2, len(flat[0]["buffer"])), *(its.dtype for its in flat[0].values())),
        )
        return kernel(flat, tensors, *scales)
    except Exception as error:
        # The error of a failed compilation depends on the release of torch. Nothing is written by
        # then, unless the pass was begun, compiled or not.
        if _untraced.runs != untraced or _was_begun(error):
            raise
        note_failure(first.device, error)
        return None


def _taken(values: Tensor, rows: bool) -> Tensor:
    """Return a column or a scalar in the shape that a kernel takes."""
    # Detached, because a kernel would depend on the shape of the base of a view.
    return values.detach().view(-1, ROW) if rows and values.dim() else values.detach()


@dataclass(frozen=True)
class _Pass:
    """A function to be traced, compared by a key."""

    traced: Callable[..., Any] = field(compare=False)
    key: object


@functools.lru_cache(maxsize=256)
def _kernel(
    its: _Pass,
    constants: frozenset[tuple[str, float]],
    form: BlockForm,
    rows: bool,
    variant: tuple[int | torch.dtype, ...],
) -> Callable[..., list[Done]]:
    """Return a compiled pass over the flat tensors of blocks."""
    # The import by `torch.compile`, without its warnings.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch._inductor.compile_fx

    # Outside, because torch 2.8 fails on a set that is read inside.
    numbers = dict(constants)

    def over(
        columns: list[dict[str, Tensor]], scalars: Mapping[str, Tensor], *scales: Tensor
    ) -> Any:
        if not torch.compiler.is_dynamo_compiling():
            _untraced.runs += 1
        done = []
        for own in columns:
            pieces = {name: [tensor] for name, tensor in own.items()}
            block = Block(pieces, {**numbers, **scalars}, *form, in_rows=rows)
            done.append(its.traced(block, *scales))
        return done

    # Torch limits the variants per code object; here each kernel has its own.
    over.__code__ = over.__code__.replace(co_name=f"{_PASS}_{next(_numbers)}")
    in_one_loop = rows or all(kind in _FULL for kind in variant[2:])
    options = _ONE_LOOP if in_one_loop else {}
    compiled: Callable[..., list[Done]] = torch.compile(
        over, dynamic=True, fullgraph=True, options=options
    )
    return compiled


def count() -> int:
    """Return how often a kernel has been asked for in this process."""
    found = _kernel.cache_info()
    return found.hits + found.misses


def _was_begun(error: Exception) -> bool:
    """Return whether an error comes from a compiled pass, which torch runs as `over`."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(_PASS in frame.f_code.co_name for frame, _ in frames)


def note_failure(device: torch.device, error: Exception) -> None:
    """Use no kernels from now on, on this type of device, unless memory was missing."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return
    failures[device.type] = str(error)
    warnings.warn(
        f"momo_wrap could not compile its passes for {device.type} ({type(error).__name__}: "
        f"{' '.join(str(error).split())[:300]}) and continues with uncompiled ones, which are "
        "slower but compute the same. To silence this warning, write MoMoWrapper(..., "
        "compiled=False).",
        stacklevel=2,
    )

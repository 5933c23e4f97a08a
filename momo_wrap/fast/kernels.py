"""Passes over a block, compiled by `torch.compile` into one loop over memory each.

A kernel is compiled once for a kind of parameters, with the length of the block left open, and then
serves all of them, so that compiling takes seconds however many parameters there are.
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

# Without it, the values that the state gets are computed twice, in a loop that sums up and in one
# that writes: Inductor's code generator for CPUs fuses them only if the sum reads what was
# written. With values of 16 bits, two loops are faster, since that one takes half a vector of them
# at a time.
_ONE_LOOP: dict[str, str | int | bool | Callable[..., Any]] = {"realize_reads_threshold": 0}

# What a pass returns: a result, and the names of the columns that it has changed.
Done: TypeAlias = tuple[Any, tuple[str, ...]]
# The columns that are negated, the dtype of computation, the shards, the columns with decay.
BlockForm: TypeAlias = tuple[frozenset[str], torch.dtype, int, frozenset[str]]

_PASS = "momo_wrap_pass"
_numbers = itertools.count()
_FULL = (torch.float32, torch.float64)

# Why kernels can't be had, by type of device; found out by trying.
failures: dict[str, str] = {}


class _Untraced(threading.local):
    """How often this thread has run a pass as it is."""

    runs = 0


_untraced = _Untraced()


def can_compile(params: Iterable[Tensor]) -> bool:
    """Return whether nothing is known that keeps kernels from being compiled for them."""
    import torch._dynamo.config as dynamo

    # Dynamo would run a kernel as it is, and then complain (`fullgraph`).
    if dynamo.disable or is_dispatched_by_a_mode():
        return False
    # Tensors without values have nothing to compile for.
    return all(p.device.type not in {"meta", *failures} for p in params)


def run(
    traced: Callable[..., Done],
    key: object,
    columns: Sequence[Mapping[str, Tensor]],
    scalars: Mapping[str, Scalar],
    form: BlockForm,
    scales: Sequence[Tensor],
) -> list[Done] | None:
    """Run a compiled pass over several blocks; None where it can't be.

    Args:
        traced: Makes a result of a block and `scales`, and names the columns that it has changed.
            It is compiled once for a `key`, and the number of blocks.
        key: What it depends on besides the kinds of tensors.
        columns: The flat columns of each block.
        scalars: The values that all have.
        form: What else they are, see `Block`.
        scales: What the pass gets besides.
    """
    first = columns[0]["buffer"]
    if first.device.type in failures:
        return None
    flat = [{name: its.detach() for name, its in own.items()} for own in columns]
    numbers = {k: v for k, v in scalars.items() if not isinstance(v, Tensor)}
    # Detached, or else a kernel would depend on the shape of what they are views of.
    tensors = {k: v.detach() for k, v in scalars.items() if isinstance(v, Tensor)}
    untraced = _untraced.runs
    try:
        kernel = _kernel(
            _Pass(traced, key),
            frozenset(numbers.items()),
            form,
            # Variants of a kernel that torch would make anyway, of which it makes a few only.
            (len(flat), min(2, first.numel()), *(its.dtype for its in flat[0].values())),
        )
        return kernel(flat, tensors, *scales)
    except Exception as error:
        # What a compiler that fails raises depends on the release of torch. Nothing has been
        # written by then. It has where the pass was begun, as it is or as a kernel.
        if _untraced.runs != untraced or _was_begun(error):
            raise
        _note_failure(first.device, error)
        return None


@dataclass(frozen=True)
class _Pass:
    """A function to be traced that is told from others by a key."""

    traced: Callable[..., Any] = field(compare=False)
    key: object


@functools.lru_cache(maxsize=256)
def _kernel(
    its: _Pass,
    constants: frozenset[tuple[str, float]],
    form: BlockForm,
    variant: tuple[int | torch.dtype, ...],
) -> Callable[..., list[Done]]:
    """Return a compiled pass over the flat tensors of blocks."""
    # What `torch.compile` imports, where the warnings that this gives do no harm.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch._inductor.compile_fx

    # Outside, because torch 2.8 fails on a set that is read within.
    numbers = dict(constants)

    def over(
        columns: list[dict[str, Tensor]], scalars: Mapping[str, Tensor], *scales: Tensor
    ) -> Any:
        if not torch.compiler.is_dynamo_compiling():
            _untraced.runs += 1
        done = []
        for own in columns:
            pieces = {name: [tensor] for name, tensor in own.items()}
            block = Block(pieces, {**numbers, **scalars}, *form)
            done.append(its.traced(block, *scales))
        return done

    # Torch counts the variants of a code, of which it makes a few; here each kernel has its own.
    over.__code__ = over.__code__.replace(co_name=f"{_PASS}_{next(_numbers)}")
    options = _ONE_LOOP if all(kind in _FULL for kind in variant[2:]) else {}
    compiled: Callable[..., list[Done]] = torch.compile(
        over, dynamic=True, fullgraph=True, options=options
    )
    return compiled


def count() -> int:
    """Return how often a kernel has been asked for in this process."""
    found = _kernel.cache_info()
    return found.hits + found.misses


def _was_begun(error: Exception) -> bool:
    """Return whether an error comes from a compiled pass itself, which torch runs as `over`."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(_PASS in frame.f_code.co_name for frame, _ in frames)


def _note_failure(device: torch.device, error: Exception) -> None:
    """Use no kernels from now on, on this type of device."""
    failures[device.type] = str(error)
    warnings.warn(
        f"momo_wrap could not compile its passes for {device.type} ({type(error).__name__}: "
        f"{' '.join(str(error).split())[:300]}) and goes on with uncompiled ones, which are slower "
        "but compute the same. MoMoWrapper(..., compiled=False) does so from the start.",
        stacklevel=2,
    )

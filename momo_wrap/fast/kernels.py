"""Passes over a block, compiled by `torch.compile` into one loop over memory each.

A kernel is compiled once for a kind of parameters, with the length of the block left open, and then
serves all of them, so that compiling takes seconds however many parameters there are.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from momo_wrap.engine.blocks import Block

# Without it, the values that the state gets are computed twice, in a loop that sums up and in one
# that writes: Inductor's code generator for CPUs fuses them only if the sum reads what was
# written. With values of 16 bits, two loops are faster, since that one takes half a vector of them
# at a time.
_ONE_LOOP: dict[str, str | int | bool | Callable[..., Any]] = {"realize_reads_threshold": 0}

_FULL = (torch.float32, torch.float64)

# Why kernels can't be had, by type of device; found out by trying.
failures: dict[str, str] = {}


def can_compile(params: Iterable[Tensor]) -> bool:
    """Return whether nothing is known that keeps kernels from being compiled.

    Args:
        params: The parameters that they are for.
    """
    # Tensors without values have nothing to compile for.
    hopeless = {"meta", *failures}
    return not _is_switched_off() and all(p.device.type not in hopeless for p in params)


def _is_switched_off() -> bool:
    """Return whether Dynamo would run a kernel as it is, and then complain (`fullgraph`)."""
    import torch._dynamo.config as dynamo

    return bool(dynamo.disable) or is_in_torch_dispatch_mode(include_infra_modes=False)


def run(
    traced: Callable[..., Any], key: object, block: Block, *scales: Tensor
) -> tuple[Any] | None:
    """Run a compiled pass over a block of flat tensors.

    Args:
        traced: The pass, from a block and `scales` to tensors. Compiled once for a key.
        key: What it depends on, besides the kinds of tensors.
        block: The block, each column with one flat piece.
        scales: Further 0-dim tensors.

    Returns:
        The result; None where there is no kernel, and nothing was done.
    """
    first = block.pieces["buffer"][0]
    if first.device.type in failures:
        return None
    columns = {name: pieces[0].detach() for name, pieces in block.pieces.items()}
    numbers = {k: v for k, v in block.scalars.items() if not isinstance(v, Tensor)}
    # Detached, or else a kernel would depend on the shape of what they are views of.
    scalars = {k: v.detach() for k, v in block.scalars.items() if isinstance(v, Tensor)}
    kernel = _kernel(
        _Same(traced, key),
        frozenset(numbers.items()),
        (block.negated, block.dtype, block.shards),
        # Variants of a kernel that torch would make anyway, of which it makes a few only.
        (min(2, first.numel()), *(column.dtype for column in columns.values())),
    )
    try:
        return (kernel(columns, scalars, *scales),)
    except Exception as error:
        if not _is_of_compiling(error):
            raise
        _note_failure(first.device, error)
        return None


class _Same:
    """A function to be traced that is told from others by a key."""

    def __init__(self, traced: Callable[..., Any], key: object) -> None:
        self.traced, self.key = traced, key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@functools.lru_cache(maxsize=256)
def _kernel(
    same: _Same,
    constants: frozenset[tuple[str, float]],
    form: tuple[frozenset[str], torch.dtype, int],
    variant: tuple[int | torch.dtype, ...],
) -> Callable[..., Any]:
    """Return a compiled pass over the flat tensors of a block."""
    _import_compiler()

    def over(columns: dict[str, Tensor], scalars: Mapping[str, Tensor], *scales: Tensor) -> Any:
        pieces = {name: [tensor] for name, tensor in columns.items()}
        block = Block(pieces, {**dict(constants), **scalars}, *form)
        return same.traced(block, *scales)

    options = _ONE_LOOP if all(kind in _FULL for kind in variant[1:]) else {}
    compiled: Callable[..., Any] = torch.compile(  # type: ignore[call-overload]
        over, dynamic=True, fullgraph=True, isolate_recompiles=True, options=options
    )
    return compiled


@functools.cache
def _import_compiler() -> None:
    """Import what `torch.compile` will, where the warnings that it gives do no harm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch._inductor.compile_fx  # noqa: F401


def _is_of_compiling(error: Exception) -> bool:
    # Not imported above: it takes longer than everything else here.
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return isinstance(error, (TorchDynamoException, FailOnRecompileLimitHit))


def _note_failure(device: torch.device, error: Exception) -> None:
    """Use no kernels from now on, on this type of device."""
    failures[device.type] = str(error)
    warnings.warn(
        f"momo_wrap could not compile its passes for {device.type} ({type(error).__name__}: "
        f"{' '.join(str(error).split())[:300]}) and goes on with uncompiled ones, which are slower "
        "but compute the same. MoMoWrapper(..., compiled=False) does so from the start.",
        stacklevel=2,
    )

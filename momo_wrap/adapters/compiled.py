"""The passes over a block, compiled by `torch.compile` into one loop over memory each.

Traced is the very code that the other passes run: `Passes` over a `Block` of flat tensors. A kernel
is compiled once for a kind of parameters, with the length of the block left open, and then serves
all of them, so that compiling takes seconds however many parameters there are.
"""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from momo_wrap.adapters.passes import Pair, Passes, Summed
from momo_wrap.adapters.sums import uses_gradient
from momo_wrap.blocks import Block, blocks
from momo_wrap.params import can_move
from momo_wrap.reductions import Scalar, accumulation_dtype, to_device
from momo_wrap.scalars import as_scalar

if TYPE_CHECKING:
    from momo_wrap.adapters.base import ParamGroup
    from momo_wrap.adapters.reading import ReadingAdapter

Compiled: TypeAlias = bool | Literal["auto"]

# Below that many parameters, compiling takes longer than it saves in thousands of steps.
_WORTHWHILE_ELEMENTS = 2**24

# Without it, the values that the state gets are computed twice, in a loop that sums up and in one
# that writes: the generator of CPU code fuses them only if the sum reads what was written. With
# values of 16 bits, two loops are faster, since that one takes half a vector of them at a time.
_ONE_LOOP: dict[str, str | int | bool | Callable[..., Any]] = {"realize_reads_threshold": 0}

_FULL = (torch.float32, torch.float64)

# Why kernels can't be had, by type of device; found out by trying.
_failures: dict[str, str] = {}


def can_compile(groups: Iterable[ParamGroup]) -> bool:
    """Return whether nothing is known that keeps kernels from being compiled.

    Args:
        groups: The base's parameter groups.
    """
    # Tensors without values have nothing to compile for.
    hopeless = {"meta", *_failures}
    params = (param for group in groups for param in group["params"] if can_move(param))
    return not _is_switched_off() and all(p.device.type not in hopeless for p in params)


def _is_switched_off() -> bool:
    """Return whether Dynamo would run a kernel as it is, and then complain (`fullgraph`)."""
    import torch._dynamo.config as dynamo

    return bool(dynamo.disable) or is_in_torch_dispatch_mode(include_infra_modes=False)


def chosen(compiled: Compiled, groups: Iterable[ParamGroup]) -> bool:
    """Return whether to compile; left to choose, where it is sure to work and to pay.

    Args:
        compiled: The choice.
        groups: The base's parameter groups.
    """
    if torch.compiler.is_dynamo_compiling():
        return False  # everything is being compiled, by the caller
    if compiled != "auto":
        return compiled
    params = [p for group in groups for p in group["params"] if can_move(p) and not is_lazy(p)]
    # Counted first, because a model of many small parameters should not pay for more.
    if sum(param.numel() for param in params) < _WORTHWHILE_ELEMENTS:
        return False
    return _has_compiler() and all(param.device.type == "cpu" for param in params)


@functools.cache
def _has_compiler() -> bool:
    names = (*os.environ.get("CXX", "g++").split()[:1], "clang++", "cl")
    return any(shutil.which(name) for name in names)


class CompiledPasses(Passes):
    """Compiled passes; where a kernel can't be compiled, the same passes as they are."""

    def cut(
        self,
        columns: Mapping[str, Sequence[Tensor]],
        scalars: Mapping[str, Scalar],
        negated: frozenset[str],
        shards: int,
    ) -> Iterator[Block]:
        """Leave large tensors whole, and make tensors of numbers; see `Passes`."""
        param = columns["param"][0]
        like = torch.empty(0, device=param.device, dtype=accumulation_dtype(param.dtype))
        # As tensors they are arguments of a kernel, not constants; 0 and 1 tell what to leave out.
        arguments = {
            name: value if value in (0.0, 1.0) else as_scalar(value, like)
            for name, value in scalars.items()
            if not isinstance(value, Tensor)
        }
        return blocks(columns, {**scalars, **arguments}, negated, shards, whole=True)

    def sum_up(self, block: Block) -> Summed:
        """Take in the gradients, where the base has not, and sum up; see `Passes`."""
        part = self._part(block, advances=self.advances, with_param=self.decays)
        done = self._run("sum_up", part)
        if done is None:
            return _added([self._plain.sum_up(small) for small in _recut(block)])
        summed: Summed = done[0]
        block.scatter(part, summed.written)
        return summed

    def move(self, block: Block, factor: Scalar, pull: Tensor) -> None:
        """Move parameters; see `Passes`."""
        part = self._part(block, advances=False, with_param=True)
        if self._run("move", part, *self._scales(block, factor, pull)) is None:
            for small in _recut(block):
                self._plain.move(small, factor, pull)
        else:
            block.scatter(part, ["param"])

    def _scales(self, block: Block, factor: Scalar, pull: Tensor) -> tuple[Tensor, Tensor]:
        pull = to_device(pull, block.pieces["param"][0].device, block.dtype)
        return (as_scalar(factor, pull) if self.decays else pull), pull

    @property
    def _plain(self) -> Passes:
        return Passes(self.adapter, self.group, self.advances, self.decays)

    def _part(self, block: Block, *, advances: bool, with_param: bool) -> Block:
        """Return the block with the columns that a pass needs, one flat tensor each."""
        needless = set() if with_param else {"param"}
        is_gradient = block.pieces["buffer"][0].is_set_to(block.pieces["grad"][0])
        if is_gradient or not (advances or uses_gradient(block)):
            needless.add("grad")
        return block.gathered([name for name in block.pieces if name not in needless])

    def _run(
        self, which: Literal["sum_up", "move"], part: Block, *scales: Tensor
    ) -> tuple[Any] | None:
        """Run a kernel and return its result; None where there is none, and nothing was done."""
        first = part.pieces["buffer"][0]
        if first.device.type in _failures:
            return None
        columns = {name: pieces[0].detach() for name, pieces in part.pieces.items()}
        numbers = {k: v for k, v in part.scalars.items() if not isinstance(v, Tensor)}
        # Detached, or else a kernel would depend on the shape of what they are views of.
        scalars = {k: v.detach() for k, v in part.scalars.items() if isinstance(v, Tensor)}
        kernel = _kernel(
            which,
            _shared(self.adapter),
            self.advances,
            self.decays,
            frozenset(numbers.items()),
            (part.negated, part.dtype, part.shards),
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


# Adapters without attributes are all alike; those of one type share their kernels.
_first_of_type: dict[type, ReadingAdapter] = {}


class _Itself:
    """An adapter as a key, whatever its own `__eq__` and `__hash__` say."""

    def __init__(self, adapter: ReadingAdapter) -> None:
        self.adapter = adapter

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.adapter is other.adapter

    def __hash__(self) -> int:
        return id(self.adapter)


def _shared(adapter: ReadingAdapter) -> _Itself:
    same = adapter if vars(adapter) else _first_of_type.setdefault(type(adapter), adapter)
    return _Itself(same)


@functools.lru_cache(maxsize=256)
def _kernel(
    which: Literal["sum_up", "move"],
    shared: _Itself,
    advances: bool,
    decays: bool,
    constants: frozenset[tuple[str, float]],
    form: tuple[frozenset[str], torch.dtype, int],
    variant: tuple[int | torch.dtype, ...],
) -> Callable[..., Any]:
    """Return a compiled pass over the flat tensors of a block."""
    _import_compiler()
    # A setting of a group would be a constant of the kernel, and need one for each of its values.
    passes = Passes(shared.adapter, {}, advances, decays)

    def run(columns: dict[str, Tensor], scalars: dict[str, Tensor], *scales: Tensor) -> Any:
        pieces = {name: [tensor] for name, tensor in columns.items()}
        block = Block(pieces, {**dict(constants), **scalars}, *form)
        return getattr(passes, which)(block, *scales)

    options = _ONE_LOOP if all(kind in _FULL for kind in variant[1:]) else {}
    compiled: Callable[..., Any] = torch.compile(  # type: ignore[call-overload]
        run, dynamic=True, fullgraph=True, isolate_recompiles=True, options=options
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
    _failures[device.type] = str(error)
    warnings.warn(
        f"momo_wrap could not compile its passes for {device.type} ({type(error).__name__}: "
        f"{' '.join(str(error).split())[:300]}) and goes on with uncompiled ones, which are slower "
        "but compute the same. MoMoWrapper(..., compiled=False) does so from the start.",
        stacklevel=2,
    )


def _recut(block: Block) -> Iterator[Block]:
    """Cut a block that was meant for a kernel into small ones."""
    scalars = {**block.scalars, **block.per_piece}
    yield from blocks(block.pieces, scalars, block.negated, block.shards)


def _added(parts: list[Summed]) -> Summed:
    def total(pairs: list[Pair]) -> Pair:
        first, second = (torch.stack(of).sum() for of in zip(*pairs, strict=True))
        return first, second

    levels = [part.level for part in parts if part.level is not None]
    slope = total([part.slope for part in parts])
    return Summed(slope, total(levels) if levels else None, parts[0].written)

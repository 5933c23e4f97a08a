"""A CUDA device that is not there: fake tensors on it, and what a step would ask of it.

Operations are counted as they are dispatched, with the launches that torch's CUDA code makes of
each. Kernels that `torch.compile` would generate are generated for an H100, and read, not run.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# ATen/native/cuda/MultiTensorApply.cuh of torch 2.13, for drivers of CUDA 12.1 or newer: the most
# tensors of a launch by the number of lists, the most chunks of a launch, and the size of a chunk.
MOST_TENSORS = (770, 448, 336, 252, 210)
MOST_CHUNKS, CHUNK = 2240, 65536
# The most tensors that one kernel of `cat` takes (CAT_ARRAY_BATCH_SIZE in cuda/Shape.cu).
MOST_IN_CAT = 128
# cuBLAS sums up the parts of an inner product in a second kernel.
SEVERAL_KERNELS = {"dot": 2}

_READS_THE_HOST = frozenset({"_local_scalar_dense", "nonzero", "equal"})
_OVERWRITES = frozenset({"copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_"})


class WithoutDevice(TorchFunctionMode):
    """Goes around the few functions that ask for the device itself, in builds without CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            return _indexed(*args)
        if func is Tensor.__setitem__:
            tensor, index, value = args
            target = _indexed(tensor, index)
            fill = torch.ops.aten.copy_.default if isinstance(value, Tensor) else Tensor.fill_
            return fill(target, value)
        if func is Tensor.copy_:
            return torch.ops.aten.copy_.default(*args)
        if func is Tensor.new_tensor:
            tensor, data = args
            return torch.tensor(data, dtype=tensor.dtype, device=tensor.device)
        if func is Tensor.data_ptr:
            return args[0].untyped_storage()._cdata + args[0].storage_offset()
        if func is Tensor.is_set_to:
            one, other = (tensor.untyped_storage()._cdata for tensor in args)
            return one == other
        return func(*args, **(kwargs or {}))


def _indexed(tensor: Tensor, index: Any) -> Tensor:
    dim = 0
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, slice):
            tensor = torch.ops.aten.slice.Tensor(tensor, dim, part.start, part.stop, part.step or 1)
            dim += 1
        else:
            tensor = tensor.select(dim, part)
    return tensor


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Make tensors fake, and device="cuda" possible."""
    with ExitStack() as stack:
        for patch in (
            mock.patch("torch.cuda.is_current_stream_capturing", return_value=False),
            mock.patch("torch.cuda._exchange_device", return_value=0),
            mock.patch("torch.cuda._maybe_exchange_device", return_value=0),
            # Which ask whether a step count is of no subclass of tensors.
            mock.patch("momo_wrap.engine.kind.Tensor", FakeTensor),
            mock.patch("momo_wrap.fast.updates._TENSOR", {FakeTensor}),
            FakeTensorMode(),
            WithoutDevice(),
        ):
            stack.enter_context(patch)
        yield


class Counter(TorchDispatchMode):
    """Counts what operations on fake CUDA tensors would ask of the device.

    Attributes:
        launches: Kernels, and copies from the host.
        bytes: What these read and write in the device's memory, caches not considered.
        synchronizations: How often the host waits for the device.
        temporary: The most memory that was allocated at once since the start, in bytes.
        is_paused: Whether nothing is counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = self.bytes = self.synchronizations = self.temporary = 0
        self.is_paused = False
        self._allocated = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = _on_device((args, kwargs))
        if name == "_local_scalar_dense":
            # A fake tensor has no value; any will do.
            self.synchronizations += bool(given) and not self.is_paused
            return True if args[0].dtype is torch.bool else 1.0
        # Fused steps return nothing, and not all of them know fake tensors.
        result = None if name.startswith("_fused_") else func(*args, **kwargs)
        if self.is_paused:
            return result
        found = _on_device(result)
        is_new = not _is_view(func) and not name.endswith("_")
        self._follow(found if is_new else [])
        waits = name in _READS_THE_HOST or (given and not found and _is_copy(name))
        self.synchronizations += bool(given) and bool(waits) and not kwargs.get("non_blocking")
        if (given or found) and not _is_free(func, name):
            self.launches += _launches(name, args)
            self.bytes += _traffic(func, name, args, kwargs, found)
        return result

    def _follow(self, made: Sequence[Tensor]) -> None:
        for tensor in made:
            storage = tensor.untyped_storage()
            if not hasattr(storage, "_counted"):
                storage._counted = True  # type: ignore[attr-defined]
                self._allocated += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.temporary = max(self.temporary, self._allocated)

    def _free(self, size: int) -> None:
        self._allocated -= size


def _on_device(values: Any) -> list[Tensor]:
    return [v for v in tree_leaves(values) if isinstance(v, Tensor) and v.device.type == "cuda"]


def _is_copy(name: str) -> bool:
    return name in {"_to_copy", "copy_"}


def _is_view(func: Any) -> bool:
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _is_free(func: Any, name: str) -> bool:
    """Whether an operation only allocates, asks for a property, or returns a view."""
    is_property = func.namespace == "prim" or name in _READS_THE_HOST
    return is_property or _is_view(func) or name.startswith(("empty", "new_empty"))


def _launches(name: str, args: Sequence[Any]) -> int:
    if name.startswith(("_foreach_", "_fused_")):
        lists = [list(arg) for arg in args if _is_tensors(arg)]
        depth = len(lists) + (1 if not name.endswith("_") else 0)
        if name.startswith("_fused_"):  # the list of step counts is not among the lists
            depth -= 1
        lists[0] = [t for t in lists[0] if t.device.type == "cuda"]
        return multi_tensor_launches([t.numel() for t in lists[0]], depth)
    if name == "cat":
        return -(-len(args[0]) // MOST_IN_CAT)
    return SEVERAL_KERNELS.get(name, 1)


def _is_tensors(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Tensor)


def multi_tensor_launches(sizes: Sequence[int], depth: int) -> int:
    """The launches of an operation on lists of tensors; see `multi_tensor_apply` of torch.

    Args:
        sizes: The number of elements of each tensor.
        depth: The number of lists, those of results among them.
    """
    most = MOST_TENSORS[min(depth, len(MOST_TENSORS)) - 1]
    launches = tensors = chunks = 0
    for size in filter(None, sizes):
        tensors += 1
        its = -(-size // CHUNK)
        for chunk in range(its):
            chunks += 1
            is_last = chunk == its - 1
            if (tensors == most and is_last) or chunks == MOST_CHUNKS:
                launches, chunks, tensors = launches + 1, 0, 0 if is_last else 1
    return launches + (chunks > 0)


def _traffic(
    func: Any, name: str, args: Sequence[Any], kwargs: Any, found: Sequence[Tensor]
) -> int:
    """The bytes that an operation reads and writes on the device."""
    read = written = 0
    seen: set[int] = set()
    for argument, value in zip(func._schema.arguments, [*args, *kwargs.values()], strict=False):
        size = sum(_size(tensor) for tensor in _on_device(value))
        seen.update(map(id, _on_device(value)))
        is_changed = argument.alias_info is not None and argument.alias_info.is_write
        # Gradients are only written if they are unscaled.
        if is_changed and not (name.startswith("_fused_") and argument.name == "grads"):
            written += size
        if not (is_changed and (argument.is_out or name in _OVERWRITES)):
            read += size
    return read + written + sum(_size(tensor) for tensor in found if id(tensor) not in seen)


def _size(tensor: Tensor) -> int:
    """The bytes of a tensor's elements, those of an expanded dimension once."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    elements = 1
    for length, stride in pairs:
        elements *= length if stride or not length else 1
    return elements * tensor.element_size()

"""The Triton code that `torch.compile` would generate for an H100, on a machine without a GPU.

Needs the package triton, which is imported and asks no device: a driver says that there is one.
The interfaces of torch that are replaced are private, and those of torch 2.13.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import fx

from docs.performance.fake_cuda import WithoutDevice

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    multi_processor_count=132,
    major=9,
    minor=0,
    warp_size=32,
    total_memory=80 * 2**30,
    L2_cache_size=50 * 2**20,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
)
_BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2, "i1": 1}


@dataclass(frozen=True)
class Kernel:
    """A generated kernel.

    Attributes:
        name: Its name.
        elements: How many elements it goes over, rounded up to powers of 2 by dimension.
        bytes_per_element: What it reads and writes for each of them.
    """

    name: str
    elements: int
    bytes_per_element: int


def kernels_of(
    function: Callable[..., Any], arguments: Sequence[Any], options: Any
) -> list[Kernel]:
    """Return the kernels that a call of a compiled function launches, in their order.

    Args:
        function: What is compiled, with dynamic shapes.
        arguments: Its arguments, on the CPU. Numbers as 0-dim float64 tensors stay there, all
            others count as on the device.
        options: The options of `torch.compile`.
    """
    code: list[str] = []

    def generate(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        code.append(_code_of(graph, options))
        return graph.forward

    torch.compile(function, dynamic=True, fullgraph=True, backend=generate)(*arguments)
    return parsed(code[0])


def _code_of(graph: fx.GraphModule, options: Any) -> str:
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses.fake_tensor import FakeTensor

    inputs = []
    for node in graph.graph.nodes:
        if node.op == "call_method" and node.target == "copy_":
            node.op, node.target = "call_function", torch.ops.aten.copy_.default
        if node.op == "placeholder":
            value = node.meta["example_value"]
            if isinstance(value, FakeTensor) and (value.dim() or value.dtype != torch.float64):
                with value.fake_mode:
                    its = value.shape, value.stride()
                    value = torch.empty_strided(*its, dtype=value.dtype, device="cuda")
            inputs.append(value)
    graph.recompile()
    with pretended_gpu() as code, WithoutDevice():
        compile_fx(graph, inputs, config_patches=options)
    return code[-1]


@contextmanager
def pretended_gpu() -> Iterator[list[str]]:
    """Let Inductor generate code for an H100, and yield the list that it goes to."""
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.graph import GraphLowering

    use_driver()
    code: list[str] = []

    def same(value: object) -> Callable[..., object]:
        return lambda *_, **__: value

    on_gpu = {"get_device_properties": H100, "get_compute_capability": 90, "current_device": 0}
    on_gpu |= {"is_available": True, "device_count": 1}
    in_torch = {
        "torch.cuda.is_available": True,
        "torch.cuda.device_count": 1,
        "torch.cuda.current_device": 0,
        "torch.cuda.get_device_properties": H100,
        "torch.cuda.get_device_capability": (9, 0),
        "torch.cuda.get_rng_state": torch.zeros(8, dtype=torch.uint8),
        "torch.cuda.set_rng_state": None,
        "torch.cuda.synchronize": None,
        "torch.cuda._exchange_device": 0,
        "torch.cuda._maybe_exchange_device": 0,
        "torch._inductor.scheduler.has_triton": True,
        # Patterns of attention and the like are traced on the device.
        "torch._inductor.fx_passes.joint_graph.lazy_init": None,
        "torch._inductor.fx_passes.post_grad.lazy_init": None,
    }
    patches: list[Any] = [mock.patch(name, same(value)) for name, value in in_torch.items()]
    patches += [
        mock.patch.object(CudaInterface, k, staticmethod(same(v))) for k, v in on_gpu.items()
    ]
    properties = staticmethod(same(H100))
    patches += [
        mock.patch.object(CudaInterface.Worker, "get_device_properties", properties),
        mock.patch.object(GraphLowering, "save_output_code", staticmethod(code.append)),
        mock.patch.object(AsyncCompile, "triton", same(SimpleNamespace(run=same(None)))),
        mock.patch("torch._C._cuda_getCurrentRawStream", same(0), create=True),
        mock.patch("torch.version.cuda", "13.0"),
    ]
    settings = {"compile_threads": 1, "force_disable_caches": True}
    with ExitStack() as stack:
        for patch in [*patches, torch._inductor.config.patch(settings)]:
            stack.enter_context(patch)
        yield code


def use_driver() -> None:
    """Tell Triton that there is an H100."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    driver.set_active(SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32)))


def parsed(code: str) -> list[Kernel]:
    """Return the kernels that generated code launches, in their order."""
    made = {kernel.name: kernel for kernel in map(_kernel, code.split("async_compile.triton(")[1:])}
    return [made[name] for name in re.findall(r"^ +(triton_\w+)\.run\(", code, re.MULTILINE)]


def _kernel(source: str) -> Kernel:
    name = source.split("'")[1]
    sizes = re.search(r"size_hints=\{([^}]*)\}", source)
    signature = re.search(r"'signature': \{([^}]*)\}", source)
    assert sizes
    assert signature
    elements = 1
    for size in re.findall(r": (\d+)", sizes[1]):
        elements *= int(size)
    types = dict(re.findall(r"'(\w+)': '\*(\w+)'", signature[1]))
    # An index that varies fastest: elements of a row, or all elements.
    fastest = "r0_" if "'r0_'" in sizes[1] else "x0"
    found = re.findall(r"tl\.(?:load|store)\((\w+) \+ \(([^\n]*)", source)
    moved = [
        _BYTES[types[pointer]] for pointer, index in found if fastest in index.split("mask")[0]
    ]
    return Kernel(name, elements, sum(moved))

"""Blocks hold each element once, in order, and cost no more memory than they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile

from momo_wrap import MoMoWrapper
from momo_wrap import blocks as blocks_module
from momo_wrap.blocks import blocks, cpu_block_elements
from momo_wrap.reductions import accumulation_dtype, total

shapes = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=6)


@given(shapes=shapes, limit=st.integers(1, 40), transpose=st.booleans())
def test_blocks_cover_every_element_once_and_aligned(
    shapes: list[tuple[int, ...]], limit: int, transpose: bool
) -> None:
    counter = torch.arange(sum(torch.Size(shape).numel() for shape in shapes)).double()
    left, start = [], 0
    for shape in shapes:
        size = torch.Size(shape).numel()
        left.append(counter[start : start + size].view(shape))
        start += size
    right = [2 * t for t in left]
    if transpose:  # the same shapes, laid out differently in memory
        right = [t.mT.contiguous().mT if t.dim() > 1 else t for t in right]
    owners = torch.arange(len(shapes)).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_module, "_CPU_BLOCK_ELEMENTS", limit)
        found = list(blocks({"left": left, "right": right}, {"owner": owners}))
    values = torch.cat([block.flat("left") for block in found])
    assert torch.equal(values.sort().values, counter)
    expected_owner = torch.cat([torch.full((t.numel(),), float(i)) for i, t in enumerate(left)])
    for block in found:
        assert block.flat("left").numel() <= max(limit, 1)
        assert torch.equal(block.flat("right"), 2 * block.flat("left"))
        owner = block.flat("left") * 0.0 + block.scalar("owner")
        assert torch.equal(owner.float(), expected_owner[block.flat("left").long()])


@given(
    shapes=shapes, limit=st.integers(1, 40), dtype=st.sampled_from([torch.float32, torch.bfloat16])
)
def test_write_back_reaches_every_element(
    shapes: list[tuple[int, ...]], limit: int, dtype: torch.dtype
) -> None:
    params = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    params = [t.mT.contiguous().mT if t.dim() > 1 else t for t in params]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_module, "_CPU_BLOCK_ELEMENTS", limit)
        for block in blocks({"param": params}, {}):
            values = block.flat("param")
            values.add_(1.0)
            block.write_back("param", values)
    assert all(torch.equal(t, torch.ones_like(t)) for t in params)


def test_negated_columns() -> None:
    (block,) = blocks({"param": [torch.ones(2)], "grad": [torch.ones(2)]}, {}, frozenset({"grad"}))
    assert torch.equal(block.flat("grad"), -torch.ones(2))
    assert torch.equal(block.flat("param"), torch.ones(2))


def test_accumulation_dtype() -> None:
    assert accumulation_dtype(torch.bfloat16) is torch.float32
    assert accumulation_dtype(torch.float16) is torch.float32
    assert accumulation_dtype(torch.complex64) is torch.float32
    assert accumulation_dtype(torch.float64) is torch.float64
    assert accumulation_dtype(torch.complex128) is torch.float64


def test_total_of_nothing_is_zero() -> None:
    assert total([], torch.device("cpu"), torch.float64) == 0


def peak_mib(optimizer: Optimizer) -> float:
    """The most memory that a step had allocated at once beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        optimizer.step(loss=1.0)  # type: ignore[call-overload]
    events = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak / 2**20


@pytest.mark.parametrize(
    ("kind", "dtype", "weight_decay"),
    [
        (SGD, torch.float32, 0.1),
        (SGD, torch.bfloat16, 0.0),
        (AdamW, torch.float32, 0.0),
        (AdamW, torch.bfloat16, 0.1),
    ],
    ids=str,
)
def test_temporary_memory(kind: type[Optimizer], dtype: torch.dtype, weight_decay: float) -> None:
    """A step over 40 M parameters allocates less than 1/20 of a copy of them."""
    shapes = [(6000, 4000), (4000, 2000), *[(1000, 1000)] * 7, *[(100,)] * 1000]
    params = [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    for param in params:
        param.grad = torch.zeros_like(param)
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": weight_decay, "fused": True}
    optimizer = MoMoWrapper(kind(params, **settings), compiled=False)
    optimizer.step(loss=1.0)
    assert peak_mib(optimizer) < 8.0


def test_small_tensors_fill_a_block() -> None:
    """Small tensors share blocks that are as full as they may be, wherever large ones lie."""
    sizes = [3, 3, 50, 3, 3, 3, 13, 3, 3, 3, 3]
    params = [torch.full((size,), float(i)) for i, size in enumerate(sizes)]
    scalars = {"owner": torch.arange(len(sizes), dtype=torch.float64)}
    with cpu_block_elements(12):
        found = list(blocks({"param": params}, scalars, whole=True))
    assert [block.flat("param").numel() for block in found] == [50, 13, 12, 12, 3]
    for block in found:
        values = block.flat("param")
        assert torch.equal(values, values * 0.0 + block.scalar("owner"))


def test_one_value_for_all_parameters() -> None:
    """Numbers stay numbers; tensors come in the dtype of computation."""
    columns = {"param": [torch.zeros(3), torch.zeros(2)]}
    shared: dict[str, float | torch.Tensor] = {
        "number": 0.5,
        "tensor": torch.tensor(2.0, dtype=torch.float64),
    }
    (block,) = blocks(columns, shared)
    assert block.scalar("number") == 0.5
    value = block.scalar("tensor")
    assert isinstance(value, torch.Tensor)
    assert (value.dtype, value.shape, float(value)) == (torch.float32, (), 2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_overwriting_a_column(dtype: torch.dtype) -> None:
    """Also where `flat` would have been a view."""
    for shapes in ([(4,)], [(2, 3), (1,)]):
        tensors = [torch.zeros(shape, dtype=dtype) for shape in shapes]
        (block,) = blocks({"param": tensors}, {})
        block.write("param", torch.arange(block.flat("param").numel()).float())
        assert torch.cat([t.reshape(-1) for t in tensors]).tolist() == list(
            range(sum(t.numel() for t in tensors))
        )

"""Blocks hold each element once, in order, and cost no more memory than they say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile

from momo_wrap import MoMoWrapper
from momo_wrap.engine.blocks import Block, Packing
from momo_wrap.engine.kind import Kind
from momo_wrap.engine.plan import Cell
from momo_wrap.engine.scalars import Scalar, accumulation_dtype
from momo_wrap.testing.blocks import block_elements

shapes = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=6)


def blocks(
    columns: Mapping[str, list[Tensor]],
    scalars: Mapping[str, Scalar | list[float]],
    negated: frozenset[str] = frozenset(),
    *,
    groups: int = 1,
    limit: int = 2**18,
    whole: bool = False,
) -> list[Block]:
    """Return the blocks of columns whose parameters alternate between groups."""
    params = next(iter(columns.values()))
    cells = [
        Cell(group, params[group::groups], list(range(len(params)))[group::groups], 1)
        for group in range(min(groups, len(params)))
    ]
    with block_elements(limit):
        kind = Kind(cells, whole=whole)
        return kind.blocks(
            {name: [column[i] for i in kind.positions] for name, column in columns.items()},
            {
                name: torch.tensor([value[i] for i in kind.positions], dtype=torch.float64)
                if isinstance(value, list)
                else value
                for name, value in scalars.items()
            },
            negated,
        )


def group_of_each_element(block: Block) -> Tensor:
    lengths = [block.numel]
    if block.packing is not None and block.packing.lengths is not None:
        lengths = block.packing.lengths.tolist()
    return torch.repeat_interleave(torch.tensor(block.groups), torch.tensor(lengths))


@given(
    shapes=shapes, limit=st.integers(1, 40), transpose=st.booleans(), groups=st.sampled_from([1, 3])
)
def test_blocks_cover_every_element_once_and_aligned(
    shapes: list[tuple[int, ...]], limit: int, transpose: bool, groups: int
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
    owners = [float(i) for i in range(len(shapes))]
    columns = {"left": left, "right": right}
    found = blocks(columns, {"owner": owners}, groups=groups, limit=limit)
    values = torch.cat([block.flat("left") for block in found])
    assert torch.equal(values.sort().values, counter)
    expected_owner = torch.cat([torch.full((t.numel(),), float(i)) for i, t in enumerate(left)])
    for block in found:
        assert block.flat("left").numel() == block.numel <= max(limit, 1)
        assert torch.equal(block.flat("right"), 2 * block.flat("left"))
        owner = block.flat("left") * 0.0 + block.scalar("owner")
        assert torch.equal(owner.float(), expected_owner[block.flat("left").long()])
        assert torch.equal(group_of_each_element(block), owner.long() % groups)


@given(
    shapes=shapes, limit=st.integers(1, 40), dtype=st.sampled_from([torch.float32, torch.bfloat16])
)
def test_write_back_reaches_every_element(
    shapes: list[tuple[int, ...]], limit: int, dtype: torch.dtype
) -> None:
    params = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    params = [t.mT.contiguous().mT if t.dim() > 1 else t for t in params]
    for block in blocks({"param": params}, {}, limit=limit):
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


def peak_mib(optimizer: Optimizer) -> float:
    """The peak memory of a step, beyond the memory that was allocated before."""
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


@pytest.mark.parametrize("groups", [1, 2])
def test_small_tensors_fill_a_block(groups: int) -> None:
    """Small tensors share blocks that are as full as they may be, wherever large ones lie."""
    sizes = [3, 3, 50, 3, 3, 3, 13, 3, 3, 3, 3]
    params = [torch.full((size,), float(i)) for i, size in enumerate(sizes)]
    owners = [float(i) for i in range(len(sizes))]
    found = blocks({"param": params}, {"owner": owners}, groups=groups, limit=12, whole=True)
    assert [block.numel for block in found] == [50, 13, 12, 12, 3]
    for block in found:
        values = block.flat("param")
        assert torch.equal(values, values * 0.0 + block.scalar("owner"))


@pytest.mark.parametrize("sizes", [[2], [3] * 20, [1, 4, 4, 0, *[2] * 9, 5]], ids=str)
def test_values_per_tensor_are_spread_over_its_elements(sizes: list[int]) -> None:
    """Also where the same packing has spread other values since."""
    packing = Packing(sizes, [0] * len(sizes), torch.device("cpu"), torch.float64)
    values = torch.arange(2.0 * len(sizes), dtype=torch.float64).view(2, -1)
    first, second = packing.spread(values), packing.spread(-values)
    expected = values.repeat_interleave(torch.tensor(sizes), dim=1)
    assert torch.equal(first, expected)
    assert torch.equal(second, -expected)


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
        block.forget()
        assert torch.equal(block.flat("param"), torch.arange(float(block.numel)))
        (again,) = blocks({"param": tensors}, {})
        assert torch.equal(again.flat("param"), block.flat("param"))

"""What a step would ask of a GPU: counted as by hand, and as the page says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from docs.performance.contenders import ADAM, SGD_M
from docs.performance.fake_cuda import Counter, fake_cuda, multi_tensor_launches
from docs.performance.launches import COUNTED, Count, contenders, count, table
from docs.performance.triton_code import parsed

DOCS = Path(__file__).parent.parent / "docs"
RESULT = json.loads((DOCS / "performance/results/launches.json").read_text())
PAGE = (DOCS / "performance.md").read_text()


def counted(operation: Callable[[], Any]) -> Counter:
    counter = Counter()
    with counter:
        operation()
    return counter


@pytest.fixture
def on_cuda() -> Any:
    with fake_cuda():
        yield


OPERATIONS: dict[str, tuple[Callable[[Tensor], Any], int, int]] = {
    "views": (lambda x: x.view(10, 10).t()[0], 0, 0),
    "allocation": (lambda x: torch.empty_like(x), 0, 0),
    "new tensor": (lambda x: x + 1, 1, 800),
    "in place": (lambda x: x.add_(1), 1, 800),
    "overwritten": (lambda x: x.fill_(1.0), 1, 400),
    "copied": (lambda x: x.copy_(x.new_empty(100)), 1, 800),
    "out=": (lambda x: torch.div(x, x, out=x), 1, 1200),
    "sum": (lambda x: x.sum(), 1, 404),
    "dot": (lambda x: torch.dot(x, x), 2, 804),
    "cat": (lambda x: torch.cat([x] * 129), 2, 2 * 129 * 400),
    "expanded": (lambda x: x.unsqueeze(1).expand(-1, 50).sum(), 1, 404),
    "lists": (lambda x: torch._foreach_mul_([x, x], 2.0), 1, 1600),
    "on the host": (lambda _: torch.ones(3) + 1, 0, 0),
    "from the host": (lambda x: torch.ones(3).to(x.device), 1, 12),
}


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(
    ("operation", "launches", "moved"), OPERATIONS.values(), ids=list(OPERATIONS)
)
def test_operations_counted_by_hand(
    operation: Callable[[Tensor], Any], launches: int, moved: int
) -> None:
    x = torch.empty(100, device="cuda")
    found = counted(lambda: operation(x))
    assert (found.launches, found.bytes, found.synchronizations) == (launches, moved, 0)


@pytest.mark.usefixtures("on_cuda")
def test_synchronizations() -> None:
    x = torch.empty(100, device="cuda")
    assert counted(lambda: x.sum().item()).synchronizations == 1
    assert counted(lambda: x.cpu()).synchronizations == 1
    assert counted(lambda: torch.ones(()).item()).synchronizations == 0
    assert counted(lambda: bool(x.sum() > 0)).synchronizations == 1


@pytest.mark.usefixtures("on_cuda")
def test_temporary_memory() -> None:
    x = torch.empty(100, device="cuda")

    def two_at_once() -> None:
        y = x + 1
        y = y.view(10, 10) * 2  # the first is there until the second is
        del y
        x.add_(1)
        x + 1

    assert counted(two_at_once).temporary == 800


def test_launches_on_lists_of_tensors() -> None:
    assert multi_tensor_launches([100] * 10_000, 5) == 48  # of 210 tensors
    assert multi_tensor_launches([100] * 770, 1) == 1
    assert multi_tensor_launches([100] * 771, 1) == 2
    assert multi_tensor_launches([2240 * 65536], 4) == 1  # of 2240 chunks
    assert multi_tensor_launches([2240 * 65536 + 1, 5], 4) == 2
    assert multi_tensor_launches([0, 0], 4) == 0


CODE = """
triton_red_a_0 = async_compile.triton('triton_red_a_0', '''
    size_hints={'x': 1024, 'r0_': 256},
    triton_meta={'signature': {'in_ptr0': '*fp32', 'in_ptr1': '*bf16', 'out_ptr0': '*fp32'}},
        tmp0 = tl.load(in_ptr0 + (r0_1 + 256*x0), r0_mask & xmask)
        tmp1 = tl.load(in_ptr1 + (r0_1 + 256*x0), r0_mask & xmask)
        tmp2 = tl.load(in_ptr0 + (0))
        tl.store(in_ptr0 + (r0_1 + 256*x0), tmp4, r0_mask & xmask)
    tl.store(out_ptr0 + (x0), tmp2, xmask)
''', device_str='cuda')
triton_poi_b_1 = async_compile.triton('triton_poi_b_1', '''
    size_hints={'x': 512},
    triton_meta={'signature': {'in_ptr0': '*fp32', 'out_ptr0': '*fp64'}},
    tmp0 = tl.load(in_ptr0 + (x0), xmask)
    tl.store(out_ptr0 + (x0), tmp0, xmask)
''', device_str='cuda')
        triton_red_a_0.run(a, b, c, stream=s)
        triton_poi_b_1.run(a, b, stream=s)
        triton_red_a_0.run(d, e, f, stream=s)
"""


def test_generated_code_is_read() -> None:
    found = [(k.name[-3:], k.elements, k.bytes_per_element) for k in parsed(CODE)]
    of_rows, of_elements = ("a_0", 1024 * 256, 10), ("b_1", 512, 12)
    assert found == [of_rows, of_elements, of_rows]


def test_bare_steps_move_what_they_must() -> None:
    """Read g, m, v, p and write m, v, p; read g, B, p and write B, p. One launch is the counts'."""
    for family, launches, moved in ((ADAM, 2, 28.0), (SGD_M, 1, 20.0)):
        name = family.bare("fused")
        make, takes_loss = contenders(family, compiled=False)[name]
        found = count(name, make, takes_loss, COUNTED["transformer"])
        assert (found.launches, round(found.bytes_per_param, 1)) == (launches, moved)


@pytest.mark.parametrize("name", ["AdamW(fused) wrapped", "SGD-M(foreach) wrapped"])
def test_result_is_that_of_the_code(name: str) -> None:
    case = COUNTED["tiny"]
    family = ADAM if name.startswith("Adam") else SGD_M
    make, takes_loss = contenders(family, compiled=False)[name]
    known = {its["optimizer"]: its for its in RESULT["cases"]["tiny"]["counts"]}
    assert count(name, make, takes_loss, case) == Count(**known[name])


def test_page_has_the_result() -> None:
    for case in RESULT["cases"].values():
        found = [Count(**its) for its in case["counts"]]
        assert table(found, case["elements"]) in PAGE


def test_wrapped_steps_never_wait() -> None:
    for case in RESULT["cases"].values():
        for its in case["counts"]:
            waits = "momo-opt" in its["optimizer"]
            assert (its["synchronizations"] > 0) == waits, its


def test_compiled_passes_move_what_they_must() -> None:
    """And copies of small tensors. A wrong θ° costs one more reading of x, B and v, and a write."""
    known = {its["optimizer"]: its for its in RESULT["cases"]["transformer"]["counts"]}
    for base, columns in (("AdamW(fused)", (7, 9, 11)), ("SGD-M(fused)", (5, 6, 8))):
        for form, its in zip(("compiled", "two passes", "corrected"), columns, strict=True):
            moved = known[f"{base} wrapped, {form}"]["bytes_per_param"]
            assert 4 * its <= moved < 1.015 * 4 * its

"""CUDA graphs: a step does nothing that a capture forbids, and a replay does what the step did.

Without a GPU, the steps are taken on fake tensors, which know their device but hold no values.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, NAdam, Optimizer, RAdam, RMSprop
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from docs.performance.fake_cuda import fake_cuda as pretended_cuda
from momo_wrap import MoMo, MoMoStar, MoMoWrapper, StepRule, TrustedMoMo
from momo_wrap.fast import batches, correction, kernels
from tests.problems import last_step, take_step
from tests.releases import TORCH

Make = Callable[[Any], Optimizer]

CAPTURABLE: dict[str, Make] = {
    "SGD": lambda p: SGD(p, lr=0.5, momentum=0.9),
    "SGD-nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "AdamW": lambda p: AdamW(p, lr=0.05, capturable=True),
    "AdamW-single": lambda p: AdamW(p, lr=0.05, capturable=True, foreach=False),
    "AdamW-fused": lambda p: AdamW(p, lr=0.05, capturable=True, fused=True),
    "RMSprop": lambda p: RMSprop(p, lr=0.05, capturable=True),
    "NAdam": lambda p: NAdam(p, lr=0.05, capturable=True),
    "RAdam": lambda p: RAdam(p, lr=0.05, capturable=True),
}
# Before 2.6 torch can't take fused steps on fake tensors.
FAKEABLE = {
    name: make for name, make in CAPTURABLE.items() if TORCH >= (2, 6) or name != "AdamW-fused"
}
RULES = {"bare": None, "MoMoStar": MoMoStar()}


class Obstacles(TorchDispatchMode):
    """Notes what can't be captured: visits to the host, and tensors there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Noted first: a visit raises on fake tensors.
        if func.overloadpacket.__name__ in {"_local_scalar_dense", "nonzero", "equal"}:
            self.seen.append(str(func))
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.seen.append(str(func))
        return result


@pytest.fixture
def fake_cuda() -> Iterator[None]:
    with pretended_cuda():
        yield


def optimizer_on_cuda(make: Make, rule: StepRule | None) -> Optimizer:
    shapes = [(70, 30), (3,), (600, 500)]
    params = [nn.Parameter(torch.empty(shape, device="cuda")) for shape in shapes]
    bare = make(params)
    return bare if rule is None else MoMoWrapper(bare, rule)


# A capture comes after warm-up steps, which make all lasting tensors.
WARM_UP = 2


def obstacles(optimizer: Optimizer, steps: int = 3, warm_up: int = WARM_UP) -> list[str]:
    """The records of the steps after the warm-up."""
    mode = Obstacles()
    for step in range(warm_up + steps):
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.empty_like(param)
        loss = torch.empty((), device="cuda")
        with mode if step >= warm_up else contextlib.nullcontext():
            take_step(optimizer, loss)
    return mode.seen


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("make", FAKEABLE.values(), ids=FAKEABLE)
def test_nothing_in_a_step_forbids_a_capture(make: Make, rule: StepRule | None) -> None:
    assert obstacles(optimizer_on_cuda(make, rule)) == []


@pytest.fixture
def pretended_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[mock.MagicMock]:
    """Run passes as they are, uncompiled; yield the kernel that corrects moves, which is none."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(kernels, "can_compile", lambda _: True)
    monkeypatch.setattr(correction, "_has_triton", lambda: True)
    module = mock.MagicMock()
    monkeypatch.setitem(sys.modules, "momo_wrap.fast.correction_kernel", module)
    for cached in (kernels._kernel, batches._filling):
        cached.cache_clear()
    yield module.correction_kernel.__getitem__
    for cached in (kernels._kernel, batches._filling):
        cached.cache_clear()


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("name", ["SGD", "SGD-nesterov", *(n for n in FAKEABLE if "Adam" in n)])
def test_nor_do_compiled_passes(name: str, pretended_kernels: mock.MagicMock) -> None:
    """Nor the correction of moves ahead, whose tables are made in the third step."""
    params = [nn.Parameter(torch.empty(size, device="cuda")) for size in (2**20, 2**20, 7, 2**8)]
    optimizer = MoMoWrapper(FAKEABLE[name](params), compiled=True)
    assert obstacles(optimizer, warm_up=3) == []
    assert kernels.failures == {}
    corrected = name == "SGD" or name.startswith(("AdamW", "RAdam"))
    assert pretended_kernels.call_count == (4 if corrected else 0)


@pytest.mark.usefixtures("fake_cuda")
def test_a_rule_that_measures_some_steps_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay would measure each step, or none."""
    optimizer = optimizer_on_cuda(CAPTURABLE["AdamW"], TrustedMoMo())
    assert obstacles(optimizer) == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    message = "TrustedMoMo measures some of the steps, but a CUDA graph would replay one of them"
    with pytest.raises(RuntimeError, match=message):
        take_step(optimizer, torch.empty((), device="cuda"))
    optimizer.rule = TrustedMoMo(-math.inf)  # type: ignore[attr-defined]
    take_step(optimizer, torch.empty((), device="cuda"))


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("name", ["AdamW", "NAdam"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_nor_does_a_learning_rate_on_the_device(name: str, rule: StepRule | None) -> None:
    optimizer = optimizer_on_cuda(CAPTURABLE[name], rule)
    # An optimizer that is made with it would look at its value, once.
    optimizer.param_groups[0]["lr"] = torch.full((), 0.05, device="cuda")
    assert obstacles(optimizer) == []


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_base_that_is_not_capturable_is_seen(rule: StepRule | None) -> None:
    seen = obstacles(optimizer_on_cuda(lambda p: AdamW(p, lr=0.05), rule))
    assert any("_local_scalar_dense" in name for name in seen)


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize(
    "forbidden",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x * torch.tensor(2.0),
        lambda x: torch.zeros(x.shape),
    ],
    ids=["visit", "to the host", "from the host", "mixed", "on the host"],
)
def test_obstacles_are_seen(forbidden: Callable[[Tensor], Any]) -> None:
    mode = Obstacles()
    # Fake tensors have no value, and raise this error if one is requested.
    with mode, contextlib.suppress(RuntimeError):
        forbidden(torch.empty(3, device="cuda"))
    assert mode.seen


@pytest.mark.parametrize("rule", [MoMo(0.1), MoMoStar()], ids=["MoMo", "MoMoStar"])
@pytest.mark.parametrize("name", ["SGD", "AdamW-fused", "RMSprop"])
def test_everything_that_is_kept_stays_where_it_is(name: str, rule: StepRule) -> None:
    """From the second step on, the memory of the wrapper too: the first makes the state."""
    uncapturable = {"capturable": False}
    params = [torch.randn(70, 30, requires_grad=True), torch.randn(3, requires_grad=True)]
    base = CAPTURABLE[name](params)
    base.param_groups[0].update(uncapturable)  # it is asked for on accelerators alone
    optimizer = MoMoWrapper(base, rule)
    places = []
    for _ in range(5):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step(loss=torch.rand(()))
        memory = optimizer._memory
        kept: list[Any] = [*params, memory.averages, *memory.rule.values()]
        kept += [value for entries in optimizer.state.values() for value in entries.values()]
        places.append([value.data_ptr() for value in kept if isinstance(value, Tensor)])
    assert len(places[0]) > len(params) + len(optimizer._memory.rule)
    assert all(place == places[1] for place in places[2:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures on a GPU")
@pytest.mark.parametrize("rule", [MoMo(0.1), MoMoStar()], ids=["MoMo", "MoMoStar"])
@pytest.mark.parametrize("make", CAPTURABLE.values(), ids=CAPTURABLE)
def test_replayed_steps_are_the_eager_ones(make: Make, rule: StepRule) -> None:
    """The recipe of torch's notes on CUDA graphs: warm up on a side stream, capture, replay."""

    def training() -> tuple[nn.Module, MoMoWrapper]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).cuda()
        return model, MoMoWrapper(make(model.parameters()), rule)

    data = torch.randn(26, 64, 6, generator=torch.Generator().manual_seed(1)).cuda()
    static = data[0].clone()

    def train_step(model: nn.Module, optimizer: MoMoWrapper) -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(static), static[:, :2].tanh())
        loss.backward()
        optimizer.step(loss=loss)
        return loss.detach()

    captured, eager = training(), training()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for batch in data[:3]:  # which make the state, and are training steps like all others
            static.copy_(batch)
            train_step(*captured)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured_loss = train_step(*captured)
    expected = []
    for batch in data[:3]:
        static.copy_(batch)
        train_step(*eager)
    for batch in data[3:23]:
        static.copy_(batch)
        graph.replay()
        expected.append((captured_loss.clone(), last_step(captured[1]).theta.clone()))
        loss = train_step(*eager)
        torch.testing.assert_close(expected[-1], (loss, last_step(eager[1]).theta))
    for left, right in zip(captured[0].parameters(), eager[0].parameters(), strict=True):
        torch.testing.assert_close(left, right)
    assert len({float(theta) for _, theta in expected}) > 1

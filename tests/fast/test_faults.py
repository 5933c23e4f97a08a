"""What compiled passes must not be taken in by: each of these once gave a wrong step."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.flop_counter import FlopCounterMode

from momo_wrap import MoMoWrapper
from momo_wrap.adapters import AdamAdapter, Block
from tests.problems import kept

# When torch's compiler is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")


def params() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
        for size in (40, 7)
    ]


def step(optimizer: Optimizer) -> None:
    wrapped: Any = optimizer
    loss = torch.zeros((), dtype=torch.float64)
    for param in optimizer.param_groups[0]["params"]:
        param.grad = param.detach() ** 3
        loss += (param.detach() ** 4).sum() / 4
    wrapped.step(loss=loss)


def wrapped_adamw(compiled: bool, adapter: AdamAdapter | None = None) -> MoMoWrapper:
    return MoMoWrapper(AdamW(params(), lr=1.0), adapter=adapter, compiled=compiled)


def flat(optimizer: Optimizer) -> Tensor:
    return torch.cat([param.detach() for param in optimizer.param_groups[0]["params"]])


def assert_same_steps(left: MoMoWrapper, right: MoMoWrapper, steps: int = 4) -> None:
    for _ in range(steps):
        step(left)
        step(right)
    torch.testing.assert_close(flat(left), flat(right), rtol=1e-12, atol=0.0)
    scalars = [kept(optimizer)[0]["momo_displacement"] for optimizer in (left, right)]
    torch.testing.assert_close(scalars[0], scalars[1], rtol=1e-9, atol=0.0)


class Scaled(AdamAdapter):
    """Makes another direction than the update in the fast path is for."""

    def preconditioned(self, block: Block) -> Tensor:
        return super().preconditioned(block) * 0.25


def test_subclass_that_reads_in_another_way_is_not_compiled() -> None:
    assert_same_steps(wrapped_adamw(True, Scaled()), wrapped_adamw(False, Scaled()))


def test_under_a_dispatch_mode() -> None:
    """Dynamo then runs a kernel as it is, and raises afterwards."""
    ours, theirs = wrapped_adamw(True), wrapped_adamw(False)
    step(ours)
    step(theirs)
    with FlopCounterMode(display=False):
        assert_same_steps(ours, theirs, steps=1)
    assert_same_steps(ours, theirs)


def test_with_dynamo_switched_off() -> None:
    import torch._dynamo.config as dynamo

    with dynamo.patch(disable=True):
        assert_same_steps(wrapped_adamw(True), wrapped_adamw(False))


def test_step_that_was_patched_into_the_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    own = SGD.step

    def patched(self: SGD, *args: Any) -> Any:
        calls.append(1)
        return own(self, *args)

    optimizer = MoMoWrapper(SGD(params(), lr=0.1, momentum=0.9), compiled=True)
    monkeypatch.setattr(SGD, "step", patched)
    for _ in range(3):
        step(optimizer)
    assert len(calls) == 3


def test_another_default_device() -> None:
    ours, theirs = wrapped_adamw(True), wrapped_adamw(False)
    step(ours)
    step(theirs)
    with torch.device("meta"):
        ours_loss = torch.zeros((), dtype=torch.float64, device="cpu")
        ours.step(loss=ours_loss)
    theirs.step(loss=torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-12, atol=0.0)


def test_state_that_is_missing_counts_no_step() -> None:
    """The base raises its own error for the missing entry."""
    optimizer = wrapped_adamw(True)
    for _ in range(2):
        step(optimizer)
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(KeyError, match="max_exp_avg_sq"):
        step(optimizer)
    assert all(float(state["step"]) == 2.0 for state in optimizer.state.values())


def test_another_thread_that_compiles_changes_nothing() -> None:
    """`torch.compiler.is_compiling()` is true in all threads while one of them compiles."""
    done = threading.Event()

    def compile_again_and_again() -> None:
        while not done.is_set():
            fresh: Any = eval("lambda x: x.sin() + 1.0")  # with code of its own
            compiled: Any = torch.compile(fresh, backend="eager")
            compiled(torch.zeros(3))

    calls: list[int] = []
    base = AdamW(params(), lr=1e-3, fused=True)
    base.register_step_pre_hook(lambda *_: calls.append(1))
    optimizer = MoMoWrapper(base, compiled=False)
    thread = threading.Thread(target=compile_again_and_again)
    thread.start()
    try:
        for _ in range(40):
            step(optimizer)
    finally:
        done.set()
        thread.join()
    assert len(calls) == 40

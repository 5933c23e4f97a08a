"""Where compiled passes can't stand in for the base, it steps itself; the results are the same."""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from momo_wrap import MoMoWrapper, adapter_for
from momo_wrap.adapters import AdamAdapter
from momo_wrap.checks.arguments import Compiled, check_compiled
from momo_wrap.engine.passes import Engine
from momo_wrap.fast import choice, kernels
from momo_wrap.fast.choice import choose_engine
from momo_wrap.fast.engine import CompiledEngine, UpdatingEngine
from momo_wrap.fast.stepping import SteppingEngine
from tests.cases import ALGORITHMS, Case
from tests.mixture import COMPILED, FEW, distance, set_gradients, snapshot, train, wrapped
from tests.releases import TORCH

pytestmark = pytest.mark.usefixtures("small_blocks")

FEW_CASES = pytest.mark.parametrize("case", FEW, ids=str)
Change = Callable[[MoMoWrapper, int], None]


def compiled_steps(
    make: Callable[[bool], MoMoWrapper], change: Change, blocks: list[int], steps: int = 6
) -> list[bool]:
    """Compare with the uncompiled passes; return which steps were taken with compiled ones."""
    ends = []
    taken: list[bool] = []
    for compiled in (False, True):
        optimizer = make(compiled)
        taken = []
        for step in range(steps):
            set_gradients(optimizer, step)
            change(optimizer, step)
            del blocks[:]
            optimizer.step(loss=700.0)
            taken.append(bool(blocks))
        assert compiled or not any(taken)
        ends.append(snapshot(optimizer))
    assert distance(*ends) < 1e-12
    return taken


def small_ones(optimizer: Optimizer) -> list[Tensor]:
    """Return parameters that share a block with others."""
    first, second = (group["params"] for group in optimizer.param_groups)
    return [first[2], second[1]]


@FEW_CASES
def test_a_first_gradient_that_comes_late(case: Case, compiled_blocks: list[int]) -> None:
    """From then on the parameters of a block have taken different numbers of steps."""

    def change(optimizer: MoMoWrapper, step: int) -> None:
        for param in small_ones(optimizer) if step < 3 else []:
            param.grad = None

    taken = compiled_steps(lambda c: wrapped(case, c), change, compiled_blocks)
    assert taken == [False, True, True, False, True, True]


@FEW_CASES
def test_gradients_that_come_and_go(case: Case, compiled_blocks: list[int]) -> None:
    def change(optimizer: MoMoWrapper, step: int) -> None:
        for param in small_ones(optimizer) if step in (2, 3) else []:
            param.grad = None

    taken = compiled_steps(lambda c: wrapped(case, c), change, compiled_blocks)
    assert taken == [False, True, True, True, True, True]


Registers = tuple[Callable[..., Any], Callable[..., Any]]


def with_hooks(
    case: Case, first: int, hooks: Callable[[MoMoWrapper], Registers], compiled_blocks: list[int]
) -> tuple[list[bool], list[Optimizer]]:
    """Return which steps were compiled, and what hooks saw, there from `first` to step 4."""
    stepped: list[Optimizer] = []
    handles: list[Any] = []

    def note(stepping: Optimizer, *_: object) -> None:
        stepped.append(stepping)

    def change(optimizer: MoMoWrapper, step: int) -> None:
        if step == first:
            handles.extend(register(note) for register in hooks(optimizer))
        while step == 4 and handles:
            handles.pop().remove()

    return compiled_steps(lambda c: wrapped(case, c), change, compiled_blocks), stepped


@FEW_CASES
def test_hooks_of_the_base_run(case: Case, compiled_blocks: list[int]) -> None:
    def own(optimizer: MoMoWrapper) -> Registers:
        return optimizer.base.register_step_pre_hook, optimizer.base.register_step_post_hook

    taken, stepped = with_hooks(case, 2, own, compiled_blocks)
    assert taken == [False, True, False, False, True, True]
    assert sum(not isinstance(o, MoMoWrapper) for o in stepped) == len(stepped) == 2 * 2 * 2


@FEW_CASES
def test_hooks_of_all_optimizers_run_once_and_change_nothing(
    case: Case, compiled_blocks: list[int]
) -> None:
    """For the wrapper, whose step the base's is a part of."""

    def every(_: MoMoWrapper) -> Registers:
        return register_optimizer_step_pre_hook, register_optimizer_step_post_hook

    taken, stepped = with_hooks(case, 0, every, compiled_blocks)
    assert taken == [False, True, True, True, True, True]
    assert len(stepped) == 2 * 2 * 4
    assert all(isinstance(optimizer, MoMoWrapper) for optimizer in stepped)


@pytest.mark.parametrize("scheduled", [False, True], ids=["alone", "under a scheduler"])
@FEW_CASES
def test_a_step_that_was_patched_in_is_called(
    case: Case, scheduled: bool, compiled_blocks: list[int]
) -> None:
    """Also where a scheduler has wrapped it in turn."""
    calls: list[Optimizer] = []

    def patched(self: Optimizer) -> None:
        calls.append(self)
        type(self).step(self)

    def make(compiled: bool) -> MoMoWrapper:
        optimizer = wrapped(case, compiled)
        optimizer.base.step = types.MethodType(patched, optimizer.base)  # type: ignore[method-assign]
        if scheduled:
            ConstantLR(optimizer.base)
        return optimizer

    taken = compiled_steps(make, lambda *_: None, compiled_blocks)
    assert not any(taken)
    assert len(calls) == 2 * 6


@FEW_CASES
def test_a_scheduler_on_the_base(case: Case, compiled_blocks: list[int]) -> None:
    """It watches the base's step, which is not called, and would warn of that."""
    schedulers: list[ConstantLR] = []

    def make(compiled: bool) -> MoMoWrapper:
        optimizer = wrapped(case, compiled)
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        optimizer.step(loss=700.0)
        schedulers.append(ConstantLR(optimizer.base, factor=0.5, total_iters=3))
        return optimizer

    def change(_: MoMoWrapper, step: int) -> None:
        if step > 0:
            schedulers[-1].step()

    assert all(compiled_steps(make, change, compiled_blocks))
    lr = schedulers[-1].optimizer.param_groups[0]["lr"]
    assert lr == pytest.approx(case.settings["lr"])


class SlowedAdamW(AdamW):
    """An optimizer of someone else, whose step is not that of its parent."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None if param.grad is None else param.grad / 2.0
        return super().step(closure)


def test_a_subclass_steps_itself(compiled_blocks: list[int]) -> None:
    def make(compiled: bool) -> MoMoWrapper:
        groups = wrapped(COMPILED["AdamW"], False).param_groups
        params = [{"params": group["params"]} for group in groups]
        return MoMoWrapper(SlowedAdamW(params), adapter=AdamAdapter(), compiled=compiled)

    assert not any(compiled_steps(make, lambda *_: None, compiled_blocks))


@pytest.mark.parametrize(
    "case", [c for c in ALGORITHMS if c.name not in COMPILED and c.takes_maximize], ids=str
)
def test_bases_without_compiled_passes_are_as_before(
    case: Case, compiled_blocks: list[int]
) -> None:
    ends = []
    for compiled in (False, True):
        optimizer = wrapped(case, compiled)
        train(optimizer, range(5))
        ends.append(snapshot(optimizer))
    assert distance(*ends) == 0.0
    assert not compiled_blocks


def test_several_optimizers(compiled_blocks: list[int]) -> None:
    def make(compiled: bool) -> MoMoWrapper:
        first, second = (wrapped(case, False).base for case in FEW)
        matrices = SGD(first.param_groups[:1], lr=0.01, momentum=0.9, weight_decay=0.03)
        vectors = AdamW(second.param_groups[1:], lr=0.01, weight_decay=0.01)
        return MoMoWrapper([matrices, vectors], compiled=compiled)

    taken = compiled_steps(make, lambda *_: None, compiled_blocks)
    assert taken == [False, *[True] * 5]


def vector_instructions() -> Any:
    """Torch's function that finds them out with the compiler, and keeps them."""
    module = "cpu_vec_isa" if TORCH >= (2, 5) else "codecache"
    return importlib.import_module(f"torch._inductor.{module}").valid_vec_isa_list


@contextmanager
def broken_compiler() -> Iterator[None]:
    """Recompile the kernels, which fails; restore the earlier ones afterwards."""
    fresh = kernels._kernel.__wrapped__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "failures", {})
        patch.setattr(kernels, "_kernel", fresh)
        import torch._inductor.config as inductor

        valid_vec_isa_list = vector_instructions()

        changes = {"cpp.cxx": ("/nonexistent/c++",), "force_disable_caches": True}
        with inductor.patch(changes):
            yield
        # Its cached result for that compiler: there are no vector instructions.
        valid_vec_isa_list.cache_clear()


@FEW_CASES
def test_goes_on_without_a_compiler(case: Case, compiled_blocks: list[int]) -> None:
    """Says so once, however many blocks there are; nothing is lost, and nothing tried again."""
    runs = []
    for compiled in (False, True):
        optimizer = wrapped(case, compiled)
        train(optimizer, [0])
        with broken_compiler(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(optimizer, [1])
            middle = snapshot(optimizer)
            del compiled_blocks[:]
            train(optimizer, [2])
            assert not compiled_blocks
        runs.append((middle, snapshot(optimizer)))
    for ours, theirs in zip(*runs, strict=True):
        assert distance(ours, theirs) < 1e-12
    messages = [str(warning.message) for warning in caught]
    assert [m for m in messages if "could not compile its passes for cpu" not in m] == []
    assert len(messages) == 1


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError, KeyboardInterrupt])
def test_other_errors_are_not_taken_for_the_compiler_s(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise kind("not the compiler")

    # Torch runs a pass under the name that it was given.
    fail.__code__ = fail.__code__.replace(co_name=f"{kernels._PASS}_0")
    optimizer = wrapped(FEW[0], True)
    train(optimizer, [0])
    monkeypatch.setattr(kernels, "_kernel", lambda *_: fail)
    with pytest.raises(kind, match="not the compiler"):
        train(optimizer, [1])
    assert not kernels.failures


@pytest.mark.parametrize("kind", [AssertionError, AttributeError, RuntimeError, TypeError])
def test_any_failure_before_a_pass_is_the_compilers(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch may raise any error, when it compiles or at the first call."""

    def fail(*_: Any, **__: Any) -> None:
        raise kind("within torch")

    monkeypatch.setattr(kernels, "_kernel", kernels._kernel.__wrapped__)
    expected = wrapped(FEW[0], False)
    train(expected, range(3))
    for patched in (lambda *_, **__: fail, fail):
        monkeypatch.setattr(torch, "compile", patched)
        optimizer = wrapped(FEW[0], True)
        train(optimizer, [0])
        with pytest.warns(UserWarning, match=f"for cpu .{kind.__name__}: within torch"):
            train(optimizer, [1])
        train(optimizer, [2])
        kernels.failures.clear()
        assert distance(snapshot(optimizer), snapshot(expected)) < 1e-12


def test_what_auto_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(
        compiled: Compiled,
        elements: int,
        device: str = "cpu",
        base: Any = AdamW,
        fused: bool = False,
    ) -> type[Engine]:
        with FakeTensorMode():  # so that there is a GPU
            params = [torch.empty(elements, device=device), torch.empty(1)]
        optimizer = base([torch.empty(1)], fused=fused)
        return choose_engine(compiled, optimizer, adapter_for(optimizer), params)

    monkeypatch.setattr(choice, "_has_compiler", {"cpu": True, "cuda": True, "meta": False}.get)
    assert chosen("auto", 2**24) is CompiledEngine
    assert chosen("auto", 2**24 - 2) is UpdatingEngine
    assert chosen("auto", 2**24, base=SGD) is CompiledEngine
    assert chosen("auto", 2**24 - 2, base=SGD) is Engine  # its own step is as fast
    assert chosen("auto", 2**24, fused=True) is CompiledEngine
    assert chosen("auto", 2**24 - 2, fused=True) is SteppingEngine
    assert chosen(False, 2**20, fused=True) is SteppingEngine
    assert chosen(False, 2**20 - 2, fused=True) is Engine
    assert chosen(False, 2**20, base=SGD, fused=True) is Engine  # a spike makes its moves longer
    assert chosen("auto", 2**24, "meta") is Engine
    for base in (SGD, AdamW):
        assert chosen("auto", 2**24, "cuda", base=base) is CompiledEngine
        assert chosen("auto", 2**24 - 2, "cuda", base=base) is Engine
        assert chosen(False, 2**24, "cuda", base=base) is Engine
    assert chosen(True, 1) is CompiledEngine
    assert chosen(True, 1, base=torch.optim.Adagrad) is Engine
    assert chosen(False, 2**24) is Engine
    monkeypatch.setattr(choice, "_has_compiler", {}.get)
    assert chosen("auto", 2**24) is UpdatingEngine
    assert chosen("auto", 2**24, "cuda") is Engine
    assert chosen(True, 1) is CompiledEngine


def test_auto_leaves_low_precision_to_the_base() -> None:
    """Updated in float32 and rounded once, a state would be another one than the bare base's."""
    for dtype, engine in ((torch.bfloat16, Engine), (torch.complex64, UpdatingEngine)):
        params = [torch.empty(3, dtype=dtype), torch.empty(3)]
        optimizer = AdamW(params)
        assert choose_engine("auto", optimizer, adapter_for(optimizer), params) is engine


def test_step_counts_that_torch_does_not_make() -> None:
    """Step counts of a file may be integers, to which a base still adds."""
    ends = []
    for compiled in (False, "auto"):
        param = torch.ones(3, requires_grad=True)
        optimizer = MoMoWrapper(AdamW([param], lr=0.1), compiled=compiled)
        for _ in range(3):
            param.grad = torch.ones(3)
            optimizer.step(loss=1.0)
            optimizer.state[param]["step"] = optimizer.state[param]["step"].long()
        ends.append(param.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("kind", [torch.optim.NAdam, torch.optim.RAdam])
@pytest.mark.parametrize("compiled", ["auto", False])
def test_another_default_device_at_a_step(kind: Any, compiled: Any) -> None:
    ends = []
    for device in ("cpu", "meta"):
        param = torch.tensor([1.0, 2.0], requires_grad=True)
        optimizer = MoMoWrapper(kind([param], lr=0.1), compiled=compiled)
        param.grad = torch.ones(2)
        optimizer.step(loss=1.0)
        with torch.device(device):
            for _ in range(8):
                optimizer.step(loss=1.0)
            steps = optimizer.state_dict()["param_groups"][0]["momo_steps"]
        assert steps == 9
        ends.append(param.detach())
    assert torch.equal(*ends)


def test_auto_looks_for_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    find = choice._has_compiler.__wrapped__
    monkeypatch.delenv("CXX", raising=False)
    assert find("cpu")
    monkeypatch.setenv("PATH", "")
    assert not find("cpu")
    assert not find("meta")
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    sys.modules["triton"].__spec__ = ModuleSpec("triton", None)
    assert find("cuda")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not find("cuda")


def test_auto_compiles(compiled_blocks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    for worthwhile in (2**24, 1000):
        monkeypatch.setattr(choice, "_WORTHWHILE_ELEMENTS", worthwhile)
        optimizer = wrapped(FEW[0], "auto")
        train(optimizer, [0, 1])
        assert bool(compiled_blocks) == (worthwhile == 1000)


def test_the_choice_may_change_in_mid_run(compiled_blocks: list[int]) -> None:
    optimizer = wrapped(FEW[0], False)
    for compiled in (False, True, False):
        optimizer.compiled = compiled
        del compiled_blocks[:]
        train(optimizer, [0, 1])
        assert bool(compiled_blocks) == compiled


@pytest.mark.parametrize("choice", [True, False, "auto"])
def test_the_choice_is_kept(choice: Any) -> None:
    assert wrapped(FEW[0], choice).compiled == choice


@pytest.mark.parametrize("choice", ["yes", None, 1, 0.0])
def test_wrong_choices(choice: Any) -> None:
    with pytest.raises(ValueError, match="compiled must be True, False or 'auto', got"):
        check_compiled(choice)
    with pytest.raises(ValueError, match="MoMoWrapper\\(optimizer, compiled=True\\)"):
        wrapped(FEW[0], choice)

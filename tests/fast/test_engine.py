"""Compiled passes equal the base and the uncompiled passes, in one loop over memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap import MoMo, MoMoWrapper, adapter_for
from momo_wrap.checks.arguments import Compiled
from momo_wrap.fast import UpdatingEngine
from momo_wrap.fast.updates import UPDATES, Update
from momo_wrap.rules import WeightDecayForm
from tests.cases import FLAG_COMBINATIONS, Case
from tests.mixture import (
    COMPILED,
    FEW,
    distance,
    is_compiled,
    parameters,
    set_gradients,
    snapshot,
    train,
    two_groups,
    wrapped,
)

pytestmark = pytest.mark.usefixtures("small_blocks")

STEPS = range(20)
FLAGS = [case for case in FLAG_COMBINATIONS if is_compiled(case)]


def slow_unless(quick: bool, case: Case) -> Any:
    return pytest.param(case, marks=[] if quick else pytest.mark.slow, id=str(case))


def assert_equals_uncompiled(
    make: Callable[[Compiled], MoMoWrapper],
    tolerance: float,
    sign: float = 1.0,
    other: Compiled = True,
) -> None:
    """Compare all that there is after 20 steps of all lengths, and the lengths."""
    runs = []
    for compiled in (other, False):
        optimizer = make(compiled)
        thetas = train(optimizer, STEPS, sign=sign)
        runs.append({**snapshot(optimizer), "thetas": thetas})
    thetas = runs[1]["thetas"]
    assert (thetas == 0.0).any()
    assert ((thetas > 0.0) & (thetas < 1.0)).any()
    assert (thetas == 1.0).any()
    assert distance(*runs) < tolerance


# The law of compiled passes, in testing, has the arithmetic of all the others.
@pytest.mark.parametrize("case", [slow_unless(c in FEW, c) for c in COMPILED.values()])
def test_equals_the_uncompiled_passes(case: Case, compiled_blocks: list[int]) -> None:
    assert_equals_uncompiled(lambda compiled: wrapped(case, compiled), 1e-12)
    assert set(compiled_blocks) == {600, 288, 225}  # whole tensors


@pytest.mark.parametrize("case", [slow_unless(c == FEW[0], c) for c in COMPILED.values()])
def test_packed_tensors_of_a_group(case: Case, compiled_blocks: list[int]) -> None:
    def make(compiled: Compiled) -> MoMoWrapper:
        return wrapped(case, compiled, params=parameters()[:1])

    assert_equals_uncompiled(make, 1e-12)
    assert set(compiled_blocks) == {600, 288, 18}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("case", COMPILED.values(), ids=str)
def test_small_models_equal_the_bases_own_step(
    case: Case, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a compiler too the state is updated in place of the base, if that is faster."""
    updated: list[type[Update]] = []
    update = UpdatingEngine.sum_up

    def spy(self: UpdatingEngine, *args: Any, **more: Any) -> list[Tensor]:
        if self._update is not None:
            updated.append(type(self._update))
        return update(self, *args, **more)

    monkeypatch.setattr(UpdatingEngine, "sum_up", spy)

    def make(compiled: Compiled) -> MoMoWrapper:
        return wrapped(case, compiled, params=parameters()[:groups])

    assert_equals_uncompiled(make, 1e-12, other="auto")
    base = case.make([torch.ones(1, requires_grad=True)])
    pays = UPDATES[type(base), type(adapter_for(base))].pays_uncompiled
    assert bool(updated) == pays


@pytest.mark.parametrize("form", ["decoupled", "scaled", "base"])
@pytest.mark.parametrize("case", FEW, ids=str)
def test_other_forms_of_weight_decay(case: Case, form: WeightDecayForm) -> None:
    assert_equals_uncompiled(lambda compiled: wrapped(case, compiled, form=form), 1e-12)


@pytest.mark.parametrize("case", COMPILED.values(), ids=str)
def test_small_models_with_the_bases_own_weight_decay(case: Case) -> None:
    def make(compiled: Compiled) -> MoMoWrapper:
        return wrapped(case, compiled, form="base")

    assert_equals_uncompiled(make, 1e-12, other="auto")


TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.complex128: 1e-12}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_other_dtypes(case: Case, dtype: torch.dtype) -> None:
    assert_equals_uncompiled(
        lambda compiled: wrapped(case, compiled, dtype=dtype), TOLERANCES[dtype]
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", FLAGS, ids=str)
def test_flags(case: Case) -> None:
    assert_equals_uncompiled(lambda compiled: wrapped(case, compiled), 1e-12, case.sign)


def without_scalars(optimizer: Optimizer) -> dict[str, Tensor]:
    return {key: value for key, value in snapshot(optimizer).items() if "momo_" not in key}


@pytest.mark.parametrize("case", [slow_unless(c in FEW, c) for c in COMPILED.values()])
def test_goes_into_the_bare_base_and_back(case: Case) -> None:
    """With the bound at -inf the two are one, and so are their state dicts."""

    def make(wrap: bool, params: list[list[Tensor]]) -> Optimizer:
        if not wrap:
            return case.make(two_groups(case, params, 0.03))
        return wrapped(case, True, params=params, form="base", bound=-math.inf)

    def go_on(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Tensor]:
        optimizer.load_state_dict(state)
        train(optimizer, STEPS[10:], factors=(1.0, 0.5))
        return without_scalars(optimizer)

    halves = []
    for wrap in (True, False):
        params = parameters()
        optimizer = make(wrap, params)
        train(optimizer, STEPS[:10], factors=(1.0, 0.5))
        halves.append((params, optimizer.state_dict(), without_scalars(optimizer)))
    assert distance(halves[0][2], halves[1][2]) < 1e-12
    ends = [
        go_on(make(wrap, copy.deepcopy(params)), copy.deepcopy(state))
        for params, state, _ in halves
        for wrap in (True, False)
    ]
    expected = ends[-1]
    assert all(distance(end, expected) < 1e-12 for end in ends)


@pytest.mark.slow
@pytest.mark.parametrize("case", FEW, ids=str)
def test_bfloat16_is_rounded_without_bias(case: Case) -> None:
    """Over 2^18 elements the mean error is one of chance, and errors are no larger than before."""
    size = 2**18

    def make(dtype: torch.dtype, compiled: bool, start: Tensor) -> MoMoWrapper:
        param = start.detach().to(dtype, copy=True).requires_grad_()
        return MoMoWrapper(case.make([param], lr=0.1), MoMo(-math.inf), compiled=compiled)

    def step(optimizer: MoMoWrapper, number: int) -> Tensor:
        param: Tensor = optimizer.param_groups[0]["params"][0]
        noise = torch.randn(size, generator=torch.Generator().manual_seed(number))
        param.grad = noise.bfloat16().to(param.dtype)
        optimizer.step(loss=1.0)
        return param.detach().double()

    # Positive, so that rounding to 0 would show, and of a magnitude where a step is many units.
    start = 1.0 + torch.rand(size, generator=torch.Generator().manual_seed(0)).bfloat16()
    first = make(torch.bfloat16, False, start)
    for number in (11, 12, 13):
        start = step(first, number)
    ends = []
    kinds = ((torch.float64, False), (torch.bfloat16, True), (torch.bfloat16, False))
    for dtype, compiled in kinds:
        optimizer = make(dtype, compiled, start)
        optimizer.load_state_dict(copy.deepcopy(first.state_dict()))
        ends.append(step(optimizer, 14))
    errors = [end - ends[0] for end in ends[1:]]
    assert 0.0 < float(errors[0].std()) <= 1.01 * float(errors[1].std())
    for error in errors:
        assert float(error.mean().abs()) < 4.0 * float(error.std()) / math.sqrt(size)


def ends_after(optimizer: MoMoWrapper, *others: MoMoWrapper) -> list[dict[str, Tensor]]:
    ends = []
    for each in (optimizer, *others):
        train(each, STEPS[5:10])
        ends.append(snapshot(each))
    return ends


@pytest.mark.parametrize("case", FEW, ids=str)
def test_resumes_bit_for_bit(case: Case) -> None:
    optimizer = wrapped(case, True)
    train(optimizer, STEPS[:5])
    params = [group["params"] for group in optimizer.param_groups]
    fresh = wrapped(case, True, params=copy.deepcopy(params))
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    expected, found = ends_after(optimizer, fresh)
    assert distance(found, expected) == 0.0


@pytest.mark.parametrize("case", [slow_unless(c is FEW[0], c) for c in FEW])
def test_a_deep_copy_goes_on_bit_for_bit(case: Case) -> None:
    optimizer = wrapped(case, True)
    train(optimizer, STEPS[:5])
    expected, found = ends_after(optimizer, copy.deepcopy(optimizer))
    assert distance(found, expected) == 0.0


def in_slices(tensors: list[Tensor]) -> list[Tensor]:
    """Return the tensors as parts of one buffer."""
    parts = torch.cat([t.detach().reshape(-1) for t in tensors]).split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def transposed(tensors: list[Tensor]) -> list[Tensor]:
    return [t.mT.contiguous().mT if t.dim() > 1 else t for t in tensors]


def with_gaps(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.stack([t, t], dim=-1)[..., 0] if t.dim() > 1 else t for t in tensors]


def expanded(tensors: list[Tensor]) -> list[Tensor]:
    return [t.sum(dim=0).expand(t.shape) if t.dim() > 1 else t for t in tensors]


def lazily_negated(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.complex(t, t).conj().imag for t in tensors]


Layout = Callable[[list[Tensor]], list[Tensor]]
LAYOUTS: dict[str, tuple[Layout, Layout]] = {
    "slices of one buffer": (in_slices, in_slices),
    "gradients in another order": (list, transposed),
    "parameters in another order": (transposed, list),
    "gaps in parameters": (with_gaps, list),
    "gaps in gradients": (list, with_gaps),
    "expanded gradients": (list, expanded),
    "lazily negated gradients": (list, lazily_negated),
}


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        # A layout with one optimizer; others are slow tests, as kernels for gaps take long.
        pytest.param(
            case,
            layout,
            marks=[] if number % 2 != which and layout != "gaps in gradients" else pytest.mark.slow,
            id=f"{case}-{layout}",
        )
        for which, case in enumerate(FEW)
        for number, layout in enumerate(LAYOUTS)
    ],
)
def test_memory_layouts(case: Case, layout: str) -> None:
    of_params, of_grads = LAYOUTS[layout]
    ends = []
    for compiled in (False, True):
        params = [[p.detach() for p in of_params(group)] for group in parameters()]
        optimizer = wrapped(
            case, compiled, params=[[p.requires_grad_() for p in g] for g in params]
        )
        for step in STEPS[:4]:
            loss = set_gradients(optimizer, step)
            for group in optimizer.param_groups:
                grads = of_grads([p.grad for p in group["params"]])
                for param, grad in zip(group["params"], grads, strict=True):
                    param.grad = grad
            optimizer.step(loss=loss)
        ends.append(snapshot(optimizer))
    assert distance(*ends) < 1e-12

"""A lower bound for each batch: the model is truncated at their average."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from momo_wrap import MoMo, MoMoStar, MoMoWrapper, ProposingAdapter, Recorder, StepRule, TrustedMoMo
from momo_wrap.research import NGN, ModelNGN, MovingTarget, PerGroup, SPSMax
from tests.checks.test_errors import parameter
from tests.problems import Problem, flat, last_step, relative_distance
from tests.reference import AdamBase, Array, ReferenceGroup, SGDBase
from tests.reference_rules import ReferenceRun, Seen, clip
from tests.test_host_visits import HostVisits

OWN = 0.2  # the bound of the rule


def bound_of(step: int) -> float:
    """A bound that is another one for each batch, below most losses."""
    return 0.5 + 0.45 * math.sin(7.0 * step)


class AverageBound:
    """The rule (3) with the average of the bounds, from its definition."""

    def __init__(self, group: ReferenceGroup, given: Callable[[int], float | None]) -> None:
        self.group, self.given = group, given
        self.bounds: list[tuple[float, float]] = []

    def __call__(self, seen: Seen) -> float:
        a, b, p, q = self.group.base.weights()
        bound = self.given(len(self.bounds))
        self.bounds = [(a * weight, its) for weight, its in self.bounds]
        self.bounds.append((b, OWN if bound is None else bound))
        weights = [p * weight for weight, _ in self.bounds]
        weights[-1] += q
        average = sum(w * its for w, (_, its) in zip(weights, self.bounds, strict=True))
        return clip((seen.height - average / sum(weights)) / seen.decrease)


def vector(tensors: list[Tensor]) -> Array:
    return np.asarray(flat(tensors).numpy())


BASES: dict[str, tuple[Callable[[list[Tensor]], Optimizer], Callable[[], SGDBase | AdamBase]]] = {
    "SGD": (lambda p: SGD(p, lr=20.0), SGDBase),
    "momentum": (lambda p: SGD(p, lr=4.0, momentum=0.8), lambda: SGDBase(0.8)),
    "Nesterov": (
        lambda p: SGD(p, lr=4.0, momentum=0.8, nesterov=True),
        lambda: SGDBase(0.8, nesterov=True),
    ),
    "Adam": (lambda p: Adam(p, lr=1.0, betas=(0.8, 0.99)), lambda: AdamBase(0.8, 0.99)),
}
GIVEN: dict[str, Callable[[int], float | None]] = {
    "always": bound_of,
    "sometimes": lambda step: None if step % 3 == 1 else bound_of(step),
    "at last": lambda step: bound_of(step) if step > 12 else None,
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_the_model_is_truncated_at_the_average_of_the_bounds(
    base: Any, given: Callable[[int], float | None]
) -> None:
    problem = Problem()
    optimizer = MoMoWrapper(base[0](problem.params), MoMo(OWN))
    group = ReferenceGroup(vector(problem.params), optimizer.param_groups[0]["lr"], 0.0, base[1]())
    run = ReferenceRun(group, AverageBound(group, given))
    cut = 0
    for step in range(30):
        group.x = vector(problem.params)
        loss, bound = problem.gradients(), given(step)
        gradient = vector([p.grad for p in problem.params if p.grad is not None])
        optimizer.step(loss=loss, lower_bound=bound)
        run.step(float(loss), gradient)
        record = last_step(optimizer)
        assert float(record.theta) == pytest.approx(run.theta, abs=1e-9)
        assert float(record.loss) == float(loss)
        assert float(record.lower_bound) == pytest.approx(OWN if bound is None else bound)
        cut += 0 < run.theta < 1
    assert cut > 10


def train(
    make: Callable[[list[Tensor]], MoMoWrapper], *, sign: float = 1.0, bound: Any = None
) -> Tensor:
    problem = Problem(sign=sign)
    optimizer = make(problem.params)
    for step in range(30):
        given = bound(step) if callable(bound) else bound
        optimizer.step(loss=problem.gradients(), lower_bound=given)
    return flat(problem.params)


RULES: dict[str, Callable[[float], StepRule]] = {
    rule.__name__: rule
    for rule in (MoMo, TrustedMoMo, NGN, ModelNGN, SPSMax, PerGroup, MovingTarget)
}


@pytest.mark.parametrize("given", [0.9, torch.tensor(0.9), torch.tensor([0.9])], ids=type)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_same_bound_for_every_batch_is_that_of_the_rule(
    rule: Callable[[float], StepRule], given: Any
) -> None:
    def make(bound: float) -> Callable[[list[Tensor]], MoMoWrapper]:
        return lambda params: MoMoWrapper(AdamW(params, lr=1.0), rule(bound))

    whole = train(make(0.9))
    value = given if isinstance(given, float) else given.double()
    # the rounding of 0.9 in float32
    expected = 1e-9 if isinstance(given, float) else 1e-4
    assert relative_distance(train(make(0.0), bound=value), whole) < expected
    assert relative_distance(train(make(0.0)), whole) > 1e-3


def test_star_estimates_by_how_much_the_loss_must_stay_above_its_bounds() -> None:
    def make(params: list[Tensor]) -> MoMoWrapper:
        return MoMoWrapper(SGD(params, lr=0.5, momentum=0.9), MoMoStar())

    problem, shifted = Problem(), Problem()
    plain, bounded = make(problem.params), make(shifted.params)
    for step in range(30):
        plain.step(loss=problem.gradients())
        bounded.step(loss=shifted.gradients() + bound_of(step), lower_bound=bound_of(step))
    assert relative_distance(flat(shifted.params), flat(problem.params)) < 1e-9


def test_an_objective_that_is_maximised_has_an_upper_bound() -> None:
    down = train(lambda p: MoMoWrapper(SGD(p, lr=0.5, momentum=0.9), MoMo(OWN)), bound=bound_of)
    up = train(
        lambda p: MoMoWrapper(SGD(p, lr=0.5, momentum=0.9, maximize=True), MoMo(-OWN)),
        sign=-1.0,
        bound=lambda step: -bound_of(step),
    )
    assert torch.equal(up, down)


def test_record_shows_the_bound_and_the_model_of_this_batch() -> None:
    param = parameter()
    for sign in (1.0, -1.0):
        base = SGD([param], lr=0.1, maximize=sign < 0)
        optimizer = MoMoWrapper(base, MoMo(sign * 0.5))
        for loss, bound in ((3.0, 1.0), (4.0, 2.5)):
            param.grad = torch.ones_like(param)
            optimizer.step(loss=sign * loss, lower_bound=sign * bound)
        record = last_step(optimizer)
        shown = (record.loss, record.lower_bound, record.value_after_decay)
        assert [float(value) for value in shown] == [sign * 4.0, sign * 2.5, sign * 4.0]
        found = optimizer.diagnosis()
        assert (found.loss, found.lower_bound) == (sign * 4.0, sign * 2.5)


def test_recorder_has_the_bounds() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(AdamW(problem.params))
    with Recorder(optimizer, every=3) as recorder:
        for step in range(7):
            optimizer.step(loss=problem.gradients(), lower_bound=bound_of(step) - 0.1 * (step > 3))
            recorder.record()
        bounds = recorder.curve()["lower_bound"]
    assert bounds == pytest.approx([bound_of(step) - 0.1 * (step > 3) for step in range(7)])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("tensors", [False, True])
def test_recorded_bounds_make_a_mean_or_sum_as_the_losses_do(reduction: Any, tensors: bool) -> None:
    optimizer = MoMoWrapper(SGD([parameter()], lr=0.1))
    for loss, bound, weight in ((2.0, 0.5, 1.0), (4.0, 1.5, 3.0)):
        given = torch.tensor(bound, dtype=torch.bfloat16) if tensors else bound
        optimizer.record_loss(loss, weight, reduction=reduction, lower_bound=given)
    assert optimizer.step() == {"mean": 3.5, "sum": 14.0}[reduction]
    assert float(last_step(optimizer).lower_bound) == {"mean": 1.25, "sum": 5.0}[reduction]
    optimizer.zero_grad()
    optimizer.record_loss(1.0)  # which has none
    optimizer.step()
    assert float(last_step(optimizer).lower_bound) == 0.0


def test_a_closure_and_losses_that_others_record_have_the_bound_of_the_step() -> None:
    param = parameter()
    optimizer = MoMoWrapper(SGD([param], lr=0.1))

    def closure() -> Tensor:
        loss = (param**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure, lower_bound=0.25)
    assert float(last_step(optimizer).lower_bound) == 0.25
    optimizer.record_loss(2.0)
    optimizer.step(lower_bound=0.75)
    assert float(last_step(optimizer).lower_bound) == 0.75


def test_a_bound_costs_no_visit_to_the_host() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.1, momentum=0.9))
    for step in range(4):
        loss, bound = problem.gradients(), torch.tensor(bound_of(step))
        with HostVisits() as mode:
            optimizer.step(loss=loss, lower_bound=bound)
            optimizer.record_loss(loss, lower_bound=bound)
            optimizer.step()
        assert not mode.seen


@pytest.mark.parametrize(
    "adapter", [None, ProposingAdapter("momentum_buffer", beta=0.0)], ids=["read", "proposed"]
)
def test_a_bound_that_raises_changes_nothing(adapter: Any) -> None:
    problem = Problem()
    base = SGD(problem.params, lr=0.1)
    optimizer = MoMoWrapper(base, MoMo(-math.inf), adapter=adapter)
    before, loss = flat(problem.params), problem.gradients()
    with pytest.raises(ValueError, match=r"MoMo\(lower_bound=0.0\)"):
        optimizer.step(loss=loss, lower_bound=0.5)
    assert torch.equal(flat(problem.params), before)
    assert optimizer.last_step is None


@pytest.mark.parametrize(
    ("bound", "error", "words"),
    [
        ("low", TypeError, "step() got as lower_bound str"),
        (torch.zeros(2), ValueError, "lower_bound=bound.mean()"),
        (torch.zeros((), dtype=torch.complex64), TypeError, "lower_bound=bound.real"),
        (math.nan, ValueError, "finite number"),
        (-math.inf, ValueError, "finite number"),
    ],
    ids=str,
)
def test_an_invalid_bound_raises(bound: Any, error: type[Exception], words: str) -> None:
    param = parameter()
    optimizer = MoMoWrapper(SGD([param], lr=0.1))
    for call in (
        lambda: optimizer.step(loss=torch.tensor(1.0), lower_bound=bound),
        lambda: optimizer.record_loss(1.0, lower_bound=bound),
    ):
        with pytest.raises(error) as caught:
            call()
        assert words.replace("step()", "") in str(caught.value).replace("step()", "").replace(
            "record_loss()", ""
        )


def test_bounds_for_some_losses_or_given_twice_raise() -> None:
    optimizer = MoMoWrapper(SGD([parameter()], lr=0.1))
    for first, second in ((None, 0.5), (0.5, None)):
        optimizer.zero_grad()
        optimizer.record_loss(1.0, lower_bound=first)
        with pytest.raises(ValueError, match="one for each or none"):
            optimizer.record_loss(1.0, lower_bound=second)
    optimizer.zero_grad()
    optimizer.record_loss(1.0, lower_bound=0.5)
    with pytest.raises(TypeError, match="bounds were recorded"):
        optimizer.step(lower_bound=0.25)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_bound_that_is_not_finite_is_as_a_loss_that_is_not(nonfinite: Any) -> None:
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.1), nonfinite=nonfinite)
    before, loss, bound = flat(problem.params), problem.gradients(), torch.tensor(math.nan)
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError, match="its bound"):
            optimizer.step(loss=loss, lower_bound=bound)
    else:
        optimizer.step(loss=loss, lower_bound=bound)
        assert optimizer.skipped_steps == 1
    assert torch.equal(flat(problem.params), before)


def test_a_resumed_run_goes_on_bit_for_bit() -> None:
    def make(params: list[Tensor]) -> MoMoWrapper:
        return MoMoWrapper(SGD(params, lr=0.1, momentum=0.9), TrustedMoMo())

    problem = Problem()
    optimizer = make(problem.params)
    for step in range(40):
        if step == 20:
            resumed = make(problem.params)
            resumed.load_state_dict(optimizer.state_dict())
            optimizer = resumed
        optimizer.step(loss=problem.gradients(), lower_bound=bound_of(step))
    whole = Problem()
    optimizer = make(whole.params)
    for step in range(40):
        optimizer.step(loss=whole.gradients(), lower_bound=bound_of(step))
    assert torch.equal(flat(problem.params), flat(whole.params))


def test_student_needs_no_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="the examples extra is not installed")
    example = importlib.import_module("examples.distillation")
    monkeypatch.setattr(example, "EPOCHS", 3)
    inputs, labels = example.data()
    teacher = example.taught(inputs[:1400], labels[:1400])
    _, zero, bounded = (
        example.distilled(inputs, teacher, 100.0, 0, method) for method in example.METHODS
    )
    assert bounded < 0.05
    assert zero > 20 * bounded
    page = (Path(__file__).parents[1] / "docs" / "choose_settings.md").read_text()
    assert example.table(example.results(example.RESULTS)) in page

"""Probes: the loss of the same batch before and after a step, and nothing else changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from momo_wrap import ModelStats, MoMo, MoMoWrapper, ProposingAdapter, StepDecision
from momo_wrap.research import PerGroup
from tests.problems import Problem, flat
from tests.releases import Muon

BOUND = 0.3


class Every(MoMo):
    """MoMo that has every third step probed, and records its statistics."""

    def __init__(self, lower_bound: float = BOUND) -> None:
        super().__init__(lower_bound)
        self.seen: list[tuple[float, float, float]] = []
        self.predicted: list[float] = []

    def wants_probe(self, stats: ModelStats) -> bool:
        """Those of number 3, 6, ..."""
        return stats.step % 3 == 0

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Note both, and the model's values before and after the step."""
        decision = super().__call__(stats, memory)
        seen = stats.probed_decrease, stats.probed_prediction, stats.probed_slope
        assert stats.has_probe >= stats.was_probed == bool(seen[0].isfinite())
        self.seen.append((float(seen[0]), float(seen[1]), float(seen[2])))
        after = stats.value_after_decay - decision.theta * stats.predicted_decrease
        self.predicted.append(float(stats.value - after))
        return decision


BASES: dict[str, tuple[Callable[[Any], Optimizer], dict[str, Any]]] = {
    "SGD": (lambda p: SGD(p, lr=0.5), {}),
    "nesterov": (lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True), {}),
    "Adam": (lambda p: Adam(p, lr=0.1), {}),
    "AdamW, decoupled decay": (lambda p: AdamW(p, lr=0.1, weight_decay=0.1), {}),
    "Adam, coupled decay": (lambda p: Adam(p, lr=0.1, weight_decay=0.1), {}),
    "proximal decay": (
        lambda p: AdamW(p, lr=0.1, weight_decay=0.1),
        {"weight_decay_form": "proximal"},
    ),
    "proposing": (lambda p: Adam(p, lr=0.1), {"adapter": ProposingAdapter()}),
    "compiled": (lambda p: Adam(p, lr=0.1), {"compiled": True}),
}


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("make", "more"), BASES.values(), ids=BASES)
def test_it_is_the_difference_of_the_losses_of_one_batch(
    make: Callable[[Any], Optimizer], more: dict[str, Any], maximize: bool
) -> None:
    sign = -1.0 if maximize else 1.0
    problem, rule = Problem(sign=sign), Every(sign * BOUND)
    base = make(problem.params)
    base.param_groups[0]["maximize"] = maximize
    optimizer = MoMoWrapper(base, rule, **more)
    before = problem.params
    penalised = "Adam, coupled" in "".join(k for k, v in BASES.items() if v == (make, more))
    for step in range(1, 14):
        rows = problem.next_batch()
        loss = problem.loss(problem.params, rows)
        for param, grad in zip(
            problem.params, torch.autograd.grad(loss, problem.params), strict=True
        ):
            param.grad = grad
        expected, predicted, slope = math.nan, math.nan, math.nan
        if step > 1 and (step - 1) % 3 == 0:
            then = problem.loss(before, rows)
            expected, predicted = sign * float((then - loss).detach()), rule.predicted[-1]
            now, moved = flat(problem.params).detach(), flat(before) - flat(problem.params).detach()
            grads = flat([param.grad for param in problem.params if param.grad is not None])
            slope = sign * float(grads @ moved)
            if penalised:
                slope += 0.1 * float(now @ moved)
                squares = (flat(before) ** 2).sum() - (flat(problem.params) ** 2).sum()
                expected += 0.1 / 2 * float(squares.detach())
        before = [param.detach().clone() for param in problem.params]
        optimizer.step(loss=loss, probe=partial(problem.loss, problem.params, rows))
        assert rule.seen[-1] == pytest.approx(
            (expected, predicted, slope), rel=1e-9, abs=1e-12, nan_ok=True
        )


class EverySlope(Every):
    """MoMo that has the slope of every third step measured, and no probe."""

    def wants_probe(self, stats: ModelStats) -> bool:
        """None."""
        return False

    def wants_slope(self, stats: ModelStats) -> bool:
        """Those of number 3, 6, ..."""
        return stats.step % 3 == 0

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Note the measurements."""
        self.seen.append(
            (float(stats.probed_slope), float(stats.probed_prediction), stats.was_probed)
        )
        assert not stats.probed_decrease.isfinite()
        return MoMo.__call__(self, stats, memory)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("make", "more"), BASES.values(), ids=BASES)
def test_slopes_need_no_probe(
    make: Callable[[Any], Optimizer], more: dict[str, Any], maximize: bool
) -> None:
    """They equal the slopes that are measured beside a probe, bit for bit."""
    sign, found = -1.0 if maximize else 1.0, []
    for rule in (Every(sign * BOUND), EverySlope(sign * BOUND)):
        problem = Problem(sign=sign)
        base = make(problem.params)
        base.param_groups[0]["maximize"] = maximize
        optimizer = MoMoWrapper(base, rule, **more)
        for _ in range(8):
            rows = problem.next_batch()
            loss = problem.loss(problem.params, rows)
            grads = torch.autograd.grad(loss, problem.params)
            for param, grad in zip(problem.params, grads, strict=True):
                param.grad = grad
            probe = partial(problem.loss, problem.params, rows)
            optimizer.step(loss=loss, probe=probe if type(rule) is Every else None)
        found.append(rule.seen)
    for (_, predicted, slope), (own, its, was_measured) in zip(*found, strict=True):
        assert (own, its) == pytest.approx((slope, predicted), rel=0, abs=0, nan_ok=True)
        assert was_measured == (not math.isnan(slope))
    assert [seen for *_, seen in found[1]] == [k in (3, 6) for k in range(8)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex128])
def test_slopes_of_parameters_of_all_kinds(dtype: torch.dtype) -> None:
    """Groups of other dtypes beside, one parameter without a gradient, one not contiguous."""
    torch.manual_seed(0)
    params = [
        torch.randn(3, 4, dtype=dtype),
        torch.randn(4, 3, dtype=torch.float64).t(),
        torch.randn(5, dtype=dtype),
    ]
    groups = [{"params": [p.requires_grad_()], "lr": 0.1 + i} for i, p in enumerate(params)]
    rule = EverySlope(-math.inf)
    optimizer = MoMoWrapper(SGD(groups, lr=0.1, momentum=0.9), rule)
    for _ in range(4):
        before = [param.detach().clone() for param in params]
        for param in params[:2]:
            param.grad = torch.randn_like(param)
        optimizer.step(loss=1.0)
        if len(rule.seen) == 3:
            then = before
    moved = [
        a.to(torch.complex128) - b.to(torch.complex128) for a, b in zip(then, before, strict=True)
    ]
    grads = [param.grad.to(torch.complex128) for param in params[:2] if param.grad is not None]
    expected = sum(float((g.conj() * m).sum().real) for g, m in zip(grads, moved, strict=False))
    assert rule.seen[-1][0] == pytest.approx(expected, rel=1e-5)


def halfway() -> tuple[Problem, MoMoWrapper]:
    """A run whose last step is still to be measured."""
    problem = Problem()
    optimizer = MoMoWrapper(Adam(problem.params, lr=0.1), EverySlope())
    for _ in range(3):
        optimizer.step(loss=problem.gradients())
    return problem, optimizer


def test_a_state_dict_has_the_parameters_before_a_step_that_is_to_be_measured() -> None:
    problem, optimizer = halfway()
    before = [param.detach().clone() for param in problem.params]
    optimizer.step(loss=problem.gradients())
    assert not any("momo_previous" in entry for entry in optimizer.state_dict()["state"].values())
    _, optimizer = halfway()
    saved = optimizer.state_dict()
    assert all("momo_previous" in entry for entry in saved["state"].values())
    assert not any("momo_previous" in entry for entry in optimizer.state.values())
    twin = Problem()
    resumed = MoMoWrapper(Adam(twin.params, lr=0.1), EverySlope())
    resumed.load_state_dict(copy.deepcopy(saved))
    assert not any("momo_previous" in entry for entry in resumed.state.values())
    assert "momo_predicted" not in resumed.param_groups[0]
    again = resumed.state_dict()["state"]
    for index, entry in saved["state"].items():
        assert torch.equal(again[index]["momo_previous"], entry["momo_previous"])
        assert entry["momo_previous"].shape == before[index].shape
        assert not torch.equal(entry["momo_previous"], before[index])


def test_a_damaged_copy_raises_and_a_bare_optimizer_ignores_it() -> None:
    problem, optimizer = halfway()
    saved = copy.deepcopy(optimizer.state_dict())
    bare = Adam(Problem().params, lr=0.1)
    bare.load_state_dict(saved)
    for param in bare.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    bare.step()
    saved["state"][0]["momo_previous"] = torch.zeros(7, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 has 'momo_previous' of shape"):
        optimizer.load_state_dict(saved)
    assert optimizer._pending.before is not None
    optimizer.step(loss=problem.gradients())


def run(probe: bool, steps: int = 12) -> tuple[list[int], Problem, MoMoWrapper]:
    """Train with a rule that only looks at probes; return at which steps they were called."""
    problem, called = Problem(), []
    optimizer = MoMoWrapper(Adam(problem.params, lr=0.1), Every())
    for step in range(1, steps + 1):

        def evaluate(step: int = step) -> Tensor:
            called.append(step)
            assert not torch.is_grad_enabled()
            return problem.loss(problem.params, torch.arange(16))

        optimizer.step(loss=problem.gradients(), probe=evaluate if probe else None)
    return called, problem, optimizer


def test_parameters_are_where_they_were_bit_for_bit() -> None:
    called, probed, optimizer = run(True)
    stats = optimizer._outcome.of_step
    assert stats is not None
    assert stats[0].step == 12
    _, unprobed, _ = run(False)
    assert called == [4, 7, 10]
    assert torch.equal(flat(probed.params), flat(unprobed.params))


def test_a_copy_is_kept_only_where_a_probe_follows() -> None:
    for steps in range(1, 8):
        *_, optimizer = run(True, steps)
        assert (optimizer._pending.before is not None) == (steps % 3 == 0)
    *_, optimizer = run(False, 6)
    assert optimizer._pending.before is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_probe_that_raises_changes_nothing(error: type[BaseException]) -> None:
    _, problem, optimizer = run(True, 3)
    loss = problem.gradients()
    before, state = flat(problem.params).clone(), copy.deepcopy(optimizer.state_dict())
    random = torch.get_rng_state()

    def fail() -> Tensor:
        assert not torch.equal(flat(problem.params), before)
        torch.rand(1)
        raise error("the probe")

    with pytest.raises(error, match="the probe"):
        optimizer.step(loss=loss, probe=fail)
    assert torch.equal(flat(problem.params), before)
    assert torch.equal(torch.get_rng_state(), random)
    after = optimizer.state_dict()
    torch.testing.assert_close(after["state"], state["state"], rtol=0, atol=0)
    assert str(after["param_groups"]) == str(state["param_groups"])
    optimizer.step(loss=loss, probe=lambda: loss)  # and the probe can be made up for
    assert isinstance(optimizer.rule, Every)
    assert not math.isnan(optimizer.rule.seen[-1][0])


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, r"the probe returned None, expected .* or a number. Write probe=lambda:"),
        (
            torch.ones(2),
            ValueError,
            r"the probe returned a tensor of shape \[2\].*probe=lambda:.*mean",
        ),
        (
            torch.ones(1) * 1j,
            TypeError,
            r"the probe returned a complex tensor.*probe=lambda:.*real",
        ),
    ],
)
def test_a_probe_that_returns_no_loss(returned: Any, error: type[Exception], message: str) -> None:
    _, problem, optimizer = run(True, 3)
    before = flat(problem.params).clone()
    with pytest.raises(error, match=message):
        optimizer.step(loss=problem.gradients(), probe=lambda: returned)
    assert torch.equal(flat(problem.params), before)


def test_a_probe_that_is_no_function_raises_at_every_step() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(Adam(problem.params, lr=0.1), MoMo())
    wrong: Any = problem.gradients()
    with pytest.raises(
        TypeError, match=r"got as probe Tensor, expected a function.*probe=lambda: loss_function"
    ):
        optimizer.step(loss=wrong, probe=wrong)


def trained(model: nn.Module, lr: float, loss_of: Callable[[nn.Module], Tensor]) -> Every:
    """Train a model, whose loss draws random numbers or keeps statistics."""
    rule = Every(0.0)
    optimizer = MoMoWrapper(SGD(model.parameters(), lr=lr), rule)
    for _ in range(8):
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss, probe=lambda: loss_of(model))
    return rule


def dropped(model: nn.Module) -> Tensor:
    loss: Tensor = model(torch.ones(50, 20)).square().mean()
    return loss


def test_random_numbers_are_the_same_for_both_losses_and_do_not_move_on() -> None:
    """With dropout, both are evaluated again; without a move they are equal."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(20, 3))
    torch.manual_seed(1)
    rule = trained(copy.deepcopy(model), 1e-30, dropped)
    after = torch.rand(1)
    assert [seen for seen, *_ in rule.seen if not math.isnan(seen)] == [0.0, 0.0]
    torch.manual_seed(1)
    for _ in range(8):
        dropped(model)
    assert torch.equal(torch.rand(1), after)


def test_statistics_of_batch_norm_take_in_a_probe() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4)
    trained(norm, 0.1, lambda model: model(torch.randn(32, 4)).square().sum(1).sqrt().mean())
    assert norm.num_batches_tracked == 8 + 2 * 2  # random data: both losses are evaluated


def test_recorded_losses_are_not_those_of_the_probe() -> None:
    """The mean of several batches is compared with no single one."""
    problem, rule = Problem(), Every()
    optimizer, rows = MoMoWrapper(Adam(problem.params, lr=0.1), rule), torch.arange(16)
    before = problem.params
    for step in range(1, 5):
        optimizer.record_loss(1000.0)
        loss = problem.gradients()
        optimizer.record_loss(loss)
        if step == 4:
            now = problem.loss(problem.params, rows)
            then = problem.loss(before, rows)
        before = [param.detach().clone() for param in problem.params]
        optimizer.step(probe=lambda: problem.loss(problem.params, rows))
    assert rule.seen[-1][0] == pytest.approx(float((then - now).detach()), rel=1e-9)


def test_with_a_closure() -> None:
    problem, rule = Problem(), Every()
    optimizer, before = MoMoWrapper(Adam(problem.params, lr=0.1), rule), problem.params
    for step in range(1, 5):
        rows = problem.next_batch()

        def closure(rows: Tensor = rows) -> Tensor:
            optimizer.zero_grad()
            loss = problem.loss(problem.params, rows)
            loss.backward()
            return loss

        if step == 4:
            expected = problem.loss(before, rows) - problem.loss(problem.params, rows)
        before = [param.detach().clone() for param in problem.params]
        optimizer.step(closure, probe=partial(problem.loss, problem.params, rows))
    assert rule.seen[-1][0] == pytest.approx(float(expected.detach()), rel=1e-9)


class EveryGroup(PerGroup):
    """A fraction for each group, and a probe of each step."""

    def __init__(self) -> None:
        super().__init__(BOUND)
        self.seen = self.predicted = math.nan

    def wants_probe(self, stats: ModelStats) -> bool:
        """All."""
        return True

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Note the prediction."""
        self.seen = float(stats.probed_prediction)
        decision = super().__call__(stats, memory)
        assert stats.groups is not None
        self.predicted = float((decision.theta * stats.groups.predicted_decrease).sum())
        return decision


def test_predicted_decrease_of_a_fraction_for_each_group() -> None:
    problem, rule = Problem(), EveryGroup()
    groups: list[dict[str, Any]] = [
        {"params": problem.params[:2], "lr": 1.0},
        {"params": problem.params[2:]},
    ]
    optimizer = MoMoWrapper(SGD(groups, lr=0.1, momentum=0.9), rule)
    for _ in range(5):
        last = rule.predicted
        optimizer.step(loss=problem.gradients(), probe=lambda: 1.0)
        assert rule.seen == pytest.approx(last, rel=1e-12, nan_ok=True)


def test_several_optimizers() -> None:
    problem, rule = Problem(), Every()
    matrices = [p for p in problem.params if p.dim() == 2]
    others = [p for p in problem.params if p.dim() != 2]
    optimizer = MoMoWrapper([Muon(matrices, lr=0.1), AdamW(others, lr=0.1)], rule)
    rows, before = torch.arange(16), problem.params
    for step in range(1, 5):
        loss = problem.loss(problem.params, rows)
        if step == 4:
            expected = problem.loss(before, rows) - loss
        before = [param.detach().clone() for param in problem.params]
        problem.gradients()
        optimizer.step(loss=loss, probe=lambda: problem.loss(problem.params, rows))
    assert rule.seen[-1][0] == pytest.approx(float(expected.detach()), rel=1e-9)


def test_a_step_that_is_probed_is_so_after_a_load_too() -> None:
    *_, optimizer = run(True, 6)
    twin, rule = Problem(), Every()
    resumed = MoMoWrapper(Adam(twin.params, lr=0.1), rule)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(5):
        resumed.step(loss=twin.gradients(), probe=lambda: 1.0)
    assert [not math.isnan(seen) for seen, *_ in rule.seen] == [True, False, False, True, False]


def test_a_skipped_step_leaves_the_probe_to_the_next() -> None:
    problem, rule = Problem(), Every()
    optimizer = MoMoWrapper(Adam(problem.params, lr=0.1), rule, nonfinite="skip")
    for step in range(1, 6):
        loss = problem.gradients()
        optimizer.step(loss=math.nan if step == 4 else loss, probe=lambda: 1.0)
    assert optimizer.skipped_steps == 1
    assert [not math.isnan(seen) for seen, *_ in rule.seen] == [False, False, False, True]


def test_a_parameter_of_another_shape_is_not_probed() -> None:
    """As where somebody has resized an embedding between two steps."""
    _, problem, optimizer = run(True, 3)
    problem.params[3].data = torch.zeros(1, dtype=torch.float64)
    optimizer.state.clear()
    for param in problem.params:
        param.grad = torch.ones_like(param)
    optimizer.step(loss=1.0, probe=lambda: pytest.fail("there is no way back"))


@pytest.mark.parametrize("change", ["decay", "no decay", "no gradient", "a group"])
def test_the_penalty_is_that_of_the_step_that_is_probed(change: str) -> None:
    """For any change of decays, gradients and groups before the next step."""
    first = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([10.0], dtype=torch.float64, requires_grad=True)
    rule = Every(-math.inf)
    base = SGD([{"params": [first]}, {"params": [second]}], lr=1e-3, weight_decay=0.1)
    optimizer = MoMoWrapper(base, rule)

    def loss() -> Tensor:
        return (first**2).sum() + second.sum()

    def value() -> float:
        with torch.no_grad():
            return float(loss() + 0.1 / 2 * ((first**2).sum() + (second**2).sum()))

    for _ in range(3):
        before = value()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step(loss=loss().detach(), probe=loss)
    expected = before - value()
    optimizer.zero_grad()
    loss().backward()
    if change == "decay":
        optimizer.param_groups[0]["weight_decay"] = 0.2
    elif change == "no decay":
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
    elif change == "no gradient":
        second.grad = None
    else:
        late = torch.ones(50, dtype=torch.float64, requires_grad=True)
        late.grad = torch.zeros_like(late)
        optimizer.add_param_group({"params": [late]})
    optimizer.step(loss=loss().detach(), probe=loss)
    assert rule.seen[-1][0] == pytest.approx(expected, rel=1e-9)


def test_losses_that_a_closure_records_are_not_those_of_the_probe() -> None:
    problem, rule = Problem(), Every()
    optimizer, rows = MoMoWrapper(Adam(problem.params, lr=0.1), rule), torch.arange(16)
    before = problem.params

    def closure() -> None:
        optimizer.record_loss(problem.gradients())
        optimizer.record_loss(1000.0)

    for step in range(1, 5):
        if step == 4:
            expected = problem.loss(before, rows) - problem.loss(problem.params, rows)
        before = [param.detach().clone() for param in problem.params]
        optimizer.step(closure, probe=partial(problem.loss, problem.params, rows))  # type: ignore[arg-type]
    assert rule.seen[-1][0] == pytest.approx(float(expected.detach()), rel=1e-9)


def test_a_new_rule_gets_no_probe_that_the_last_one_requested() -> None:
    _, problem, optimizer = run(True, 3)
    optimizer.rule = MoMo()
    optimizer.step(loss=problem.gradients(), probe=lambda: pytest.fail("not requested"))


def test_the_slope_has_the_decay_of_a_parameter_without_a_gradient() -> None:
    """The loss that is measured has it too."""
    params = [torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    rule = Every(-math.inf)
    optimizer = MoMoWrapper(Adam(params, lr=0.1, weight_decay=0.3), rule)
    places = []
    for step in range(1, 5):
        places.append(flat(params).detach().clone())
        for param in params:
            param.grad = torch.full_like(param, 0.5)
        if step == 4:
            params[0].grad = None
        optimizer.step(loss=1.0, probe=lambda: 1.0)
    then, now = places[2:]
    expected = 0.3 * now @ (then - now) + 0.5 * (then - now)[2:].sum()
    assert rule.seen[-1][2] == pytest.approx(float(expected), rel=1e-12)

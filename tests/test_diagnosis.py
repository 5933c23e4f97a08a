"""A wrapped optimizer says so when it can't do its work, once for each cause, and only then."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, ClassVar

import pytest
import torch
from lion_pytorch import Lion
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, AdamW, Optimizer, RMSprop

from momo_wrap import (
    Diagnosis,
    ModelStats,
    MoMo,
    MoMoStar,
    MoMoWarning,
    MoMoWrapper,
    StepDecision,
    StepRule,
    TrustedMoMo,
)
from momo_wrap.research import PerGroup
from tests.problems import Problem
from tests.test_cost_counts import Counting
from tests.test_cuda_graphs import Obstacles, fake_cuda, optimizer_on_cuda
from tests.test_host_visits import HostVisits

__all__ = ["fake_cuda"]

Params = list[Tensor]
Loss = Callable[[], Tensor]
RULES = {"MoMo": MoMo, "MoMoStar": MoMoStar, "TrustedMoMo": TrustedMoMo}
BASES: dict[str, Callable[[Params], Optimizer]] = {
    "SGD-M": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: AdamW(p, lr=0.01),
    "Lion": lambda p: Lion(p, lr=1e-3),
}


def wrapped(base: str, params: Params, rule: str) -> MoMoWrapper:
    """Wrap a base, at a learning rate that lets TrustedMoMo find the step size."""
    optimizer = BASES[base](params)
    if rule == "TrustedMoMo":
        optimizer.param_groups[0]["lr"] = 100.0
    return MoMoWrapper(optimizer, RULES[rule]())


def train(optimizer: MoMoWrapper, loss: Loss, steps: int) -> list[str]:
    """Take steps, and return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            optimizer.step(loss=loss())
    assert {warning.category for warning in caught} <= {MoMoWarning}
    return [str(warning.message) for warning in caught]


def names(optimizer: MoMoWrapper, told: Sequence[str]) -> list[str]:
    """The names of the reported symptoms."""
    advice = optimizer.rule.advice
    return [next(name for name, text in advice.items() if text in message) for message in told]


def full_batch(problem: Problem) -> Problem:
    problem.next_batch = lambda: torch.arange(64)  # type: ignore[method-assign]
    return problem


def pairs(default: Container[tuple[str, str]], bases: Iterable[str] = BASES) -> Any:
    """Each base, or kind of problem, with each rule; combinations not named are slow tests."""
    return [
        pytest.param(base, rule, marks=[pytest.mark.slow] * ((base, rule) not in default))
        for base in bases
        for rule in RULES
    ]


@pytest.mark.parametrize(("base", "rule"), pairs([("SGD-M", "TrustedMoMo")]))
def test_a_healthy_run_is_silent(base: str, rule: str) -> None:
    for problem in (Problem(dtype=torch.float32), full_batch(Problem(dtype=torch.float32))):
        optimizer = wrapped(base, problem.params, rule)
        assert train(optimizer, problem.gradients, 1010) == []
        now = optimizer.diagnosis()
        assert now.symptoms == {}
        assert now.sampled == 51
        assert now.loss < 1.1


DONE = [("least squares", "TrustedMoMo"), ("hinge", "MoMo")]


@pytest.mark.parametrize(("kind", "rule"), pairs(DONE, ("least squares", "hinge")))
def test_a_run_that_is_done_is_silent(kind: str, rule: str) -> None:
    """The loss is 0, which the bound is too, and θ is 0 in most steps of some."""
    for base in BASES:
        generator = torch.Generator().manual_seed(0)
        inputs, truth = torch.randn(64, 10, generator=generator), torch.arange(10.0) - 4.5
        weights = torch.zeros(10, requires_grad=True)

        def loss() -> Tensor:
            rows = torch.randperm(64, generator=generator)[:16]  # noqa: B023
            output, target = inputs[rows] @ weights, inputs[rows] @ truth  # noqa: B023
            if kind == "hinge":
                value = (1.0 - output * target.sign()).clamp(min=0.0).mean()
            else:
                value = (output - target).square().mean()
            (weights.grad,) = torch.autograd.grad(value, [weights])  # noqa: B023
            return value.detach()

        assert train(wrapped(base, [weights], rule), loss, 1010) == []


class Bandit:
    """A policy gradient on a bandit of 8 arms, with a loss that is negative where all is well."""

    def __init__(self, sign: float = 1.0) -> None:
        self.logits = torch.zeros(8, requires_grad=True)
        self.generator = torch.Generator().manual_seed(0)
        self.sign = sign

    def loss(self) -> Tensor:
        policy = torch.softmax(self.logits, 0)
        actions = torch.multinomial(policy.detach(), 32, True, generator=self.generator)
        rewards = torch.linspace(-2.0, -0.5, 8)[actions]  # as of costs
        value = -self.sign * (rewards * policy.log()[actions]).mean()
        (self.logits.grad,) = torch.autograd.grad(value, [self.logits])
        return value.detach()

    def reward(self) -> float:
        policy = torch.softmax(self.logits.detach(), 0)
        return float(policy @ torch.linspace(-2.0, -0.5, 8))


BELOW = [("SGD-M", "MoMoStar"), ("AdamW", "MoMo"), ("Lion", "TrustedMoMo")]


@pytest.mark.parametrize(("base", "rule"), pairs(BELOW))
def test_a_policy_gradient_loss_below_the_bound_is_reported_once(base: str, rule: str) -> None:
    bandit = Bandit()
    optimizer = MoMoWrapper(BASES[base]([bandit.logits]), RULES[rule]())
    told = train(optimizer, bandit.loss, 1500)
    assert names(optimizer, told) == ["below_bound"]
    assert f"{type(optimizer.rule).__name__} over " in told[0]
    assert "step 500 (loss -" in told[0]
    assert "lower bound 0, θ = 0 in 100% of the steps" in told[0]
    stuck = bandit.reward()
    now = optimizer.diagnosis()
    assert list(now.symptoms) == ["below_bound"]
    assert (now.share_none, now.share_whole, now.thetas) == (1.0, 0.0, (0.0,))
    # Its advice helps.
    optimizer.rule = MoMo(-math.inf)
    assert train(optimizer, bandit.loss, 600) == []
    assert bandit.reward() > stuck + 0.1
    assert optimizer.diagnosis().symptoms == {}


@pytest.mark.parametrize(
    ("whole", "offset"),
    [(False, 0.0), (False, 1.0), (True, 0.0)],
    ids=["minibatches", "minibatches, bound 0", "full batch"],
)
@pytest.mark.parametrize("rule", [MoMo, TrustedMoMo])
def test_a_bound_that_is_reached_is_reported(rule: Any, whole: bool, offset: float) -> None:
    """The loss gets stuck at the bound, whether that is 0 or not."""
    problem = Problem(dtype=torch.float32)
    if whole:
        full_batch(problem)
    optimizer = MoMoWrapper(AdamW(problem.params, lr=0.01), rule(1.0 - offset))
    told = train(optimizer, lambda: problem.gradients() - offset, 1500)
    assert names(optimizer, told) == ["below_bound"]


def test_maximising_is_reported_in_the_users_sign() -> None:
    bandit = Bandit(sign=-1.0)
    optimizer = MoMoWrapper(SGD([bandit.logits], lr=0.1, momentum=0.9, maximize=True), MoMo(-0.5))
    told = train(optimizer, bandit.loss, 600)
    assert names(optimizer, told) == ["below_bound"]
    now = optimizer.diagnosis()
    assert now.loss > 0.0
    assert now.value > now.lower_bound == -0.5
    assert f"  loss               {now.loss:.6g}\n" in str(now)


@pytest.mark.parametrize(("rule", "symptoms"), [(MoMo, ["no_lower"]), (TrustedMoMo, [])])
def test_a_network_that_steps_have_ruined_is_reported(rule: Any, symptoms: list[str]) -> None:
    """With clipped gradients the model predicts too small a decrease; the advice trains it."""
    torch.manual_seed(0)
    centres = 2.0 * torch.randn(5, 20)
    layers = [nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)]
    model = nn.Sequential(*layers)
    optimizer = MoMoWrapper(torch.optim.Adam(model.parameters(), lr=100.0), rule())

    def loss() -> Tensor:
        labels = torch.randint(5, (32,))
        value = nn.functional.cross_entropy(model(centres[labels] + torch.randn(32, 20)), labels)
        model.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.03)
        return value

    assert names(optimizer, train(optimizer, loss, 1510)) == symptoms
    assert symptoms or loss().item() < 0.5


def test_a_cap_that_is_far_too_large_for_momo_is_reported_once() -> None:
    problem = Problem(dtype=torch.float32)
    optimizer = MoMoWrapper(AdamW(problem.params, lr=100.0))
    told = train(optimizer, problem.gradients, 1600)
    assert names(optimizer, told) == ["no_progress"]
    # Its advice gives no warning, and trains better.
    other = Problem(dtype=torch.float32)
    trusted = MoMoWrapper(AdamW(other.params, lr=100.0), TrustedMoMo())
    assert train(trusted, other.gradients, 1600) == []
    losses = [
        float(p.loss(p.params, torch.arange(64)).detach())  # over all of the data
        for p in (problem, other)
    ]
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "make",
    [lambda p: Adagrad(p, lr=0.1), lambda p: SGD(p, lr=0.1), RMSprop],
    ids=["Adagrad", "SGD", "RMSprop"],
)
def test_a_base_without_momentum_is_reported_once_where_it_matters(make: Any) -> None:
    problem = Problem(dtype=torch.float32)
    assert train(MoMoWrapper(make(problem.params)), problem.gradients, 600) == []
    problem = Problem(dtype=torch.float32)
    optimizer = MoMoWrapper(make(problem.params), TrustedMoMo())
    assert train(optimizer, problem.gradients, 9) == []
    assert names(optimizer, train(optimizer, problem.gradients, 1)) == ["no_momentum"]
    assert train(optimizer, problem.gradients, 600) == []
    assert list(optimizer.diagnosis().symptoms) == ["no_momentum"]


def test_one_group_with_momentum_is_enough() -> None:
    problem = Problem(dtype=torch.float32)
    groups = [{"params": [p], "momentum": 0.9 * (i == 0)} for i, p in enumerate(problem.params)]
    assert train(MoMoWrapper(SGD(groups, lr=0.1), TrustedMoMo()), problem.gradients, 20) == []


def test_a_loss_that_rises_by_itself_is_reported_once() -> None:
    """And training continues unchanged."""
    problem, steps = Problem(dtype=torch.float32), 0

    def drifting() -> Tensor:
        nonlocal steps
        steps += 1
        return problem.gradients() + 0.01 * steps

    optimizer = MoMoWrapper(AdamW(problem.params, lr=100.0), TrustedMoMo())
    assert names(optimizer, train(optimizer, drifting, 1500)) == ["no_lower", "rising_loss"]
    assert float(problem.gradients()) < 1.1


@pytest.mark.parametrize("scheduled", [False, True])
def test_gradients_of_the_wrong_sign_are_reported(scheduled: bool) -> None:
    problem = full_batch(Problem(dtype=torch.float32))
    optimizer = MoMoWrapper(SGD(problem.params, lr=100.0, momentum=0.9), TrustedMoMo())

    def negated() -> Tensor:
        loss = problem.gradients()
        for param in problem.params:
            assert param.grad is not None
            param.grad.neg_()
        optimizer.param_groups[0]["lr"] -= 0.01 * scheduled
        return loss

    told = names(optimizer, train(optimizer, negated, 1000))
    assert told[0] == "rising_loss"
    assert set(told) <= {"rising_loss", "no_lower"}


def test_a_step_size_that_has_collapsed_is_reported_once() -> None:
    """Each step is too long, at any length: across a kink, next to which the loss is 2."""
    param, signs = torch.zeros(3, requires_grad=True), cycle([1.0, -1.0])

    def kink() -> Tensor:
        param.grad = torch.full((3,), next(signs))
        return torch.tensor(2.0)

    optimizer = MoMoWrapper(SGD([param], lr=1.0, momentum=0.1), TrustedMoMo())
    told = train(optimizer, kink, 2100)
    assert names(optimizer, told) == ["tiny_steps"]
    assert optimizer.diagnosis().thetas[0] < 1e-9


def test_a_learning_rate_that_holds_steps_back_is_reported_once() -> None:
    problem = full_batch(Problem(dtype=torch.float32))
    optimizer = MoMoWrapper(AdamW(problem.params, lr=1e-5), TrustedMoMo())
    assert names(optimizer, train(optimizer, problem.gradients, 1100)) == ["limited_by_lr"]
    optimizer.param_groups[0]["lr"] = 100.0
    assert train(optimizer, problem.gradients, 1100) == []
    assert optimizer.diagnosis().symptoms == {}


def test_the_warning_shows_the_users_line(recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("always")
    problem = Problem(dtype=torch.float32)
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.1), TrustedMoMo())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)  # puts a wrapper around `step`
    for _ in range(10):
        optimizer.step(loss=problem.gradients())
        scheduler.step()
    (warning,) = recwarn
    assert warning.filename == __file__


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_of_several_ranks_tells(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("momo_wrap.record.ranks_of", lambda _: "a group")
    monkeypatch.setattr("torch.distributed.get_rank", lambda _: rank)
    problem = Problem(dtype=torch.float32)
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.1), TrustedMoMo())
    told = train(optimizer, problem.gradients, 20)
    assert names(optimizer, told) == (["no_momentum"] if rank == 0 else [])


def test_a_warning_that_raises_leaves_a_step_that_was_taken() -> None:
    runs = []
    for action in ("error", "ignore"):
        problem = Problem()
        optimizer = MoMoWrapper(SGD(problem.params, lr=0.1), TrustedMoMo())
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            for step in range(20):
                loss = problem.gradients()
                if action == "error" and step == 9:
                    with pytest.raises(MoMoWarning, match="averages no gradients"):
                        optimizer.step(loss=loss)
                else:
                    optimizer.step(loss=loss)
        runs.append([p.detach() for p in problem.params])
    torch.testing.assert_close(*runs, rtol=0, atol=0)


# Its cost.


def counts(rule: StepRule, steps: int) -> tuple[list[int], list[int]]:
    """Host synchronizations, and operations, of each step."""
    problem = Problem(dtype=torch.float32)
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.1, momentum=0.9), rule)
    visits, operations = [], []
    for _ in range(steps):
        loss = problem.gradients()
        with HostVisits() as seen, Counting() as counting:
            optimizer.step(loss=loss)
        visits.append(sum(seen.seen.values()))
        operations.append(counting.count)
    return visits, operations


@pytest.mark.parametrize(
    ("rule", "most"), [(MoMo(), 32), (TrustedMoMo(), 62)], ids=["MoMo", "TrustedMoMo"]
)
def test_no_step_visits_the_host_but_those_that_read(rule: StepRule, most: int) -> None:
    visits, operations = counts(rule, 510)
    # A list is read at once, which is no operation that is counted.
    assert sum(visits) == 0
    plain: defaultdict[int, set[int]] = defaultdict(set)
    sampled: defaultdict[int, set[int]] = defaultdict(set)
    for step, n in enumerate(operations, start=1):
        # What TrustedMoMo measures: each of the first 100 steps, then each third.
        kind = 0 if step <= 100 else 1 + step % 3
        if step > 2 and step != 101:
            (plain if step % 10 else sampled)[kind].add(n)
    for kind, (usual,) in plain.items():  # all the same
        assert all(0 < n - usual <= most for n in sampled[kind])


class Reads:
    """Counts what `Tensor.tolist` brings to the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[int] = []
        self.step = 0
        tolist = Tensor.tolist

        def counted(tensor: Tensor) -> Any:
            self.steps.append(self.step)
            return tolist(tensor)

        monkeypatch.setattr(Tensor, "tolist", counted)


def test_one_read_in_500_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, reads = Problem(dtype=torch.float32), Reads(monkeypatch)
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.1, momentum=0.9), TrustedMoMo())
    for reads.step in range(1, 1600):
        optimizer.step(loss=problem.gradients())
    assert reads.steps == [500, 1000, 1500]


def test_where_no_visit_is_possible_only_the_read_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("momo_wrap.record.WINDOW", 2)
    param = torch.empty(70, 30, device="meta", requires_grad=True)
    optimizer = MoMoWrapper(AdamW([param], lr=0.1), TrustedMoMo())
    for _ in range(19):
        param.grad = torch.empty_like(param)
        optimizer.step(loss=torch.empty((), device="meta"))
    with pytest.raises(NotImplementedError, match="meta"):
        optimizer.step(loss=torch.empty((), device="meta"))


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize(
    ("rule", "capturing"), [(MoMo(), False), (MoMo(), True), (TrustedMoMo(), False)], ids=repr
)
def test_a_sampled_step_keeps_off_the_host(
    rule: StepRule, capturing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    optimizer: Any = optimizer_on_cuda(lambda p: SGD(p, lr=0.5, momentum=0.9), rule)
    mode = Obstacles()
    for step in range(30):
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.empty_like(param)
        loss = torch.empty((), device="cuda")
        if step < 2:
            optimizer.step(loss=loss)
        else:
            with mode:
                optimizer.step(loss=loss)
    assert mode.seen == []
    assert optimizer._outcome.tally.samples == (0 if capturing else 3)


# The report.


def test_before_the_first_step() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(AdamW(problem.params))
    assert str(optimizer.diagnosis()) == "MoMo over AdamW: no step was taken yet."
    train(optimizer, problem.gradients, 7)
    loaded = MoMoWrapper(AdamW(problem.params))
    loaded.load_state_dict(optimizer.state_dict())
    expected = "no step was taken yet since the 7 steps of the state that was loaded."
    assert str(loaded.diagnosis()) == f"MoMo over AdamW: {expected}"


def test_the_report_of_a_healthy_run() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(AdamW(problem.params, lr=0.01))
    train(optimizer, problem.gradients, 5)
    now, last = optimizer.diagnosis(), optimizer.last_step
    assert last is not None
    assert (now.steps, now.sampled, now.share_none, now.share_whole) == (5, 1, 0.0, 1.0)
    assert (now.loss, now.value) == (float(last.loss), float(last.value_after_decay))
    assert str(now) == repr(now)
    assert str(now).splitlines() == [
        "MoMo over AdamW, 5 steps",
        f"  loss               {now.loss:.6g}",
        f"  model of the loss  {now.value:.6g}",
        "  lower bound        0",
        "  θ                  1 (0 in 0%, 1 in 100%; sampled: 1)",
        "  effective lr       0.01 (lr 0.01)",
        "  no symptoms",
    ]
    assert isinstance(now, Diagnosis)


def test_the_report_of_groups() -> None:
    problem = Problem()
    groups = [{"params": problem.params[:2], "lr": 5.0}, {"params": problem.params[2:], "lr": 0.01}]
    optimizer = MoMoWrapper(SGD(groups, lr=0.1, momentum=0.9), PerGroup())
    train(optimizer, problem.gradients, 20)
    now = optimizer.diagnosis()
    assert now.lrs == (5.0, 0.01)
    assert now.effective_lrs == tuple(float(lr) for lr in optimizer.effective_lrs())
    assert len(now.thetas) == 2
    assert "(lr 5, 0.01)" in str(now)


def test_the_shares_are_those_of_the_samples() -> None:
    problem, thetas = Problem(), []
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.3, momentum=0.9), MoMo(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MoMoWarning)
        for step in range(1, 761):
            optimizer.step(loss=problem.gradients())
            assert optimizer.last_step is not None
            if step % 10 == 0:
                thetas.append(float(optimizer.last_step.theta))
    now = optimizer.diagnosis()
    assert now.sampled == len(thetas) == 76
    assert now.share_none == pytest.approx(thetas.count(0.0) / 76)
    assert now.share_whole == pytest.approx(thetas.count(1.0) / 76)
    assert 0.0 < now.share_none < 1.0


def test_copies_go_on_by_themselves() -> None:
    bandit = Bandit()
    optimizer = MoMoWrapper(SGD([bandit.logits], lr=0.1, momentum=0.9))
    train(optimizer, bandit.loss, 490)
    file = io.BytesIO()
    pickle.dump(optimizer, file)
    file.seek(0)
    for copied in (copy.deepcopy(optimizer), pickle.load(file)):
        assert copied.diagnosis() == optimizer.diagnosis()
        (param,) = copied.param_groups[0]["params"]

        def loss() -> Tensor:
            value = bandit.loss()
            param.grad = bandit.logits.grad  # noqa: B023
            return value

        assert names(copied, train(copied, loss, 10)) == ["below_bound"]


# Rules of one's own.


class Worried(MoMo):
    """Tells a symptom of its own."""

    advice: ClassVar[Mapping[str, str]] = {**StepRule.advice, "worried": "All is well."}

    def symptoms(self, stats: ModelStats, decision: StepDecision) -> Mapping[str, Tensor]:
        return {**super().symptoms(stats, decision), "worried": decision.theta <= 1.0}


def test_a_rule_adds_its_own_symptoms() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(AdamW(problem.params, lr=0.01), Worried())
    told = train(optimizer, problem.gradients, 1200)
    assert names(optimizer, told) == ["worried"]
    assert "Worried over AdamW, step 500 (" in told[0]
    assert "All is well." in told[0]
    assert optimizer.diagnosis().symptoms == {"worried": "All is well."}


class Unexplained(Worried):
    advice: ClassVar[Mapping[str, str]] = StepRule.advice


class Shaped(Worried):
    def symptoms(self, stats: ModelStats, decision: StepDecision) -> Mapping[str, Tensor]:
        return {"worried": torch.ones(2)}


@pytest.mark.parametrize(
    ("rule", "error", "text"),
    [
        (
            Unexplained(),
            ValueError,
            "has 'worried', expected a name in Unexplained.advice. Write advice = ",
        ),
        (Shaped(), TypeError, r"has 'worried' of \[2\], expected a 0-dim tensor"),
    ],
    ids=["no advice", "shape"],
)
def test_invalid_symptoms_raise(rule: Any, error: Any, text: str) -> None:
    problem = Problem()
    optimizer = MoMoWrapper(AdamW(problem.params, lr=0.01), rule)
    with pytest.raises(error, match=text):
        train(optimizer, problem.gradients, 10)


def test_symptoms_do_not_change_training() -> None:
    class Silent(TrustedMoMo):
        def symptoms(self, stats: ModelStats, decision: StepDecision) -> Mapping[str, Tensor]:
            return {}

    runs = []
    for rule in (TrustedMoMo(), Silent()):
        problem = Problem()
        train(MoMoWrapper(AdamW(problem.params, lr=100.0), rule), problem.gradients, 120)
        runs.append([p.detach() for p in problem.params])
    torch.testing.assert_close(*runs, rtol=0, atol=0)

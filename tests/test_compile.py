"""torch.compile: a step that is traced as a whole, and the same as without it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LinearLR

from momo_wrap import MoMo, MoMoStar, MoMoWrapper, ProposingAdapter, TrustedMoMo
from tests.cases import ALGORITHMS, Case
from tests.problems import flat

pytestmark = [
    # When torch's compiler is imported, and when it looks at a loss that it is given.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture(autouse=True)
def _no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of all that torch compiles, which pytest would keep, takes a fifth of the time."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)


Params = list[Tensor]
Make = Callable[[Params], Optimizer]

RULE = MoMo(0.5)
PROPOSING = ProposingAdapter()


def two_groups(params: Params) -> list[dict[str, Any]]:
    return [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "weight_decay": 0.1}]


def momentum(params: Any, **settings: Any) -> Optimizer:
    return SGD(params, **{"lr": 0.5, "momentum": 0.9, **settings})


def adamw(params: Any, **settings: Any) -> Optimizer:
    return AdamW(params, **{"lr": 0.05, **settings})


def tensor_lr() -> Tensor:
    return torch.tensor(0.05, dtype=torch.float64)


def with_hook(params: Params) -> Optimizer:
    base = adamw(params)
    base.register_step_post_hook(lambda *_: None)
    return MoMoWrapper(base, RULE)


def with_own_hook(params: Params) -> Optimizer:
    optimizer = MoMoWrapper(adamw(params), RULE)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


BARE: dict[str, Callable[[Any], Optimizer]] = {"SGD": momentum, "AdamW": adamw}
# The whole step is one graph from the first step on.
TRACED: dict[str, Make] = {
    "SGD": lambda p: MoMoWrapper(momentum(p), RULE),
    "AdamW": lambda p: MoMoWrapper(adamw(p), RULE),
    "SGD-plain": lambda p: MoMoWrapper(SGD(p, lr=0.5), RULE),
    "SGD-nesterov": lambda p: MoMoWrapper(momentum(p, nesterov=True, weight_decay=0.01), RULE),
    "AdamW-tensor_lr": lambda p: MoMoWrapper(adamw(p, lr=tensor_lr()), RULE),
    "AdamW-star": lambda p: MoMoWrapper(adamw(p), MoMoStar(0.0)),
    "AdamW-trusted": lambda p: MoMoWrapper(adamw(p, lr=5.0, weight_decay=0.1), TrustedMoMo()),
    "several": lambda p: MoMoWrapper([adamw(p[:2]), momentum(p[2:], lr=0.1)], RULE),
    "hook": with_own_hook,
}
MORE_TRACED: dict[str, Make] = {
    **TRACED,
    "SGD-plain-groups": lambda p: MoMoWrapper(SGD(two_groups(p), lr=0.5), RULE),
    "SGD-maximize": lambda p: MoMoWrapper(momentum(p, maximize=True), MoMo(2.0)),
    "AdamW-single": lambda p: MoMoWrapper(adamw(p, foreach=False), RULE),
    "AdamW-decoupled": lambda p: MoMoWrapper(adamw(p), RULE, weight_decay="decoupled"),
}
# Through the whole compiler, which takes some seconds for each.
GENERATED = {
    name: MORE_TRACED[name]
    for name in (
        *("several", "SGD-nesterov", "SGD-plain-groups", "AdamW-star", "AdamW-tensor_lr"),
        "AdamW-trusted",
    )
}
# Taken as it is, where torch.compile only looks on.
UNTRACED: dict[str, Make] = {
    "proposed": lambda p: MoMoWrapper(Adam(p, lr=0.05), RULE, adapter=PROPOSING),
    "several": lambda p: MoMoWrapper([adamw(p[:2]), Adam(p[2:])], RULE, adapter=[None, PROPOSING]),
    "hook on the base": with_hook,
    "skip": lambda p: MoMoWrapper(adamw(p), RULE, nonfinite="skip"),
}


@dataclass(frozen=True)
class Run:
    """Where a training run came to, and what torch.compile did on the way."""

    state: dict[str, Any]
    params: Tensor
    losses: list[float]
    told: list[list[float]]  # last_step and effective_lrs() after each step
    graphs: int
    breaks: int


class Training:
    """A small network on fixed data, with an optimizer and what a step does."""

    def __init__(self, make: Make) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.inputs, self.targets = torch.randn(64, 5).double(), torch.randn(64, 3).double()
        self.params: Params = list(self.model.parameters())
        self.optimizer: Any = make(self.params)

    def batches(self, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(steps):
            rows = torch.arange(2 * step, 2 * step + 16) % 64
            yield self.inputs[rows], self.targets[rows]

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.model(inputs), targets)

    def step(self, loss: Tensor) -> Any:
        wrapped = isinstance(self.optimizer, MoMoWrapper)
        return self.optimizer.step(loss=loss) if wrapped else self.optimizer.step()

    def train_step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(inputs, targets)
        loss.backward()
        self.step(loss)
        return loss

    def closure_step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = self.loss(inputs, targets)
            loss.backward()
            return loss

        loss: Tensor = self.optimizer.step(closure)
        return loss

    def accumulating_step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        for part in (slice(0, 8), slice(8, 16)):
            loss = self.loss(inputs[part], targets[part])
            (loss / 2).backward()
            self.optimizer.record_loss(loss)
        mean: Tensor = self.optimizer.step()
        return mean

    def told(self) -> list[float]:
        if not isinstance(self.optimizer, MoMoWrapper):
            return []
        assert self.optimizer.last_step is not None
        record = asdict(self.optimizer.last_step).values()
        return [float(value) for value in (*record, *self.optimizer.effective_lrs())]


def run(
    make: Make,
    body: Callable[[Training], Callable[..., Tensor]],
    compiled: Iterable[bool],
    **options: Any,
) -> Run:
    """Train; `compiled` tells of each step whether it is."""
    torch._dynamo.reset()
    counters.clear()
    training = Training(make)
    eager = body(training)
    traced = torch.compile(eager, **options)
    losses, told = [], []
    which = list(compiled)
    for batch, is_compiled in zip(training.batches(len(which)), which, strict=True):
        losses.append(float((traced if is_compiled else eager)(*batch).detach()))
        told.append(training.told())
    return Run(
        training.optimizer.state_dict(),
        flat(training.params),
        losses,
        told,
        graphs=counters["stats"]["unique_graphs"],
        breaks=sum(counters["graph_break"].values()),
    )


def whole(training: Training) -> Callable[..., Tensor]:
    return training.train_step


def step_alone(training: Training, **options: Any) -> Callable[..., Tensor]:
    """Forward and backward pass as they are, the step compiled if there are options for it."""
    step = torch.compile(training.step, **options) if options else training.step

    def body(inputs: Tensor, targets: Tensor) -> Tensor:
        training.optimizer.zero_grad()
        loss = training.loss(inputs, targets)
        loss.backward()
        assert step(loss) is loss
        detached: Tensor = loss.detach()
        return detached

    return body


def run_step_alone(make: Make, steps: int, **options: Any) -> Run:
    return run(make, lambda training: step_alone(training, **options), [False] * steps)


def assert_same(left: Run, right: Run, tolerance: float = 1e-12) -> None:
    def assert_close(left: Any, right: Any) -> None:
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)

    assert_close(left.params, right.params)
    assert left.losses == pytest.approx(right.losses, rel=tolerance)
    for told, expected in zip(left.told, right.told, strict=True):
        assert told == pytest.approx(expected, rel=tolerance, abs=tolerance, nan_ok=True)
    assert left.state["state"].keys() == right.state["state"].keys()
    for index, entries in right.state["state"].items():
        assert_close(left.state["state"][index], entries)
    for group, expected_group in zip(
        left.state["param_groups"], right.state["param_groups"], strict=True
    ):
        assert list(group) == list(expected_group)
        for name, value in expected_group.items():
            if isinstance(value, Tensor):
                assert_close(group[name], value)
            else:
                assert group[name] == value
                assert type(group[name]) is type(value)


@pytest.mark.parametrize("make", TRACED.values(), ids=TRACED)
def test_step_is_one_graph_and_the_same(make: Make) -> None:
    """At most two graphs, the first step's and the one of all others, whatever the losses are."""
    compiled = run_step_alone(make, 20, backend="eager", fullgraph=True)
    assert compiled.breaks == 0
    assert 1 <= compiled.graphs <= 2
    assert_same(compiled, run_step_alone(make, 20))


@pytest.mark.parametrize("name", BARE)
def test_inductor(name: str) -> None:
    compiled = run_step_alone(TRACED[name], 20, backend="inductor", fullgraph=True)
    assert compiled.breaks == 0
    assert_same(compiled, run_step_alone(TRACED[name], 20))


@pytest.mark.slow
@pytest.mark.parametrize("make", MORE_TRACED.values(), ids=MORE_TRACED)
def test_more_settings(make: Make) -> None:
    compiled = run_step_alone(make, 20, backend="eager", fullgraph=True)
    assert compiled.breaks == 0
    assert 1 <= compiled.graphs <= 2
    assert_same(compiled, run_step_alone(make, 20))


@pytest.mark.slow
@pytest.mark.parametrize("make", GENERATED.values(), ids=GENERATED)
def test_more_settings_through_inductor(make: Make) -> None:
    compiled = run_step_alone(make, 20, backend="inductor", fullgraph=True)
    assert_same(compiled, run_step_alone(make, 20))


@pytest.mark.slow
@pytest.mark.parametrize("name", BARE)
def test_whole_training_step_breaks_where_torch_does(name: str) -> None:
    """In backward() and zero_grad(), but not in the step, where a bare one breaks the graph."""
    every = [True] * 20
    wrapped = run(TRACED[name], whole, every, backend="eager")
    after_three = run(TRACED[name], whole, every[:3], backend="eager")
    assert (wrapped.graphs, wrapped.breaks) == (after_three.graphs, after_three.breaks)
    bare = run(BARE[name], whole, every, backend="eager")
    assert wrapped.breaks < bare.breaks
    assert wrapped.graphs <= bare.graphs + 1
    assert_same(wrapped, run(TRACED[name], whole, [False] * 20))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AdamW"])
@pytest.mark.parametrize("form", ["closure_step", "accumulating_step"])
def test_closures_and_recorded_losses(name: str, form: str) -> None:
    def body(training: Training) -> Callable[..., Tensor]:
        step: Callable[..., Tensor] = getattr(training, form)
        return step

    compiled = run(TRACED[name], body, [True] * 6, backend="eager")
    assert_same(compiled, run(TRACED[name], body, [False] * 6))


@pytest.mark.parametrize("make", UNTRACED.values(), ids=UNTRACED)
def test_what_is_not_traced_is_taken_as_it_is(make: Make) -> None:
    compiled = run_step_alone(make, 6, backend="eager")
    assert compiled.graphs == 0
    assert_same(compiled, run_step_alone(make, 6), tolerance=0.0)


@pytest.mark.parametrize("base", [partial(adamw, fused=True), partial(momentum, fused=True)])
def test_fused_base_is_traced_once_it_has_a_state(base: Callable[[Any], Optimizer]) -> None:
    """Torch does not trace its fused steps; the passes that stand in for them are."""

    def make(params: Any) -> MoMoWrapper:
        return MoMoWrapper(base(params), RULE)

    compiled = run_step_alone(make, 20, backend="aot_eager")
    assert compiled.graphs == 1
    assert_same(compiled, run_step_alone(make, 20))


def test_steps_that_are_skipped_are_counted() -> None:
    training = Training(lambda p: MoMoWrapper(adamw(p), RULE, nonfinite="skip"))
    compiled = torch.compile(training.train_step, backend="eager")
    for inputs, targets in training.batches(4):
        compiled(inputs * torch.nan, targets)
    assert training.optimizer.skipped_steps == 4
    assert training.optimizer.last_step is None


@pytest.mark.slow
@pytest.mark.parametrize("base", BARE.values(), ids=BARE)
def test_first_step_of_several_groups_makes_their_state(base: Callable[[Any], Optimizer]) -> None:
    """It is taken as it is; all others are traced."""

    def make(params: Params) -> Optimizer:
        return MoMoWrapper(base(two_groups(params)), RULE)

    compiled = run_step_alone(make, 20, backend="eager")
    assert compiled.graphs == 1
    assert_same(compiled, run_step_alone(make, 20))


@pytest.mark.slow
@pytest.mark.parametrize("name", BARE)
def test_eager_steps_in_between(name: str) -> None:
    """Nothing that only compiled steps may find stays behind in the base."""
    turns = [turn % 2 == 0 for turn in range(8)]
    mixed = run(TRACED[name], whole, turns, backend="eager")
    assert_same(mixed, run(TRACED[name], whole, [False] * 8))


@pytest.mark.slow
def test_group_that_joins_late() -> None:
    """Its scalars are made in a step that is taken as it is, and traced from then on."""

    def params_of(is_compiled: bool) -> Tensor:
        torch._dynamo.reset()
        training = Training(lambda p: MoMoWrapper(adamw(p[:2]), RULE))
        step = training.train_step
        step = torch.compile(step, backend="eager") if is_compiled else step
        for turn, batch in enumerate(training.batches(8)):
            if turn == 3:
                training.optimizer.base.add_param_group({"params": training.params[2:]})
            step(*batch)
        assert not any(group["capturable"] for group in training.optimizer.param_groups)
        return flat(training.params)

    torch.testing.assert_close(params_of(True), params_of(False), rtol=1e-12, atol=1e-12)


def test_scheduled_tensor_lr_compiles_nothing_again() -> None:
    def scheduled(steps: int, **options: Any) -> Run:
        def make(params: Params) -> Optimizer:
            return MoMoWrapper(adamw(params, lr=tensor_lr()), RULE)

        def body(training: Training) -> Callable[..., Tensor]:
            scheduler = LinearLR(training.optimizer, 0.1, total_iters=steps)
            step = step_alone(training, **options)

            def with_scheduler(*batch: Tensor) -> Tensor:
                loss = step(*batch)
                scheduler.step()
                return loss

            return with_scheduler

        return run(make, body, [False] * steps)

    compiled = scheduled(20, backend="eager")  # torch does not trace what schedulers make of step
    assert compiled.graphs == 1
    assert_same(compiled, scheduled(20))
    assert len({lr[-1] for lr in compiled.told}) > 10


@pytest.mark.slow
@pytest.mark.parametrize("maximize", [False, True], ids=["", "maximize"])
@pytest.mark.parametrize("case", [c for c in ALGORITHMS if c.resumes], ids=str)
def test_every_algorithm(case: Case, maximize: bool) -> None:
    """But NAdam, whose products are float32, and rounded in another order when they are traced."""
    settings = {"maximize": True} if maximize and case.takes_maximize else {}

    def make(params: Params) -> Optimizer:
        return MoMoWrapper(case.make(params, **settings), MoMo(2.0 if maximize else 0.5))

    compiled = run_step_alone(make, 20, backend="eager")
    assert_same(compiled, run_step_alone(make, 20))


def test_compiled_step_tells_of_graph_breaks() -> None:
    """The tests above would see one: here a hook of the user's makes it."""

    def make(params: Params) -> Optimizer:
        optimizer = MoMoWrapper(adamw(params), RULE)
        optimizer.register_step_pre_hook(lambda *_: torch._dynamo.graph_break())
        return optimizer

    assert run_step_alone(make, 2, backend="eager").breaks > 0
    with pytest.raises(torch._dynamo.exc.Unsupported):
        run_step_alone(make, 1, backend="eager", fullgraph=True)

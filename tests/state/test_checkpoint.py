"""A run that is saved, copied or pickled resumes bit for bit."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import SGD, AdamW, Optimizer

from momo_wrap import MoMo, MoMoStar, MoMoWrapper, StepRule
from tests.cases import ALGORITHMS, FLAG_COMBINATIONS, Case
from tests.problems import Problem, flat, last_step, take_step
from tests.test_wrapper import one_parameter

HALF = 8
CAP = 100.0


class NamedWrapper(MoMoWrapper):
    """A wrapper with an attribute of its own."""

    name = ""


Run = tuple[Problem, MoMoWrapper]
Transfer = Callable[[Run, Case, StepRule], Run]


def start(case: Case, rule: StepRule) -> Run:
    """Begin a run whose steps are shortened, so each depends on the saved scalars."""
    problem = Problem(torch.float64 if case.resumes else torch.float32, sign=case.sign)
    lr = case.settings["lr"]  # a tensor where it is one in the case
    lr = lr * 0 + CAP * max(1.0, 100.0 * float(lr))
    halves = [{"params": problem.params[:2]}, {"params": problem.params[2:], "lr": lr / 2}]
    base = case.make(halves, lr=lr, weight_decay=0.1 / float(lr))
    return problem, MoMoWrapper(base, copy.copy(rule))


def go_on(run: Run, steps: int = HALF) -> None:
    problem, optimizer = run
    for _ in range(steps):
        take_step(optimizer, problem.gradients())


def through_file(run: Run, case: Case, rule: StepRule) -> Run:
    """Write a checkpoint as users do, and load it into new objects."""
    problem, optimizer = run
    file = io.BytesIO()
    torch.save(
        {
            "params": [p.detach() for p in problem.params],
            "optimizer": optimizer.state_dict(),
            "generator": problem.generator.get_state(),
        },
        file,
    )
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh, other = start(case, rule)
    with torch.no_grad():
        for param, value in zip(fresh.params, saved["params"], strict=True):
            param.copy_(value)
    other.load_state_dict(saved["optimizer"])
    fresh.generator.set_state(saved["generator"])
    return fresh, other


def deep_copied(run: Run, _case: Case, _rule: StepRule) -> Run:
    """Copy problem and optimizer together."""
    return copy.deepcopy(run)


def pickled(run: Run, case: Case, _rule: StepRule) -> Run:
    """Pickle parameters and optimizer together; the random generator can't be pickled."""
    problem, optimizer = run
    params, other = pickle.loads(pickle.dumps((problem.params, optimizer)))
    fresh = Problem(problem.dtype, sign=case.sign)
    fresh.params = params
    fresh.generator.set_state(problem.generator.get_state())
    return fresh, other


def same(left: Any, right: Any) -> bool:
    """Whether two state dicts are equal bit for bit."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


TRANSFERS: list[Transfer] = [through_file, deep_copied, pickled]


# MoMoStar, whose memory has the bound beside the model.
@pytest.mark.parametrize(
    ("case", "rule"),
    [*((case, MoMoStar()) for case in FLAG_COMBINATIONS), (ALGORITHMS[1], MoMo(0.1))],
    ids=str,
)
def test_run_goes_on_bit_for_bit(case: Case, rule: StepRule) -> None:
    run = start(case, rule)
    go_on(run)
    copies = [transfer(run, case, rule) for transfer in TRANSFERS]
    for _, optimizer in copies:
        assert optimizer.param_groups is optimizer.base.param_groups
        assert optimizer.state is optimizer.base.state
        assert isinstance(optimizer.base, case.kind)
    cut = 0
    for _ in range(HALF):
        go_on(run, 1)
        record = last_step(run[1])
        for moved in copies:  # one after the other: none has a part in another
            go_on(moved, 1)
            assert torch.equal(flat(moved[0].params), flat(run[0].params))
            assert last_step(moved[1]) == record
            assert moved[1].effective_lrs() == run[1].effective_lrs()
        cut += int(0 < record.theta < 1)
    assert cut > HALF / 2  # steps that the scalars decide
    for _, optimizer in copies:
        assert same(optimizer.state_dict(), run[1].state_dict())


@pytest.mark.parametrize("case", ALGORITHMS, ids=str)
def test_copies_are_independent(case: Case) -> None:
    run = start(case, MoMo())
    go_on(run, 2)
    before, saved = flat(run[0].params), copy.deepcopy(run[1].state_dict())
    for transfer in TRANSFERS if case.can_be_copied else TRANSFERS[:1]:
        other = transfer(run, case, MoMo())
        go_on(other, 2)
        assert torch.equal(flat(run[0].params), before)
        assert same(run[1].state_dict(), saved)
        assert not torch.equal(flat(other[0].params), before)


@pytest.mark.parametrize("case", ALGORITHMS, ids=str)
def test_state_has_only_the_entries_of_the_base(case: Case) -> None:
    """Bases test `len(state) == 0`, and distributed checkpoints take keys for parameters."""
    problem, optimizer = start(case, MoMoStar())
    bare = case.make(Problem().params)
    assert len(optimizer.state) == len(bare.state)
    go_on((problem, optimizer), 1)
    for param in bare.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    bare.step()
    names = [set(entry) for entry in bare.state.values()]
    assert [set(entry) for entry in optimizer.state.values()] == names
    assert all(isinstance(key, Tensor) for key in optimizer.state)


def test_scalars_are_in_the_groups() -> None:
    """Each group has its own model; the rule's memory is in the first."""
    problem, optimizer = start(ALGORITHMS[1], MoMoStar())
    go_on((problem, optimizer), 3)
    first, second = optimizer.state_dict()["param_groups"]
    ours = {name for name in second if name.startswith("momo_")}
    of_model = ("loss_sum", "loss_weight_sum", "weight_sum", "displacement", "clipped_weight_sum")
    assert ours == {f"momo_{name}" for name in of_model}
    of_all = {"momo_rule_lower_bound", "momo_steps", "momo_is_scheduled", "momo_reach"}
    assert {name for name in first if name.startswith("momo_")} == ours | of_all
    again = json.loads(json.dumps(optimizer.state_dict()["param_groups"]))
    assert [{n: group[n] for n in ours} for group in again] == [
        {n: group[n] for n in ours} for group in (first, second)
    ]


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize(
    "case", [c for c in ALGORITHMS if c.name in ("Adam", "SGD-momentum")], ids=str
)
def test_distributed_state_dict_keeps_everything(case: Case, flatten: bool) -> None:
    """The state dict that distributed checkpoints are made of, named by parameter."""
    torch.manual_seed(0)
    inputs = torch.randn(8, 4)

    def make() -> tuple[torch.nn.Module, MoMoWrapper]:
        model = torch.nn.Linear(4, 2)
        groups: list[dict[str, Any]] = [
            {"params": [model.weight]},
            {"params": [model.bias], "lr": 1e-3},
        ]
        return model, MoMoWrapper(case.make(groups), MoMoStar())

    def train(model: torch.nn.Module, optimizer: MoMoWrapper, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(inputs) ** 2).mean()
            loss.backward()
            optimizer.step(loss=loss)

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, optimizer = make()
    train(model, optimizer, 5)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer.base, options=options))
    other_model, other = make()
    other_model.load_state_dict(model.state_dict())
    # On a fresh optimizer torch makes the state with a step without a loss: that of the base.
    set_optimizer_state_dict(other_model, other.base, saved, options=options)
    train(model, optimizer, 3)
    train(other_model, other, 3)
    assert torch.equal(flat(list(model.parameters())), flat(list(other_model.parameters())))


def test_bare_checkpoint_into_wrapper_and_back() -> None:
    """Training can be started bare and go on wrapped, and the other way round."""
    problem = Problem()
    bare = AdamW(problem.params, lr=0.01, weight_decay=0.0)
    for _ in range(3):
        take_step(bare, problem.gradients())
    wrapped = MoMoWrapper(AdamW(problem.params, lr=0.01))
    wrapped.load_state_dict(bare.state_dict())
    take_step(wrapped, problem.gradients())
    record = last_step(wrapped)
    assert torch.allclose(record.value_after_decay, record.loss)  # a model that restarts
    assert all(float(entry["step"]) == 4 for entry in wrapped.state.values())
    back = AdamW(problem.params, lr=0.01)
    back.load_state_dict(wrapped.state_dict())
    take_step(back, problem.gradients())
    assert all(float(entry["step"]) == 5 for entry in back.state.values())


def test_subclass_keeps_its_own_attributes() -> None:
    optimizer = NamedWrapper(SGD(Problem().params, lr=0.1), weight_decay_form="scaled")
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)  # patches step
    optimizer.name = "mine"
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.name == "mine"
        assert other.weight_decay_form == "scaled"
        assert "step" in vars(optimizer)
        assert "step" not in vars(other)
    assert scheduler.optimizer is optimizer


def test_load_state_dict_of_the_base_is_seen() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.1, momentum=0.9))
    take_step(optimizer, problem.gradients())
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = 0.7
    optimizer.base.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.7
    assert optimizer.param_groups is optimizer.base.param_groups
    take_step(optimizer, problem.gradients())


def test_scalars_of_another_dtype_are_converted() -> None:
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.1))
    take_step(optimizer, problem.gradients())
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["momo_loss_sum"] = torch.tensor(0.5, dtype=torch.float32)
    saved["param_groups"][0]["momo_weight_sum"] = 1
    optimizer.load_state_dict(saved)
    assert optimizer._memory.averages.dtype is torch.float64
    assert optimizer._memory.averages[:, 0].tolist()[::3] == [0.5, 1.0]


def test_tools_may_set_groups_and_state_directly() -> None:
    """`Optimizer.__setstate__` and plain assignment reach the base."""
    problem = Problem()
    optimizer = MoMoWrapper(SGD(problem.params, lr=0.1))
    groups = [{**optimizer.param_groups[0], "lr": 0.5}]
    optimizer.__setstate__({"param_groups": groups, "state": optimizer.state})
    assert optimizer.base.param_groups is groups
    other: list[dict[str, object]] = [{**groups[0], "lr": 0.25}]
    optimizer.param_groups = other
    assert optimizer.base.param_groups is other


def test_state_dict_hooks_run() -> None:
    problem = Problem()
    optimizer: Optimizer = MoMoWrapper(SGD(problem.params, lr=0.1))
    calls: list[str] = []

    def add_note(_: Optimizer, state_dict: dict[str, object]) -> dict[str, object]:
        calls.append("post")
        return {**state_dict, "note": 1}

    def drop_note(_: Optimizer, state_dict: dict[str, object]) -> None:
        calls.append("load_pre")
        del state_dict["note"]

    optimizer.register_state_dict_pre_hook(lambda _: calls.append("pre"))
    optimizer.register_state_dict_post_hook(add_note)
    optimizer.register_load_state_dict_pre_hook(drop_note)
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("load_post"))
    saved = optimizer.state_dict()
    assert saved["note"] == 1
    optimizer.load_state_dict(saved)
    assert saved["note"] == 1  # hooks work on a copy
    assert calls == ["pre", "post", "load_pre", "load_post"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_knows_the_last_step(copied: Any) -> None:
    """A copy knows the last step before it takes one of its own."""
    _, optimizer = one_parameter()
    assert copied(optimizer).last_step is None
    optimizer.step(loss=2.0)
    assert copied(optimizer).last_step == optimizer.last_step
    assert copied(optimizer).effective_lrs() == optimizer.effective_lrs() == [0.125]

"""A state dict is loaded atomically: an error leaves the optimizer unchanged."""

from __future__ import annotations

import copy
import io
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from momo_wrap import MoMo, MoMoWrapper, ProposingAdapter
from momo_wrap.adapters import SGDAdapter
from momo_wrap.state.loading import with_entries
from momo_wrap.state.shared_state import lasting_tensors
from tests.checks.test_nonfinite import BASES, every_base, everything
from tests.problems import Problem, flat, last_step, relative_distance, take_step

StateDict = dict[str, Any]
Damage = Callable[[StateDict], Any]


def trained(make: Callable[..., MoMoWrapper], steps: int = 4) -> tuple[Problem, MoMoWrapper]:
    problem = Problem()
    optimizer = make(problem.params)
    for _ in range(steps):
        optimizer.step(loss=problem.gradients())
    return problem, optimizer


def without(name: str) -> Damage:
    def damage(state_dict: StateDict) -> StateDict:
        for group in state_dict["param_groups"]:
            del group[name]
        return state_dict

    return damage


def with_setting(name: str, value: Any) -> Damage:
    def damage(state_dict: StateDict) -> StateDict:
        state_dict["param_groups"][-1][name] = value
        return state_dict

    return damage


def truncated_groups(state_dict: StateDict) -> StateDict:
    state_dict["param_groups"][0]["params"].pop()
    return state_dict


def missing_group(state_dict: StateDict) -> StateDict:
    state_dict["param_groups"].append(copy.deepcopy(state_dict["param_groups"][0]))
    return state_dict


def of_another_network(state_dict: StateDict) -> StateDict:
    entry = state_dict["state"][0]
    for name, value in entry.items():
        if isinstance(value, Tensor) and value.dim():
            entry[name] = value[:-1]
    return state_dict


def in_another_order(state_dict: StateDict) -> StateDict:
    state = state_dict["state"]
    state[0], state[2] = state[2], state[0]
    return state_dict


DAMAGED: dict[str, tuple[Damage, type[Exception], str]] = {
    "nothing": (
        lambda _: None,
        TypeError,
        "expects a dict with 'state', a dict, and 'param_groups', a list of dicts with 'params', "
        "got NoneType. Load what optimizer.state_dict() returned",
    ),
    "a whole checkpoint": (
        lambda state_dict: {"optimizer": state_dict, "step": 3},
        TypeError,
        "got one with the keys ['optimizer', 'step']",
    ),
    "the state of a module": (
        lambda _: torch.nn.Linear(2, 2).state_dict(),
        TypeError,
        "got one with the keys ['bias', 'weight']",
    ),
    "half of it": (
        lambda state_dict: {"state": state_dict["state"]},
        TypeError,
        "got one with the keys ['state']",
    ),
    "groups that are none": (
        lambda state_dict: {"state": state_dict["state"], "param_groups": [1, 2]},
        TypeError,
        "expects a dict with 'state'",
    ),
    "too few parameters": (truncated_groups, ValueError, "parameter"),
    "another number of groups": (missing_group, ValueError, "groups"),
    "no settings": (
        without("lr"),
        ValueError,
        "has no ['lr'], so the state dict is not one of",
    ),
    "a NaN learning rate": (with_setting("lr", float("nan")), ValueError, "has lr=nan, expected"),
    "a scalar that is a string": (
        with_setting("momo_loss_sum", "0.3"),
        ValueError,
        "has momo_loss_sum='0.3', expected a number. The state dict is damaged; load an older one, "
        "or remove the keys that start with 'momo_' to restart the model of the loss",
    ),
    "a scalar with several elements": (
        with_setting("momo_weight_sum", torch.ones(3)),
        ValueError,
        "has momo_weight_sum=[3], expected a number",
    ),
}


@every_base
@pytest.mark.parametrize(("damage", "error", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_state_dict_raises(
    make: Any, damage: Damage, error: type[Exception], message: str
) -> None:
    problem, optimizer = trained(make)
    before, groups = everything(problem, optimizer), optimizer.param_groups
    damaged = damage(copy.deepcopy(optimizer.state_dict()))
    with pytest.raises(error) as caught:
        optimizer.load_state_dict(damaged)
    assert message in str(caught.value)
    assert everything(problem, optimizer) == before
    assert all(mine is its for mine, its in zip(optimizer.param_groups, groups, strict=True))
    optimizer.step(loss=problem.gradients())
    assert everything(problem, optimizer) != before


@pytest.mark.parametrize("name", ["SGD", "AdamW", "proposed"])
@pytest.mark.parametrize("damage", [of_another_network, in_another_order])
def test_state_of_other_parameters_raises(name: str, damage: Damage) -> None:
    problem, optimizer = trained(BASES[name])
    before = everything(problem, optimizer)
    message = r"state of parameter 0 of group 0 has '\w+' of shape .*, but the parameter has shape"
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(damage(copy.deepcopy(optimizer.state_dict())))
    assert everything(problem, optimizer) == before


@pytest.mark.parametrize(
    ("saved", "loading", "missing"),
    [("SGD", "AdamW", "amsgrad"), ("AdamW", "SGD", "dampening"), ("SGD", "proposed", "amsgrad")],
)
def test_state_dict_of_another_class_raises(saved: str, loading: str, missing: str) -> None:
    foreign = trained(BASES[saved])[1].state_dict()
    problem, optimizer = trained(BASES[loading])
    before = everything(problem, optimizer)
    no_setting = rf"Group 0 has no \[.*'{missing}'.*not one of"
    with pytest.raises(ValueError, match=rf"{no_setting}|AdamW, which expected 'step'"):
        optimizer.load_state_dict(foreign)
    assert everything(problem, optimizer) == before


def test_failing_hook_leaves_the_optimizer() -> None:
    """Even if the base raises in the middle of loading."""
    problem, optimizer = trained(BASES["joint"])
    before = everything(problem, optimizer)

    def fail(*_: Any) -> None:
        raise RuntimeError("refused")

    second = optimizer.base.optimizers[1]  # type: ignore[attr-defined]
    second.register_load_state_dict_pre_hook(fail)
    with pytest.raises(RuntimeError, match="refused"):
        optimizer.load_state_dict(trained(BASES["joint"], 2)[1].state_dict())
    assert everything(problem, optimizer) == before


def test_loading_does_not_change_the_state_dict() -> None:
    state_dict = trained(BASES["AdamW"])[1].state_dict()
    before = str(state_dict)
    _, optimizer = trained(BASES["AdamW"])
    optimizer.load_state_dict(state_dict)
    optimizer.step(loss=1.0)
    assert str(state_dict["param_groups"]) in before


MID_RUN: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.02, momentum=0.9),
    "SGD-dampening": lambda p: SGD(p, lr=0.2, momentum=0.9, dampening=0.9),
    "Adam": lambda p: Adam(p, lr=0.02),
    "AdamW": lambda p: AdamW(p, lr=0.02, weight_decay=0.0),
}


@pytest.mark.parametrize("adapter", [None, ProposingAdapter()], ids=["reading", "proposing"])
@pytest.mark.parametrize("make", MID_RUN.values(), ids=MID_RUN)
def test_wrapping_in_mid_training_and_back(make: Any, adapter: Any) -> None:
    """Without a bound, the run is the bare one from first to last, through three state dicts."""
    bare, mixed = Problem(), Problem()
    alone = make(bare.params)
    first = make(mixed.params)
    wrapped = MoMoWrapper(make(mixed.params), MoMo(-float("inf")), adapter=adapter)
    last = make(mixed.params)
    before: Optimizer = first
    for optimizer in (first, wrapped, last):
        if optimizer is not first:
            optimizer.load_state_dict(before.state_dict())
        before = optimizer
        for _ in range(10):
            take_step(alone, bare.gradients())
            take_step(optimizer, mixed.gradients())
    assert relative_distance(flat(mixed.params), flat(bare.params)) < 1e-12


@pytest.mark.parametrize("start", ["state dict", "wrapped"])
@pytest.mark.parametrize("make", MID_RUN.values(), ids=MID_RUN)
def test_model_starts_at_the_scale_of_the_buffers(make: Any, start: str) -> None:
    """As if all losses so far had been the first that the wrapper sees, and nothing had moved."""
    problem = Problem()
    base = make(problem.params)
    for _ in range(60):
        take_step(base, problem.gradients())
    if start == "state dict":
        wrapped = MoMoWrapper(make(problem.params), MoMo(0.0))
        wrapped.load_state_dict(base.state_dict())
    else:
        wrapped = MoMoWrapper(base, MoMo(0.0))
    loss = problem.gradients()
    before = flat(problem.params)
    wrapped.step(loss=loss)
    record = last_step(wrapped)
    assert float(record.value_after_decay) == pytest.approx(float(loss))
    # The base's own step lowers an average of linear models with weights of sum 1 by that much.
    step = (flat(problem.params) - before) / record.theta
    state = wrapped.base.state
    buffers = [
        state[p].get("momentum_buffer", state[p].get("exp_avg"))
        for p in wrapped.param_groups[0]["params"]
    ]
    group = wrapped.param_groups[0]
    total = (
        1.0 if group.get("momentum") is None else (1 - group["dampening"]) / (1 - group["momentum"])
    )
    expected = -float(flat(buffers) @ step) / total
    assert float(record.predicted_decrease) == pytest.approx(expected, rel=1e-2)


def test_proposing_from_the_average_of_a_base_with_a_history() -> None:
    problem = Problem()
    base = Adam(problem.params, lr=0.02)
    for _ in range(60):
        take_step(base, problem.gradients())
    twin, same = copy.deepcopy((base, problem))
    reading = MoMoWrapper(base, MoMo(0.5))
    proposing = MoMoWrapper(twin, MoMo(0.5), adapter=ProposingAdapter("exp_avg", beta=0.9))
    for _ in range(5):
        take_step(reading, problem.gradients())
        take_step(proposing, same.gradients())
        # The reading adapter knows how many gradients there were; a long history is assumed here.
        assert float(last_step(proposing).theta) == pytest.approx(
            float(last_step(reading).theta), rel=0.01
        )


def wrapping(name: str, base: Callable[[], Optimizer], **settings: Any) -> Optimizer:
    """An optimizer of pytorch-optimizer that wraps another."""
    package = pytest.importorskip("pytorch_optimizer")
    return getattr(package, name)(base(), **settings)  # type: ignore[no-any-return]


# Their state dicts have forms of their own, and their attributes are part of the state.
WRAPPING: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "Lookahead": lambda p: wrapping("Lookahead", lambda: SGD(p, lr=0.1, momentum=0.9), k=3),
    "Lookahead with momentum": lambda p: wrapping(
        "Lookahead", lambda: SGD(p, lr=0.1, momentum=0.9), k=3, pullback_momentum="pullback"
    ),
    "Magma": lambda p: wrapping("Magma", lambda: Adam(p, lr=0.1), mask_prob=1.0),
    "OrthoGrad": lambda p: wrapping("OrthoGrad", lambda: Adam(p, lr=0.1)),
    "OrthoGrad of Lookahead": lambda p: wrapping(
        "OrthoGrad", lambda: wrapping("Lookahead", lambda: Adam(p, lr=0.1), k=3)
    ),
    "PCGrad": lambda p: wrapping("PCGrad", lambda: Adam(p, lr=0.1)),
    "ScheduleFreeWrapper": lambda p: wrapping("ScheduleFreeWrapper", lambda: Adam(p, lr=0.1)),
    "TRAC": lambda p: wrapping("TRAC", lambda: Adam(p, lr=0.1)),
}
every_wrapping = pytest.mark.parametrize("make", WRAPPING.values(), ids=WRAPPING)


def proposing(make: Callable[[list[Tensor]], Any]) -> Callable[[list[Tensor]], MoMoWrapper]:
    def made(params: list[Tensor]) -> MoMoWrapper:
        optimizer = MoMoWrapper(make(params), MoMo(0.1), adapter=ProposingAdapter())
        optimizer.train()
        return optimizer

    return made


def joined_with_sgd(make: Callable[[list[Tensor]], Optimizer]) -> Callable[[list[Tensor]], Any]:
    return lambda params: [make(params[:2]), SGD(params[2:], lr=0.1, momentum=0.9)]


@every_wrapping
@pytest.mark.parametrize("joint", [False, True], ids=["alone", "joint"])
def test_wrapping_optimizers_go_on_bit_for_bit(make: Any, joint: bool) -> None:
    make = proposing(joined_with_sgd(make) if joint else make)
    problem, optimizer = trained(make, 7)
    again = copy.deepcopy(problem)
    fresh = make(again.params)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(7):
        optimizer.step(loss=problem.gradients())
        fresh.step(loss=again.gradients())
    assert torch.equal(flat(again.params), flat(problem.params))
    assert last_step(fresh).theta == last_step(optimizer).theta
    assert last_step(optimizer).theta > 0


@every_wrapping
def test_wrapping_optimizers_are_as_they_were_after_a_failed_load(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the base raises, or the wrapper after the base has loaded."""
    make = proposing(make)
    (problem, optimizer), (undisturbed, twin) = trained(make, 7), trained(make, 7)
    foreign = trained(make, 2)[1].state_dict()
    before, groups = everything(problem, optimizer), optimizer.param_groups
    with pytest.raises((TypeError, ValueError)):
        optimizer.load_state_dict({name: {} for name in foreign})
    assert everything(problem, optimizer) == before
    with monkeypatch.context() as patch:
        patch.setattr(MoMoWrapper, "_check", lambda _: 1 / 0)
        with pytest.raises(ArithmeticError):
            optimizer.load_state_dict(foreign)
    assert everything(problem, optimizer) == before
    assert all(mine is its for mine, its in zip(optimizer.param_groups, groups, strict=True))
    for _ in range(4):
        optimizer.step(loss=problem.gradients())
        twin.step(loss=undisturbed.gradients())
    assert torch.equal(flat(problem.params), flat(undisturbed.params))


class Counting(SGD):
    """A base with numbers and objects beside its state, which loading changes in place."""

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params, lr=0.1, momentum=0.9)
        self.steps, self.seen, self.recent = 0, {"losses": [1.0]}, (deque([1], maxlen=2), {1})
        self.schedule = torch.optim.lr_scheduler.StepLR(SGD(params, lr=0.1), 1)

    def load_state_dict(self, state_dict: StateDict) -> None:
        super().load_state_dict(state_dict)
        self.steps = 7
        self.seen["losses"].append(2.0)
        self.recent[0].append(2)
        self.recent[0].append(3)
        self.recent[1].add(2)
        self.schedule.load_state_dict({"last_epoch": 5})
        self.refused = True
        raise RuntimeError("refused")


def test_all_that_a_base_holds_is_put_back() -> None:
    problem, optimizer = trained(lambda params: MoMoWrapper(Counting(params), adapter=SGDAdapter()))
    base: Any = optimizer.base
    recent = base.recent[0]
    with pytest.raises(RuntimeError, match="refused"):
        optimizer.load_state_dict(optimizer.state_dict())
    assert (base.steps, base.seen, base.recent) == (0, {"losses": [1.0]}, (deque([1]), {1}))
    assert base.recent[0] is recent
    assert base.schedule.last_epoch == 0
    assert not hasattr(base, "refused")
    optimizer.step(loss=problem.gradients())


def test_an_invalid_group_leaves_nothing_behind() -> None:
    problem, optimizer = trained(proposing(WRAPPING["Lookahead"]))
    before = everything(problem, optimizer)
    with pytest.raises(ValueError, match="lr=nan"):
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "lr": math.nan})
    assert everything(problem, optimizer) == before
    assert len(optimizer.base.state) == len(problem.params)


def test_entries_are_added_to_a_copy() -> None:
    _, optimizer = trained(proposing(WRAPPING["Lookahead"]))
    state_dict = optimizer.state_dict()
    groups = state_dict["base_optimizer"]["param_groups"]
    extended = with_entries(state_dict, [{"momo_new": 1.0}])
    assert extended["base_optimizer"]["param_groups"] == [{**groups[0], "momo_new": 1.0}]
    assert extended["lookahead_state"].keys() == state_dict["lookahead_state"].keys()
    assert "momo_new" not in groups[0]


Change = Callable[[Callable[..., MoMoWrapper], MoMoWrapper, list[Tensor]], MoMoWrapper]


def from_a_file(make: Callable[..., MoMoWrapper], old: MoMoWrapper, params: Any) -> MoMoWrapper:
    """All of whose tensors are made in inference mode, where the caller is."""
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    file.seek(0)
    fresh = make(params)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


def reloaded(_: Any, old: MoMoWrapper, __: Any) -> MoMoWrapper:
    old.load_state_dict(old.state_dict())
    return old


CHANGES: dict[str, Change] = {
    "loaded": reloaded,
    "loaded from a file": from_a_file,
    "constructed": lambda make, _, params: make(params),
    "copied": lambda _, old, __: copy.deepcopy(old),
}


def going_on(make: Callable[..., MoMoWrapper], change: Change) -> Tensor:
    """Where a run gets to whose optimizer is changed in the middle."""
    problem, optimizer = trained(make)
    optimizer = change(make, optimizer, problem.params)
    owned = [param for group in optimizer.param_groups for param in group["params"]]
    position = {param.shape: i for i, param in enumerate(problem.params)}
    problem.params = sorted(owned, key=lambda param: position[param.shape])
    for _ in range(4):
        optimizer.step(loss=problem.gradients())
    return flat(problem.params)


@every_base
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_inference_mode_changes_nothing(make: Any, change: Any) -> None:
    assert torch.equal(going_on(make, torch.inference_mode()(change)), going_on(make, change))


def test_an_optimizer_made_in_inference_mode_records_no_gradients() -> None:
    with torch.inference_mode(), lasting_tensors():
        assert not torch.is_grad_enabled()
        assert not torch.ones(2).is_inference()
    with lasting_tensors():
        assert torch.is_grad_enabled()

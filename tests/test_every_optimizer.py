"""Every optimizer of torch and of common packages is wrapped in one line, and works."""

from __future__ import annotations

import math

import pytest
import torch

from momo_wrap import MoMo, MoMoWrapper
from tests.every import (
    DO_NOT_RESUME,
    FALLS,
    FLOAT32_ONLY,
    HALF,
    IMPOSSIBLE,
    LISTED,
    LONG,
    OF_MODULE,
    OF_MUON,
    OTHERS,
    PICKLED,
    READ,
    RESUMED,
    SCHEDULE_FREE,
    SECOND_ORDER,
    SETTINGS,
    STOPPED,
    TRAINED,
    Run,
    is_refused,
    kind_of,
)
from tests.problems import flat, relative_distance

# Each of these goes a way of its own through the wrapper; the others differ in how they propose.
SPECIAL = {*OTHERS, *OF_MUON, *OF_MODULE, *SECOND_ORDER, *FLOAT32_ONLY, *PICKLED, *READ, *SETTINGS}
SPECIAL |= {name for name in TRAINED if name.startswith("torch.") or is_refused(name)}
FEW = 10


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LONG or name not in SPECIAL else [])
        for name in TRAINED
    ],
)
def test_trains_follows_the_bare_one_stops_and_resumes(name: str) -> None:
    bare = Run(name, None).go_on()
    check_it_is_bare_without_a_bound(name, bare, HALF)
    bare.go_on()
    assert bare.left() < FALLS
    check_a_bound_at_the_loss_stops_it(name, bare)
    check_it_falls_resumes_and_keeps_to_a_bound(name)


@pytest.mark.parametrize("name", [n for n in TRAINED if n not in SPECIAL and n not in LONG])
def test_is_the_bare_one_stops_and_resumes(name: str) -> None:
    bare = Run(name, None).go_on(FEW)
    check_it_is_bare_without_a_bound(name, bare, FEW)
    bare.go_on(STOPPED + 1 - FEW)
    check_a_bound_at_the_loss_stops_it(name, bare)
    run = Run(name, MoMo()).go_on(FEW)
    resumed = run.resumed(MoMo()).go_on(RESUMED)
    assert resumed.records == run.go_on(RESUMED).records[FEW:]  # bit for bit


def check_it_is_bare_without_a_bound(name: str, bare: Run, steps: int) -> None:
    """A proposed step is taken unchanged; a read one is computed in another order of rounding."""
    dtype, tolerance = torch.float32, 0.0
    if name in READ:
        dtype, tolerance = torch.float64, 1e-12
        bare = Run(name, None, dtype).go_on(steps)
    run = Run(name, MoMo(-math.inf), dtype).go_on(steps)
    assert {float(record.theta) for record in run.records} == {1.0}
    assert relative_distance(flat(run.params), flat(bare.params)) <= tolerance


def check_a_bound_at_the_loss_stops_it(name: str, bare: Run) -> None:
    assert bare.losses[STOPPED] != bare.losses[0]  # otherwise there would be nothing to stop
    rule = MoMo(bare.losses[0])
    run = Run(name, rule)
    before = flat(run.params)
    run.go_on(1)
    rule.lower_bound *= 1.0 + 1e-5  # the averages of later steps are rounded
    run.go_on(STOPPED - 1)
    assert [float(record.theta) for record in run.records] == [0.0] * STOPPED
    assert torch.equal(flat(run.params), before)


def check_it_falls_resumes_and_keeps_to_a_bound(name: str) -> None:
    run = Run(name, MoMo()).go_on()
    if name in DO_NOT_RESUME:
        for half, rule in ((Run(name, None).go_on(), None), (run, MoMo())):
            with pytest.raises(KeyError):
                half.resumed(rule).go_on(1)
        assert run.go_on().left() < FALLS
        return
    resumed, bounded = run.resumed(MoMo()), run.resumed(rule := MoMo())
    resumed.go_on(RESUMED)
    assert run.go_on().left() < FALLS
    assert resumed.records == run.records[HALF : HALF + RESUMED]  # bit for bit
    start, end = run.losses[HALF - 1], run.losses[-1]
    rule.lower_bound = (start + end) / 2  # reached on the way
    bounded.go_on()
    assert -0.01 < (bounded.loss().item() - rule.lower_bound) / (start - end) < 0.4
    if name in SCHEDULE_FREE:  # the anchor may be beyond it already, and then stays
        bounded = Run(name, rule).go_on(2 * HALF)
        assert bounded.loss().item() > rule.lower_bound - 0.01 * (start - end)
    assert any(0.0 < record.theta < 1.0 for record in bounded.records)


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_schedule_free_switches_to_its_average_and_back(name: str) -> None:
    run = Run(name, MoMo(), torch.float64).go_on()
    trained = flat(run.params)
    run.switch("eval")
    assert relative_distance(flat(run.params), trained) > 1e-6
    assert run.loss().item() < run.losses[0]
    run.switch("train")
    assert relative_distance(flat(run.params), trained) < 1e-12  # two interpolations are rounded


@pytest.mark.parametrize("name", [name for name in SCHEDULE_FREE if "sgd" in name.lower()])
def test_schedule_free_sgd_is_tamed(name: str) -> None:
    assert not math.isfinite(Run(name, None, lr=10.0).go_on().left())
    assert Run(name, MoMo(), lr=10.0).go_on().left() < 0.2


@pytest.mark.filterwarnings("ignore:you need to install")  # optional dependencies
@pytest.mark.parametrize("name", [name for name in IMPOSSIBLE if name in LISTED])
def test_impossible_ones_fail_bare(name: str) -> None:
    with pytest.raises(Exception, match=IMPOSSIBLE[name]):
        Run(name, None).go_on(1)


@pytest.mark.parametrize("name", ["torch.optim.LBFGS", "torch.optim.SparseAdam"])
def test_impossible_ones_of_torch_raise(name: str) -> None:
    base = kind_of(name)([torch.ones(2, requires_grad=True)])
    with pytest.raises(TypeError, match=f"can't wrap {type(base).__name__}"):
        MoMoWrapper(base)


@pytest.mark.parametrize("name", ["AdamW", "RAdam", "SGD"])
def test_schedule_free_closures_raise(name: str) -> None:
    kind = getattr(pytest.importorskip("schedulefree"), f"{name}ScheduleFreeClosure")
    message = f"can't wrap {name}ScheduleFreeClosure: its step evaluates the closure after"
    with pytest.raises(TypeError, match=message):
        MoMoWrapper(kind([torch.ones(2, requires_grad=True)]))


def test_there_are_many_and_no_table_is_out_of_date() -> None:
    pytest.importorskip("pytorch_optimizer")
    one_line = [name for name in TRAINED if name in LISTED and not is_refused(name)]
    assert len({LISTED[name] for name in one_line}) >= 120
    named = OF_MUON | OF_MODULE | SECOND_ORDER | FLOAT32_ONLY | PICKLED | DO_NOT_RESUME | READ
    named |= LONG
    assert named.union(SETTINGS, IMPOSSIBLE) <= {*LISTED, *OTHERS}

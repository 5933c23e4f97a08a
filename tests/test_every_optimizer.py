"""Every optimizer of torch and of common packages is wrapped in one line, and works."""

from __future__ import annotations

import functools
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
    OF_MODULE,
    OF_MUON,
    OTHERS,
    PICKLED,
    READ,
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


@functools.cache
def whole_run(name: str, *, bare: bool, dtype: torch.dtype = torch.float32) -> Run:
    return Run(name, None if bare else MoMo(), dtype).go_on().go_on()


@pytest.mark.parametrize("name", TRAINED)
class TestEvery:
    def test_loss_falls(self, name: str) -> None:
        assert whole_run(name, bare=True).left() < FALLS
        assert whole_run(name, bare=False).left() < FALLS

    def test_without_bound_it_is_the_bare_optimizer(self, name: str) -> None:
        dtype = torch.float32 if name in FLOAT32_ONLY else torch.float64
        run = Run(name, MoMo(-math.inf), dtype).go_on().go_on()
        assert set(run.thetas) == {1.0}
        # What is proposed is taken as it is; what is read is computed in another order of rounding.
        tolerance = 1e-12 if name in READ else 0.0
        bare = whole_run(name, bare=True, dtype=dtype)
        assert relative_distance(flat(run.params), flat(bare.params)) <= tolerance

    def test_bound_at_the_loss_stops_it(self, name: str) -> None:
        losses = whole_run(name, bare=True).losses
        assert losses[STOPPED] != losses[0]  # otherwise there would be nothing to stop
        rule = MoMo(losses[0])
        run = Run(name, rule)
        before = flat(run.params)
        run.go_on(1)
        rule.lower_bound *= 1.0 + 1e-5  # the averages of later steps are rounded
        run.go_on(STOPPED - 1)
        assert run.thetas == [0.0] * STOPPED
        assert torch.equal(flat(run.params), before)

    def test_keeps_to_a_bound_and_resumes_bit_for_bit(self, name: str) -> None:
        rule = MoMo()
        run = Run(name, rule).go_on()
        start, end = run.losses[-1], whole_run(name, bare=False).losses[-1]
        rule.lower_bound = (start + end) / 2  # reached in the second half
        if name in DO_NOT_RESUME:
            for half, its_rule in ((Run(name, None).go_on(), None), (run, rule)):
                with pytest.raises(KeyError):
                    half.resumed(its_rule).go_on()
            run.go_on()
        else:
            other = run.resumed(rule).go_on()
            assert torch.equal(flat(other.params), flat(run.go_on().params))
        assert -0.01 < (run.loss().item() - rule.lower_bound) / (start - end) < 0.4
        assert any(0.0 < theta < 1.0 for theta in run.thetas[HALF:])


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
def test_impossible_ones_of_torch_are_refused(name: str) -> None:
    base = kind_of(name)([torch.ones(2, requires_grad=True)])
    with pytest.raises(TypeError, match=f"can't wrap {type(base).__name__}"):
        MoMoWrapper(base)


def test_there_are_many_and_no_table_is_out_of_date() -> None:
    pytest.importorskip("pytorch_optimizer")
    one_line = [name for name in TRAINED if name in LISTED and not is_refused(name)]
    assert len({LISTED[name] for name in one_line}) >= 120
    named = OF_MUON | OF_MODULE | SECOND_ORDER | FLOAT32_ONLY | PICKLED | DO_NOT_RESUME | READ
    assert named.union(SETTINGS, IMPOSSIBLE) <= {*LISTED, *OTHERS}

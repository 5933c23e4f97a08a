"""Recorded losses: accumulated gradients, and steps that are called bare."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from momo_wrap import MoMo, MoMoWrapper, ProposingAdapter
from tests.checks.test_errors import parameter
from tests.integrations.probing import Watching
from tests.problems import Problem, flat, kept, last_step, relative_distance
from tests.test_host_visits import HostVisits

BASES: dict[str, Any] = {
    "SGD": lambda p: MoMoWrapper(SGD(p, lr=0.3, momentum=0.9), MoMo(0.5)),
    "AdamW": lambda p: MoMoWrapper(AdamW(p, lr=0.3), MoMo(0.5)),
    "proposed": lambda p: MoMoWrapper(SGD(p, lr=0.3), MoMo(0.5), adapter=ProposingAdapter()),
}


def whole_batches(make: Any, steps: int) -> tuple[Tensor, list[float]]:
    """Train on batches of 16 rows."""
    problem, fractions = Problem(), []
    optimizer = make(problem.params)
    for _ in range(steps):
        optimizer.step(loss=problem.gradients())
        fractions.append(float(last_step(optimizer).theta))
    return flat(problem.params), fractions


def pieces(make: Any, steps: int, sizes: list[int], *, weighted: bool) -> Tensor:
    """The same rows in pieces, whose gradients add up to that of the whole batch."""
    problem = Problem()
    optimizer = make(problem.params)
    for _ in range(steps):
        optimizer.zero_grad()
        for rows in problem.next_batch().split(sizes):
            loss = problem.loss(problem.params, rows)
            (loss * len(rows) / 16).backward()
            optimizer.record_loss(loss, weight=len(rows) if weighted else 1.0)
        optimizer.step()
    return flat(problem.params)


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_accumulated_gradients_are_those_of_the_whole_batch(make: Any) -> None:
    whole, fractions = whole_batches(make, 20)
    assert any(0 < theta < 1 for theta in fractions)
    assert relative_distance(pieces(make, 20, [4, 4, 4, 4], weighted=False), whole) < 1e-12
    assert relative_distance(pieces(make, 20, [9, 4, 3], weighted=True), whole) < 1e-12
    assert relative_distance(pieces(make, 20, [9, 4, 3], weighted=False), whole) > 1e-6


@pytest.mark.parametrize(
    ("recorded", "mean"),
    [
        ([(2.0, 1.0)], 2.0),
        ([(2.0, 1.0), (4.0, 3.0)], 3.5),
        ([(torch.tensor([2.0]), 1.0), (4, 3)], 3.5),
        ([(torch.tensor(2.0), torch.tensor(1.0)), (4.0, torch.tensor(3))], 3.5),
        ([(torch.tensor(2.0, dtype=torch.bfloat16), 1.0), (4.0, 3.0)], 3.5),
    ],
)
def test_mean_of_numbers_and_tensors(recorded: list[tuple[Any, Any]], mean: float) -> None:
    optimizer = MoMoWrapper(SGD([parameter()], lr=0.1))
    for loss, weight in recorded:
        optimizer.record_loss(loss, weight)
    returned = optimizer.step()
    assert returned is not None
    assert float(returned) == mean
    assert float(last_step(optimizer).loss) == mean


def test_sum_of_losses_that_were_not_divided() -> None:
    """Their gradients add up to that of the sum, weighted where they are."""
    optimizer = MoMoWrapper(SGD([parameter()], lr=0.1))
    optimizer.record_loss(torch.tensor(2.0), reduction="sum")
    optimizer.record_loss(4, 3, reduction="sum")
    assert optimizer.step() == 14.0
    optimizer.record_loss(2.0)
    optimizer.record_loss(4.0)
    assert optimizer.step() == 3.0


def added_up(probes: list[Any]) -> Tensor:
    return torch.stack([probe() for probe in probes]).sum()


def test_probes_of_a_sum_are_added_up() -> None:
    found = []
    for summed in (False, True):
        problem, rule = Problem(), Watching(0.5)
        optimizer = MoMoWrapper(SGD(problem.params, lr=0.3, momentum=0.9), rule)
        for _ in range(7):
            optimizer.zero_grad()
            parts = problem.next_batch().split(8)
            losses = [problem.loss(problem.params, rows) for rows in parts]
            probes = [partial(problem.loss, problem.params, rows) for rows in parts]
            for loss, probe in zip(losses, probes, strict=True):
                loss.backward()
                if summed:
                    optimizer.record_loss(loss, probe=probe, reduction="sum")
            if summed:
                optimizer.step()
            else:
                total = torch.stack(losses).detach().sum()
                optimizer.step(loss=total, probe=partial(added_up, probes))
        found.append((flat(problem.params), rule.seen))
    (by_hand, expected), (params, seen) = found
    assert torch.equal(by_hand, params)
    assert seen == pytest.approx(expected, nan_ok=True)
    assert sum(value == value for value in seen) == 2


@pytest.mark.parametrize("lr", [0.1, 0.0])
def test_a_closure_that_leaves_no_gradients_takes_no_step(lr: float) -> None:
    """As a trainer's closure does for a skipped batch; its clipping is dropped."""
    param = torch.ones(2, requires_grad=True)
    optimizer = MoMoWrapper(AdamW([param], lr=lr))
    optimizer.record_clipping(0.5)
    leaves_out: Any = lambda: None  # noqa: E731
    assert optimizer.step(leaves_out) is None
    assert torch.equal(param.detach(), torch.ones(2))
    assert optimizer.last_step is None
    assert not optimizer.state
    assert optimizer._pending.clipping is None


def test_a_low_precision_does_not_add_up_errors() -> None:
    optimizer = MoMoWrapper(SGD([parameter()], lr=0.1))
    for _ in range(1000):
        optimizer.record_loss(torch.tensor(1.0, dtype=torch.bfloat16))
    assert optimizer.step() == 1.0


def test_a_recorded_loss_is_used_once() -> None:
    optimizer = MoMoWrapper(SGD([parameter()], lr=0.1))
    optimizer.record_loss(7.0)
    optimizer.step()
    optimizer.record_loss(3.0)
    assert optimizer.step() == 3.0
    with pytest.raises(TypeError, match=r"optimizer\.record_loss\(loss\) before, after the last z"):
        optimizer.step()


def test_zero_grad_forgets() -> None:
    """A step that was skipped leaves nothing behind for the next one."""
    optimizer = MoMoWrapper(SGD([parameter()], lr=0.1))
    optimizer.record_loss(100.0)
    optimizer.zero_grad()
    optimizer.record_loss(1.0)
    assert optimizer.step() == 1.0


def test_closure_that_records() -> None:
    """A trainer's closure returns the last batch; the mean of all counts."""
    optimizer = MoMoWrapper(SGD([parameter()], lr=0.1))
    optimizer.record_loss(4.0)

    def closure() -> float:
        optimizer.record_loss(2.0)
        return 2.0

    assert optimizer.step(closure) == 3.0

    def silent() -> Any:
        optimizer.record_loss(6.0)

    assert optimizer.step(silent) == 6.0
    assert optimizer.step(lambda: 5.0) == 5.0


def test_no_host_synchronization_and_no_graph_is_kept() -> None:
    param = parameter()
    optimizer = MoMoWrapper(SGD([param], lr=0.1))
    loss = param.square().sum()
    with HostVisits() as mode:
        optimizer.record_loss(loss, weight=torch.tensor(3.0))
        optimizer.record_loss(loss)
        returned = optimizer.step()
    assert not mode.seen
    assert isinstance(returned, Tensor)
    assert not returned.requires_grad


def test_a_loss_that_changes_later_is_kept_as_it_was() -> None:
    optimizer = MoMoWrapper(SGD([parameter()], lr=0.1))
    loss = torch.tensor(8.0)
    optimizer.record_loss(loss)
    loss.div_(4)
    assert optimizer.step() == 8.0


ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "two losses": (
        lambda o: (o.record_loss(1.0), o.step(loss=2.0)),
        TypeError,
        "step() got a loss, but 1 were already recorded. Write either optimizer.record_loss(loss) "
        "and optimizer.step(), or optimizer.step(loss=loss)",
    ),
    "several elements": (
        lambda o: o.record_loss(torch.ones(2)),
        ValueError,
        "record_loss() got as loss a tensor of shape [2], expected one element",
    ),
    "no loss": (lambda o: o.record_loss(None), TypeError, "record_loss() got as loss None"),
    "weight without meaning": (
        lambda o: o.record_loss(1.0, weight=0),
        ValueError,
        "record_loss() got weight=0.0, expected a positive number, for example the number of",
    ),
    "unknown reduction": (
        lambda o: o.record_loss(1.0, reduction="total"),
        ValueError,
        "record_loss() got reduction='total', expected 'mean' or 'sum'. Write 'sum' if the",
    ),
    "two reductions": (
        lambda o: (o.record_loss(1.0, reduction="sum"), o.record_loss(1.0)),
        ValueError,
        "got reduction='mean', but earlier losses of this step had 'sum'. Write the same for",
    ),
    "a closure and a loss": (
        lambda o: o.step(lambda: 1.0, loss=1.0),
        TypeError,
        "as in Lightning's manual optimization, write optimizer.record_loss(loss) and optimizer",
    ),
    "weight of another kind": (
        lambda o: o.record_loss(1.0, weight="tokens"),
        TypeError,
        "record_loss() got as weight str, expected",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    param = parameter()
    optimizer = MoMoWrapper(SGD([param], lr=0.1, momentum=0.9))
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error) as caught:
        call(optimizer)
    assert message in str(caught.value)
    assert str(optimizer.state_dict()) == str(before)
    assert torch.equal(param.detach(), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_step_without_a_loss_where_nothing_can_move(kind: type[Optimizer], lr: Any) -> None:
    """Tools initialise the state of an optimizer so; the model takes no note of it."""
    param = parameter()
    optimizer = MoMoWrapper(kind([param], lr=lr, foreach=False))  # type: ignore[call-arg]
    assert optimizer.step() is None
    assert torch.equal(param.detach(), torch.tensor([1.0, 2.0]))
    assert kept(optimizer)[0]["momo_weight_sum"] == 0.0
    assert optimizer.last_step is None
    assert len(optimizer.state) == (kind is AdamW)
    optimizer.param_groups[0]["lr"] = 0.1
    with pytest.raises(TypeError, match="needs the loss"):
        optimizer.step()


def test_losses_of_a_skipped_step_do_not_count_for_the_next() -> None:
    optimizer = MoMoWrapper(SGD([parameter()], lr=0.1))
    optimizer.record_loss(100.0)
    optimizer.record_loss(float("inf"))
    assert not optimizer._step_supports_amp_scaling  # which GradScaler asks for, and then skips
    optimizer.record_loss(1.0)
    optimizer.record_loss(2.0)
    assert not optimizer._step_supports_amp_scaling
    assert optimizer.step() == 1.5
    optimizer.record_loss(3.0)
    assert optimizer.step() == 3.0

"""Losses that are learned from the backward passes, compared with steps by hand."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW
from torch.utils.checkpoint import checkpoint

from momo_wrap import MoMo, MoMoWrapper, StepRecord
from momo_wrap.integrations import losses_from_backward
from tests.integrations import task
from tests.problems import flat, last_step
from tests.test_host_visits import HostVisits

FUNCTIONS = (
    (torch.autograd, "backward"),
    (nn.Module, "zero_grad"),
    (torch.amp.GradScaler, "_unscale_grads_"),
    (ShardedGradScaler, "_unscale_grads_"),
    (nn.utils, "clip_grad_norm_"),
    (nn.utils, "clip_grads_with_norm_"),
    (nn.utils.clip_grad, "_clip_grads_with_norm_"),
)
# Those before torch 2.6 have the last two not.
ORIGINALS = [getattr(owner, name, None) for owner, name in FUNCTIONS]


@pytest.fixture(autouse=True)
def _off_again() -> Iterator[None]:
    yield
    assert [getattr(owner, name, None) for owner, name in FUNCTIONS] == ORIGINALS


def given(by_hand: bool, loss: Any) -> dict[str, Any]:
    return {"loss": loss} if by_hand else {}


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("whose", ["optimizer", "model", "outer"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_are_those_by_hand(accumulate: int, whose: str, set_to_none: bool) -> None:
    """Bit for bit, with the losses that were divided for accumulation."""
    found = []
    for learned in (False, True):
        model = task.network()
        optimizer = task.wrapped(model)
        records = task.watched(optimizer)
        owners = {"optimizer": optimizer, "model": model, "outer": nn.Sequential(model)}
        resets: Any = owners[whose]
        with losses_from_backward(optimizer) if learned else nullcontext():
            for start in range(0, 3 * task.BATCHES, accumulate):
                resets.zero_grad(set_to_none)
                total: Any = 0.0
                for index in range(start, start + accumulate):
                    loss = task.loss_of(model, task.batches()[index % task.BATCHES]) / accumulate
                    loss.backward()
                    total = total + loss.detach()
                optimizer.step(**given(not learned, total))
        found.append((flat(list(model.parameters())), records))
    (by_hand, expected), (learned_too, seen) = found
    task.assert_same_steps(seen, expected, 0.0)
    assert torch.equal(by_hand, learned_too)


@pytest.mark.parametrize("derived", [False, True], ids=["scaled", "divided after it"])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("unscale", [False, True])
def test_scale_of_a_grad_scaler_is_undone(unscale: bool, set_to_none: bool, derived: bool) -> None:
    """Bit for bit, as it is a power of two; skipped steps leave nothing behind."""
    found = []
    for learned in (False, True):
        model = task.network(torch.float32)
        optimizer = task.wrapped(model)
        records = task.watched(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        with losses_from_backward(optimizer) if learned else nullcontext():
            for step in range(18):
                model.zero_grad(set_to_none)
                total: Any = 0.0
                for batch in task.batches(torch.float32)[:2]:
                    loss = task.loss_of(model, batch) * (float("inf") if step % 6 == 4 else 1.0)
                    total = total + loss.detach() / 2
                    root = scaler.scale(loss) / 2 if derived else scaler.scale(loss / 2)
                    root.backward()
                if unscale:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer, **given(not learned, total))
                scaler.update()
        assert scaler.get_scale() != 2.0**10
        found.append((flat(list(model.parameters())), records))
    (by_hand, expected), (learned_too, seen) = found
    assert len(expected) == 15
    task.assert_same_steps(seen, expected, 0.0)
    assert torch.equal(by_hand, learned_too)


def by_parts(params: Any, limit: float) -> None:
    norm = nn.utils.get_total_norm([param.grad for param in params])
    nn.utils.clip_grads_with_norm_(params, limit, norm)


CLIPPING: dict[str, Any] = {
    "torch.nn.utils": lambda *given: nn.utils.clip_grad_norm_(*given),
    "imported before": clip_grad_norm_,
    "in parts": by_parts,
}


@pytest.mark.parametrize("clip", CLIPPING.values(), ids=CLIPPING)
def test_clipping_is_recorded(clip: Any) -> None:
    if not hasattr(nn.utils, "get_total_norm"):
        if clip is by_parts:
            pytest.skip("torch has it from 2.6 on")
        if clip is clip_grad_norm_:
            pytest.skip("before torch 2.6 it is seen only where it is called as torch.nn.utils'")
    found = []
    for learned in (False, True):
        model = task.network()
        optimizer = task.wrapped(model)
        records = task.watched(optimizer)
        with losses_from_backward(optimizer) if learned else nullcontext():
            for batch in task.batches():
                optimizer.zero_grad()
                loss = task.loss_of(model, batch)
                loss.backward()
                if learned:
                    clip(list(model.parameters()), 0.1)
                else:
                    norm = clip_grad_norm_(model.parameters(), 0.1)
                    optimizer.record_clipping((0.1 / (norm + 1e-6)).clamp(max=1.0))
                optimizer.step(**given(not learned, loss))
        found.append(records)
    task.assert_same_steps(found[1], found[0], 0.0)


def test_the_wrappers_own_clipping_counts_once() -> None:
    """It clips by torch's function, too; optimizers whose gradients it clipped get the factor."""
    found = []
    for learned in (False, True):
        model = task.network()
        optimizer = MoMoWrapper(SGD(model.parameters(), lr=20.0), MoMo(0.1), max_grad_norm=0.1)
        part = MoMoWrapper(SGD(model[0].parameters(), lr=1e-30), MoMo(-math.inf))
        records = task.watched(optimizer)
        with losses_from_backward(optimizer, part) if learned else nullcontext():
            for batch in task.batches():
                optimizer.zero_grad()
                loss = task.loss_of(model, batch)
                loss.backward()
                squares = [float(p.grad.square().sum()) for p in model.parameters()]  # type: ignore[union-attr]
                optimizer.step(**given(not learned, loss))
                if learned:
                    part.step()
                    factor = min(1.0, 0.1 / (sum(squares) ** 0.5 + 1e-6))
                    slope = float(last_step(part).predicted_decrease) / 1e-30
                    assert slope == pytest.approx(factor * sum(squares[:2]))
                    with pytest.raises(TypeError, match=r"backward\(\) add to them since"):
                        optimizer.step()
        found.append(records)
    task.assert_same_steps(found[1], found[0], 0.0)


@pytest.mark.usefixtures("alone")
def test_scale_is_undone_by_another_kind_of_scaler() -> None:
    model = task.network(torch.float32)
    optimizer = MoMoWrapper(SGD(model.parameters(), lr=0.1))
    scaler = ShardedGradScaler("cpu", init_scale=2.0**10)
    loss = task.loss_of(model, task.batches(torch.float32)[0])
    with losses_from_backward(optimizer):
        scaler.scale(loss).backward()
        scaler.step(optimizer)
    assert last_step(optimizer).loss == loss.detach()


def test_roots_of_low_precision_are_added_up_in_float32() -> None:
    param = nn.Parameter(torch.ones(1))
    optimizer = MoMoWrapper(SGD([param], lr=0.1))
    with losses_from_backward(optimizer):
        roots = [(param.sum() * value).bfloat16() for value in [256.0] + 8 * [0.5]]
        torch.autograd.backward(roots)
        optimizer.step()
    assert last_step(optimizer).loss == 260.0


def gan(*, by: str, detached: bool) -> list[list[StepRecord]]:
    """A discriminator with two undivided passes, and a generator that goes through it."""
    torch.manual_seed(0)
    generator, discriminator = nn.Linear(3, 2).double(), nn.Linear(2, 1).double()
    first, second = (
        MoMoWrapper(AdamW(model.parameters(), lr=0.3), MoMo(bound))
        for model, bound in ((generator, 0.6), (discriminator, 1.3))
    )
    records = [task.watched(first), task.watched(second)]
    softplus = nn.functional.softplus
    with losses_from_backward(first, second) if by == "backward" else nullcontext():
        for step in range(12):
            noise, real = torch.randn(2, 8, 3, dtype=torch.float64)
            fake = generator(noise)
            second.zero_grad()
            losses = [
                softplus(-discriminator(real[:, :2])).mean(),
                softplus(discriminator(fake.detach() if detached else fake)).mean(),
            ]
            for loss in losses:
                loss.backward(retain_graph=True)
                if by == "sum":
                    second.record_loss(loss, reduction="sum")
            second.step(**given(by == "hand", losses[0] + losses[1]))
            # The generator's pass also adds to the gradients of the discriminator, which the next
            # zero_grad resets.
            first.zero_grad()
            loss = softplus(-discriminator(generator(noise))).mean()
            loss.backward()
            if by == "sum":
                first.record_loss(loss)
            first.step(**given(by == "hand", loss))
            assert step == len(records[0]) - 1
    return records


@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize("by", ["sum", "backward"])
def test_gan(by: str, detached: bool) -> None:
    """Each optimizer learns its own losses; two passes of undivided ones make a sum."""
    found, expected = gan(by=by, detached=detached), gan(by="hand", detached=detached)
    for its, same in zip(found, expected, strict=True):
        task.assert_same_steps(its, same, 0.0)


def test_actor_and_critic_with_a_loss_in_common() -> None:
    """A shared loss counts for both, that of one for itself; nested contexts do the same."""
    shared, own = (nn.Parameter(torch.tensor([2.0])) for _ in range(2))
    one, other = (MoMoWrapper(SGD([p], lr=0.01)) for p in (shared, own))
    with losses_from_backward(one), losses_from_backward(other):
        (shared * own + 1.0).sum().backward()
        own.square().sum().backward()
        one.step()
        other.step()
    assert (float(last_step(one).loss), float(last_step(other).loss)) == (5.0, 9.0)


def test_roots_with_a_gradient_and_several_roots() -> None:
    """The sum is the function that the gradient belongs to."""
    param = nn.Parameter(torch.tensor([2.0, 3.0]))
    optimizer = MoMoWrapper(SGD([param], lr=0.001))
    with losses_from_backward(optimizer):
        param.sum().backward(torch.tensor(0.5))
        roots = [param[0].square(), param[1:]]
        torch.autograd.backward(roots, [None, torch.tensor([2.0])])
        optimizer.step()
    assert float(last_step(optimizer).loss) == 2.5 + 4.0 + 6.0


def test_checkpointed_activations_run_passes_within_the_pass() -> None:
    model = task.network()
    optimizer = task.wrapped(model)
    inputs, targets = task.batches()[0]
    with losses_from_backward(optimizer):
        hidden: Any = checkpoint(model[:2], inputs.requires_grad_(), use_reentrant=True)
        loss = nn.functional.mse_loss(model[2](hidden), targets)
        loss.backward()
        optimizer.step()
    assert last_step(optimizer).loss == loss.detach()


def test_inputs_of_backward() -> None:
    """A pass that adds to the gradients of others is none of the optimizer's."""
    model = task.network()
    head, body = (MoMoWrapper(SGD(model[i].parameters(), lr=0.1)) for i in (2, 0))
    loss = task.loss_of(model, task.batches()[0])
    with losses_from_backward(head, body):
        loss.backward(inputs=list(model[2].parameters()), retain_graph=True)
        (2 * loss).backward(inputs=list(model[0].parameters()))
        head.step()
        body.step()
    assert last_step(head).loss == loss.detach()
    assert last_step(body).loss == 2 * loss.detach()


def test_closures_and_passes_without_gradients_of_parameters() -> None:
    param, other = (nn.Parameter(torch.tensor([2.0])) for _ in range(2))
    optimizer = MoMoWrapper(SGD([param], lr=0.01))

    def closure() -> Any:
        optimizer.zero_grad()
        param.square().sum().backward()
        other.sum().backward()

    with losses_from_backward(optimizer):
        optimizer.step(closure)
    assert float(last_step(optimizer).loss) == 4.0


def test_no_host_synchronization_and_no_graph_is_kept() -> None:
    model = task.network()
    optimizer = MoMoWrapper(SGD(model.parameters(), lr=0.1, momentum=0.9))
    with losses_from_backward(optimizer):
        for batch in task.batches()[:2]:
            loss = task.loss_of(model, batch)
            with HostVisits() as mode:
                loss.backward()
        assert not mode.seen
        assert not optimizer._pending._total.requires_grad  # type: ignore[union-attr]
        with HostVisits() as mode:
            optimizer.step()
        assert not mode.seen


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of this process alone."""
    store: Any = vars(dist)["HashStore"]()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture
def sharded(request: pytest.FixtureRequest) -> Any:
    """A network in FSDP2, alone in its group."""
    request.getfixturevalue("alone")
    model: Any = task.network()
    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("without_sync", [0, 1, 2])
@pytest.mark.parametrize("set_to_none", [False, True])
@pytest.mark.parametrize("as_view", [False, True])
def test_ddp(as_view: bool, set_to_none: bool, without_sync: int) -> None:
    """It recreates gradients between two passes, as views of its buckets."""
    model = nn.parallel.DistributedDataParallel(task.network(), gradient_as_bucket_view=as_view)
    optimizer = MoMoWrapper(SGD(model.parameters(), lr=0.1, momentum=0.9), MoMo(0.1))
    with losses_from_backward(optimizer):
        for step in range(4):
            optimizer.zero_grad(set_to_none)
            total: Any = 0.0
            for index in range(3):
                with model.no_sync() if index < without_sync else nullcontext():
                    loss = task.loss_of(model, task.batches()[3 * (step % 2) + index]) / 3
                    loss.backward()
                total = total + loss.detach()
            optimizer.step()
            assert last_step(optimizer).loss == total


def test_fsdp2(sharded: Any) -> None:
    """It adds to the shard within a gradient; its other buffers can't be detected."""
    optimizer = MoMoWrapper(SGD(sharded.parameters(), lr=0.1, momentum=0.9))
    batch = task.batches()[0]
    with losses_from_backward(optimizer):
        losses = [task.loss_of(sharded, batch), task.loss_of(sharded, batch)]
        for loss in losses:
            loss.backward()
        optimizer.step()
        assert last_step(optimizer).loss == (losses[0] + losses[1]).detach()
        optimizer.zero_grad()
        for sync in (False, True):
            sharded.set_requires_gradient_sync(sync)
            task.loss_of(sharded, batch).backward()
        with pytest.raises(TypeError, match=r"after set_requires_gradient_sync\(False\)"):
            optimizer.step()


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
# Dynamo looks at a loss that a function is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_step() -> None:
    """Dynamo breaks the graph at `backward()`, which is called as it is."""
    model = task.network()
    optimizer = task.wrapped(model)

    @torch.compile(backend="eager")
    def train(batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = task.loss_of(model, batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    with losses_from_backward(optimizer):
        for batch in task.batches()[:3]:
            assert train(batch) == last_step(optimizer).loss


def test_a_compiled_model() -> None:
    model = task.network()
    optimizer = task.wrapped(model)
    compiled = torch.compile(model, backend="eager")
    loss = task.loss_of(compiled, task.batches()[0])
    with losses_from_backward(optimizer):
        loss.backward()
        optimizer.step()
    assert last_step(optimizer).loss == loss.detach()


def twice(optimizer: Any, param: Any) -> None:
    param.sum().backward()
    optimizer.step()
    param.sum().backward()
    optimizer.step()


def partly(optimizer: Any, param: Any) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    other = optimizer.param_groups[1]["params"][0]
    (param.sum() + other.sum()).backward()
    param.grad = None
    (param.sum() + other.sum()).backward()
    optimizer.step()


def partly_zero(optimizer: Any, param: Any) -> None:
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    optimizer.add_param_group({"params": list(layers.parameters())})
    layers[1](layers[0](param)).sum().backward()
    layers[1].zero_grad(set_to_none=False)
    optimizer.step()


def broken(optimizer: Any, param: Any) -> None:
    def fail(_: Tensor) -> None:
        raise ZeroDivisionError

    early = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [early]})
    late = param * 2
    late.register_hook(fail)
    loss = (late * early).sum()
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    optimizer.step()


def an_edge(optimizer: Any, param: Any) -> None:
    edge = torch.autograd.graph.get_gradient_edge(param.sum())
    torch.autograd.backward([edge], [torch.tensor(1.0)])
    optimizer.step()


def recorded_too(optimizer: Any, param: Any) -> None:
    param.sum().backward()
    optimizer.record_loss(1.0, reduction="sum")


def clipping_recorded_too(optimizer: Any, param: Any) -> None:
    param.sum().backward()
    norm = nn.utils.clip_grad_norm_([param], 0.1)
    optimizer.record_clipping(0.1 / norm)


def clipped_between(optimizer: Any, param: Any) -> None:
    for _ in range(2):
        param.sum().backward()
        nn.utils.clip_grad_norm_([param], 0.1)
    optimizer.step()


def not_seen(optimizer: Any, param: Any) -> None:
    (param.grad,) = torch.autograd.grad(param.sum(), param)
    optimizer.step()


def set_after_a_reset(optimizer: Any, param: Any) -> None:
    param.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    (param.grad,) = torch.autograd.grad(param.square().sum(), param)
    param.sum().backward()
    optimizer.step()


def set_after_a_reset_of_the_model(optimizer: Any, param: Any) -> None:
    param.sum().backward()
    optimizer.step()
    nn.ParameterList([param]).zero_grad()
    (param.grad,) = torch.autograd.grad(param.square().sum(), param)
    param.sum().backward()
    optimizer.step()


def another_thread(optimizer: Any, param: Any) -> None:
    thread = threading.Thread(target=param.sum().backward)
    thread.start()
    thread.join()
    param.sum().backward()
    optimizer.step()


def set_by_hand(optimizer: Any, param: Any) -> None:
    param.sum().backward()
    (param.grad,) = torch.autograd.grad(param.square().sum(), param)
    param.sum().backward()
    optimizer.step()


def zeroed_by_hand(optimizer: Any, param: Any) -> None:
    param.sum().backward()
    param.grad.zero_()
    param.sum().backward()
    optimizer.step()


def reset_by_another(optimizer: Any, param: Any) -> None:
    other = MoMoWrapper(SGD([param], lr=0.01))
    param.sum().backward()
    other.zero_grad(set_to_none=False)
    param.sum().backward()
    optimizer.step()


def in_a_hook(optimizer: Any, param: Any) -> None:
    hook = param.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    try:
        param.sum().backward()
    finally:
        hook.remove()


REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "nothing was differentiated": (
        lambda o, _: o.step(),
        r"has seen no backward\(\) add to them.*Write optimizer.record_loss",
    ),
    "differentiated by another function": (not_seen, "It does not see torch.autograd.grad"),
    "another thread": (another_thread, "added to gradients that were set or changed by something"),
    "gradients that were set": (
        set_by_hand,
        "added to gradients that were set or changed by something",
    ),
    "gradients that were set after a reset": (
        set_after_a_reset,
        "added to gradients that were set or changed by something",
    ),
    "after a reset of the model": (
        set_after_a_reset_of_the_model,
        "added to gradients that were set or changed by something",
    ),
    "gradients zeroed by hand": (
        zeroed_by_hand,
        "added to gradients that were set or changed by something",
    ),
    "reset by another optimizer": (
        reset_by_another,
        "added to gradients that were set or changed by something",
    ),
    "within backward()": (in_a_hook, r"or a backward\(\) that has not ended"),
    "clipped between two": (
        clipped_between,
        r"Call clip_grad_norm_\(\) once, after the last backward\(\)",
    ),
    "clipping that is recorded, too": (
        clipping_recorded_too,
        r"record_clipping\(\) was called within losses_from_backward.*is seen already",
    ),
    "the same loss for two steps": (
        lambda o, p: (p.sum().backward(), o.step(), o.step()),
        r"step\(\) needs the loss",
    ),
    "no reset": (twice, r"those of an earlier step.*Call optimizer.zero_grad\(\) or model.zero"),
    "reset in part": (partly, "only some of the optimizer's gradients were reset"),
    "zero in part": (partly_zero, "only some of the optimizer's gradients were reset"),
    "several elements": (
        lambda o, p: (p.backward(torch.ones(2)), o.step()),
        r"called on a tensor of shape \[2\], expected a one-element loss. Write opt",
    ),
    "an edge": (
        an_edge,
        "called on an edge of the graph",
    ),
    "an error in backward()": (broken, r"raised an error after it had added some gradients"),
    "a loss that is given, too": (
        lambda o, p: (p.sum().backward(), o.step(loss=1.0)),
        "got a loss, but 1 were already recorded",
    ),
    "a loss that is recorded, too": (
        recorded_too,
        r"record_loss\(\) was called within losses_from_backward.*losses are recorded already",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_an_ambiguous_loss_raises(call: Any, message: str) -> None:
    param = nn.Parameter(torch.tensor([2.0, 3.0]))
    optimizer = MoMoWrapper(SGD([param], lr=0.01))
    with (
        losses_from_backward(optimizer),
        pytest.raises((TypeError, ValueError), match=f"(?s){message}"),
    ):
        call(optimizer, param)
    optimizer.zero_grad()
    with losses_from_backward(optimizer):  # and it continues after a reset
        param.sum().backward()
        optimizer.step()


def test_gradients_from_before_are_not_taken_for_those_of_a_loss() -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = MoMoWrapper(SGD([param], lr=0.1))
    param.sum().backward()
    with losses_from_backward(optimizer):
        param.sum().backward()
        with pytest.raises(TypeError, match="those of an earlier step"):
            optimizer.step()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_off_afterwards_even_after_an_error(error: type[BaseException]) -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = MoMoWrapper(SGD([param], lr=0.1))
    with pytest.raises(error), losses_from_backward(optimizer):  # noqa: PT012
        param.sum().backward()
        raise error
    with pytest.raises(TypeError, match="needs the loss"):
        optimizer.step()
    optimizer.step(loss=2.0)
    param.sum().backward()
    with pytest.raises(TypeError, match="needs the loss"):
        optimizer.step()


def test_later_patches_of_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the outermost patch is removed; an inner one that stays calls the original."""
    param = nn.Parameter(torch.ones(2))
    optimizer = MoMoWrapper(SGD([param], lr=0.1))
    calls = []
    with monkeypatch.context() as patched:
        with losses_from_backward(optimizer):
            below = torch.autograd.backward

            def backward(*args: Any, **kwargs: Any) -> None:
                calls.append(1)
                below(*args, **kwargs)

            patched.setattr(torch.autograd, "backward", backward)
        with losses_from_backward(optimizer):
            param.sum().backward()
            optimizer.step()
            assert last_step(optimizer).loss == 2.0
        assert calls == [1]
    vars(torch.autograd)["backward"] = ORIGINALS[0]


def test_wrong_optimizers() -> None:
    optimizer = MoMoWrapper(SGD([nn.Parameter(torch.ones(2))], lr=0.1))
    with pytest.raises(TypeError, match="no optimizer"), losses_from_backward():
        pass
    with pytest.raises(TypeError, match="got SGD"), losses_from_backward(optimizer.base):
        pass
    with (
        losses_from_backward(optimizer),
        pytest.raises(ValueError, match="already inside such a with statement"),
        losses_from_backward(optimizer),
    ):
        pass
    with pytest.raises(ValueError, match="once"), losses_from_backward(optimizer, optimizer):
        pass
    with pytest.raises(TypeError, match="got SGD"), losses_from_backward(optimizer, optimizer.base):
        pass
    optimizer.record_loss(1.0)  # as nothing is learned


@contextmanager
def in_a_thread(function: Callable[[], None]) -> Iterator[None]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # raised again in the test
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_do_not_see_each_other() -> None:
    """Each learns the losses of its own; the last one out turns it off."""
    start = threading.Barrier(2)

    def train(value: float) -> None:
        param = nn.Parameter(torch.tensor([value]))
        optimizer = MoMoWrapper(SGD([param], lr=0.0001, momentum=0.9))
        start.wait()
        with losses_from_backward(optimizer):
            for _ in range(50):
                optimizer.zero_grad()
                loss = param.square().sum()
                loss.backward()
                optimizer.step()
                assert last_step(optimizer).loss == loss.detach()

    with in_a_thread(lambda: train(3.0)):
        train(5.0)


def test_backward_passes_of_other_threads_are_ignored() -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = MoMoWrapper(SGD([param], lr=0.1))
    with losses_from_backward(optimizer):
        with in_a_thread(lambda: param.sum().backward()):
            pass
        with pytest.raises(TypeError, match="needs the loss"):
            optimizer.step()

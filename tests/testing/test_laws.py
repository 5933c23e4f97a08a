"""`check_adapter` on every adapter, and on adapters that are wrong in one thing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import ASGD, SGD, Adam, AdamW, Optimizer, RMSprop, Rprop

from momo_wrap import Averaging, ProposingAdapter, ReadingAdapter, adapter_for
from momo_wrap.adapters import AdamAdapter, Reading, RMSpropAdapter, SGDAdapter
from momo_wrap.fast.updates import UPDATES, AdamUpdate
from momo_wrap.testing import LAWS, check_adapter
from tests.cases import ADAPTERS, ALGORITHMS, Case
from tests.releases import Adafactor, Muon


def only(*laws: str) -> list[str]:
    """The laws to omit."""
    return [law for law in LAWS if law not in laws]


# Other settings of an adapter change its direction: compared here, and with the bare base in
# test_reduction. Other adapters change how the state is read besides; the rest is common to all.
OF_SETTINGS = ("proposing", "compiled")
OF_STATE = (*OF_SETTINGS, "resume", "missing gradients")
ALL_LAWS = ("SGD-momentum", "NAdam")


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ALGORITHMS, ids=str)
def test_every_reading_adapter(case: Case, every: bool) -> None:
    """Among the laws: equal to the proposing adapter within 1e-9 over 100 steps in float64."""
    base = case.make([torch.zeros(2, 2, requires_grad=True)])
    adapter = adapter_for(base)
    assert isinstance(adapter, ReadingAdapter)
    applicable = {
        "maximize": case.takes_maximize,
        "compiled": (type(base), type(adapter)) in UPDATES,
    }
    laws = [law for law in LAWS if applicable.get(law, True)]
    if not every and case.name not in ALL_LAWS:
        some = OF_STATE if case in ADAPTERS else OF_SETTINGS
        laws = [law for law in laws if law in some]
    assert check_adapter(case.make, skip=only(*laws)) == laws


PROPOSED: dict[str, Callable[[Any], Optimizer]] = {
    "Muon": lambda p: Muon(p, lr=0.02),
    "Muon without Nesterov": lambda p: Muon(p, lr=0.02, nesterov=False),
    "Adafactor": lambda p: Adafactor(p, lr=0.05),
    "ASGD": lambda p: ASGD(p, lr=0.05),
    "Rprop": lambda p: Rprop(p, lr=0.01),
    "RMSprop with momentum": lambda p: RMSprop(p, lr=0.001, momentum=0.9),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:MoMoWrapper uses ProposingAdapter")
@pytest.mark.parametrize("make", PROPOSED.values(), ids=PROPOSED)
def test_every_proposing_adapter(make: Callable[[Any], Optimizer]) -> None:
    check_adapter(make)


class WrongDecay(AdamAdapter):
    def averaging(self, group: Any, state: Any) -> Averaging:
        return Averaging(0.8, 0.2, bias_corrected=True)


class WrongScale(SGDAdapter):
    def averaging(self, group: Any, state: Any) -> Averaging:
        return Averaging(0.9, 1.0, first_weight=1.0, buffer_scale=1.1)


class WithoutEps(AdamAdapter):
    def scalars(self, read: Any) -> Any:
        return {**super().scalars(read), "offset": 0.0}


class SharedSteps(AdamAdapter):
    """Takes all parameters to have made as many steps as the first."""

    def read(self, group: Any, params: Any, state: Any) -> Reading:
        reading = super().read(group, params, state)
        first = {
            name: value[0] if isinstance(value, list) else value
            for name, value in reading.scalars.items()
        }
        return Reading(reading.buffer, reading.tensors, first)


class FirstGroupOnly(SGDAdapter):
    """Takes the buffers of the first parameters for those of any group."""

    def read(self, group: Any, params: Any, state: Any) -> Reading:
        return Reading([list(state.values())[i]["momentum_buffer"] for i, _ in enumerate(params)])


class Spoiling(SGDAdapter):
    """Changes the base's buffer in place."""

    def preconditioned(self, block: Any) -> Tensor:
        changed: Tensor = block.flat("buffer").mul_(1.001)
        return changed


class Remembering(SGDAdapter):
    """Keeps in itself what belongs into the base's state."""

    steps = 0

    def preconditioned(self, block: Any) -> Tensor:
        self.steps += 1
        return self.grad_avg(block) + 1e-6 * self.steps


class Unfinished(ReadingAdapter):
    def averaging(self, group: Any, state: Any) -> Averaging:
        return Averaging(0.9, 1.0)

    def read(self, group: Any, params: Any, state: Any) -> Reading:
        return Reading([state[p]["exp_avg"] for p in params])


class OfBlocks(SGDAdapter):
    """Looks at a block as if it were the whole group."""

    def preconditioned(self, block: Any) -> Tensor:
        u = self.grad_avg(block)
        return torch.div(u, u.norm())


class Normalised(SGD):
    """Steps of a fixed length in each group."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            grads = [p.grad for p in group["params"] if p.grad is not None]
            norm = torch.cat([g.reshape(-1).double() for g in grads]).norm()
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad / norm.to(p.dtype), alpha=group["lr"])


class Coarse(SGDAdapter):
    """Loses a part of the direction below float64."""

    def preconditioned(self, block: Any) -> Tensor:
        u = self.grad_avg(block)
        return u if u.dtype is torch.float64 else 0.7 * u


class LeavesSettings(SGDAdapter):
    def observe(self, base: Any, weight_decay_form: Any, engine: Any) -> Any:
        base.param_groups[0]["foreach"] = False
        return super().observe(base, weight_decay_form, engine)


class Flat(SGDAdapter):
    """Loses the sign of the direction."""

    def preconditioned(self, block: Any) -> Tensor:
        return -self.grad_avg(block)


def adam(params: Any) -> Optimizer:
    return Adam(params, lr=0.01, eps=1e-3)


def sgd(params: Any) -> Optimizer:
    return SGD(params, lr=0.005, momentum=0.9)


# The adapter, the optimizer, and the laws that must be among those that fail, and must not be.
WRONG: dict[str, tuple[Any, Callable[[Any], Optimizer], set[str], set[str]]] = {
    "decay": (WrongDecay(), adam, {"proposing", "late group"}, {"bare"}),
    "scale": (WrongScale(), sgd, {"proposing"}, {"stop"}),
    "preconditioner": (WithoutEps(), adam, {"proposing", "groups"}, {"stop", "resume"}),
    "step counts": (SharedSteps(), adam, {"missing gradients"}, {"proposing"}),
    "parameters": (FirstGroupOnly(), sgd, {"groups", "late group"}, {"bare"}),
    "in place": (Spoiling(), sgd, {"late group"}, {"settings"}),
    "memory": (Remembering(), sgd, {"bare", "resume"}, {"settings"}),
    "crash": (Unfinished(), sgd, set(LAWS) - {"compiled"}, set()),
    "blocks": (OfBlocks(), lambda p: Normalised(p, lr=0.05), {"blocks"}, {"bare"}),
    "low precision": (Coarse(), sgd, {"bare"}, {"proposing"}),
    "settings": (LeavesSettings(), sgd, {"settings"}, {"bare"}),
    "direction": (Flat(), sgd, {"bare", "proposing", "bfloat16"}, {"settings", "stop"}),
}


@pytest.mark.parametrize(("adapter", "make", "failing", "holding"), WRONG.values(), ids=WRONG)
def test_a_wrong_adapter_fails_the_laws_that_it_breaks(
    adapter: Any, make: Callable[[Any], Optimizer], failing: set[str], holding: set[str]
) -> None:
    with pytest.raises(AssertionError) as caught:
        check_adapter(make, adapter, skip=only(*failing, *holding))
    message = str(caught.value)
    found = {law for law in LAWS if re.search(rf"^  {law}: ", message, re.MULTILINE)}
    assert failing <= found
    assert not holding & found
    assert message.startswith(f"{type(adapter).__name__} fails {len(found)} of its laws:")
    assert re.search(r": .*(\d|KeyError: 'exp_avg'|foreach was None and is False)", message)


class WrongUpdate(AdamUpdate):
    """Decays the second moment as it does the first."""

    def updated(self, block: Any) -> dict[str, Tensor]:
        new = super().updated(block)
        return {**new, "exp_avg_sq": torch.lerp(new["exp_avg_sq"], new["buffer"] ** 2, 0.1)}


class ForgetsToCount(AdamUpdate):
    """Leaves the number of steps to the base, which is not asked."""

    def count(self, cells: Any) -> None: ...


@pytest.mark.parametrize("update", [WrongUpdate(), ForgetsToCount()], ids=["state", "count"])
def test_a_wrong_update_of_the_fast_path_fails_its_law(
    update: AdamUpdate, monkeypatch: pytest.MonkeyPatch
) -> None:
    table: Any = UPDATES
    monkeypatch.setitem(table, (Adam, AdamAdapter), update)
    with pytest.raises(AssertionError, match=r"fails 1 of its laws:\n  compiled: .* differ by"):
        check_adapter(adam, skip=only("compiled", "bare", "groups"))


def test_message_of_a_failing_law() -> None:
    with pytest.raises(AssertionError, match="fails 1 of its laws") as caught:
        check_adapter(adam, SharedSteps(), skip=only("bare", "missing gradients"))
    assert re.search(
        r"missing gradients: without a bound, wrapped and unwrapped optimizer differ by \S+ "
        r"relative to the parameters \(allowed: 1e-09\), from step \d+ on\.",
        str(caught.value),
    )


def test_laws_can_be_left_out() -> None:
    left_out = ["missing gradients", *only("missing gradients", "stop", "settings")]
    assert check_adapter(adam, SharedSteps(), skip=left_out) == ["stop", "settings"]
    with pytest.raises(ValueError, match=r"skip names \['speed'\], expected some of \['bare'"):
        check_adapter(adam, skip=["speed"])


def test_adapter_that_says_that_it_can_not() -> None:
    message = r"RMSpropAdapter\(\) says that it can't read this optimizer: with momentum its buffer"
    with pytest.raises(AssertionError, match=message):
        check_adapter(lambda p: RMSprop(p, lr=0.001, momentum=0.9), RMSpropAdapter())


def test_optimizer_that_does_not_train_checks_nothing() -> None:
    message = (
        r"changed the loss from (\S+) to \1 in 100 steps, expected less .* Choose a learning rate"
    )
    with pytest.raises(AssertionError, match=message):
        check_adapter(lambda p: SGD(p, lr=1e-9))


def test_a_tensor_lr_that_is_shared_stays_as_it_is() -> None:
    lr = torch.tensor(0.01, dtype=torch.float64)
    laws = only("groups", "late group", "resume", "settings")
    check_adapter(lambda p: AdamW(p, lr=lr, foreach=False, eps=1e-3), skip=laws)
    assert float(lr) == 0.01


def test_bare_settings_that_are_no_part_of_the_laws() -> None:
    """Weight decay, which reading adapters apply in their own form, and maximize."""
    laws = only("bare", "proposing", "maximize")
    for adapter in (None, ProposingAdapter()):
        check_adapter(lambda p: AdamW(p, lr=0.01, weight_decay=0.3), adapter, skip=laws)

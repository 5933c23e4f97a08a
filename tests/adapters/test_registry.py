"""Looking adapters up, registering one's own, and what happens where there is none."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_optimizer
import torch
from lion_pytorch import Lion
from torch import Tensor
from torch.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from momo_wrap import (
    MoMo,
    MoMoWrapper,
    ProposingAdapter,
    ReadingAdapter,
    adapter_for,
    register_adapter,
)
from momo_wrap.adapters import (
    AdadeltaAdapter,
    AdagradAdapter,
    AdamAdapter,
    AdamaxAdapter,
    LionAdapter,
    NAdamAdapter,
    RAdamAdapter,
    RMSpropAdapter,
    SGDAdapter,
    registry,
)
from tests.problems import Problem, relative_distance, trajectory
from tests.releases import Adafactor, Muon

READ: dict[type[Optimizer], type[ReadingAdapter]] = {
    SGD: SGDAdapter,
    Adam: AdamAdapter,
    AdamW: AdamAdapter,
    NAdam: NAdamAdapter,
    RAdam: RAdamAdapter,
    Adamax: AdamaxAdapter,
    Adagrad: AdagradAdapter,
    Adadelta: AdadeltaAdapter,
    RMSprop: RMSpropAdapter,
    Lion: LionAdapter,
}


class RenamedAdam(Adam):
    """Adam under another name."""


def some_params() -> list[Tensor]:
    return [torch.ones(1024, 256, requires_grad=True)]  # 1 MiB


@pytest.mark.parametrize(("kind", "adapter"), READ.items())
def test_read_without_a_warning(kind: type[Optimizer], adapter: type[ReadingAdapter]) -> None:
    assert type(adapter_for(kind(some_params(), lr=0.1))) is adapter  # type: ignore[call-arg]


def test_registered_adapter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_adapters", dict(registry._adapters))
    adapter = AdamAdapter()
    with pytest.warns(UserWarning, match="no adapter is registered for it"):
        assert isinstance(adapter_for(RenamedAdam(some_params())), ProposingAdapter)
    register_adapter(RenamedAdam, adapter)
    assert MoMoWrapper(RenamedAdam(Problem().params)).adapter is adapter


# Optimizers with a proposing adapter by default, why, and the MiB that it needs for 1 MiB.
PROPOSED: dict[str, tuple[Callable[[list[Tensor]], Optimizer], str, str]] = {
    "a subclass": (RenamedAdam, "no adapter is registered for it", "2 MiB"),
    "Adafactor": (Adafactor, "no adapter is registered for it", "2 MiB"),
    "RMSprop with momentum": (
        lambda p: RMSprop(p, momentum=0.9),
        "with momentum its buffer averages preconditioned gradients, not gradients",
        "2 MiB",
    ),
    "Adadelta without a memory": (
        lambda p: Adadelta(p, rho=0.0),
        "with rho=0 its state does not determine its step",
        "2 MiB",
    ),
    "Lion without a memory": (
        lambda p: Lion(p, betas=(0.9, 0.0)),
        "with betas[1]=0 its state does not determine its direction",
        "2 MiB",
    ),
    "Lion with another decay": (
        lambda p: Lion(p, weight_decay=0.1, decoupled_weight_decay=True),
        "with decoupled_wd=True its step is not plain Lion's",
        "2 MiB",
    ),
    "Lion with coupled decay": (
        lambda p: pytorch_optimizer.Lion(p, weight_decay=0.1, weight_decouple=False),
        "with weight_decouple=False it adds its decay to `.grad` in place",
        "2 MiB",
    ),
    "Lion with complex parameters": (
        lambda p: Lion([p[0].detach()[:, :128].to(torch.complex64).requires_grad_()]),
        "packages differ in the sign of complex numbers",
        "2 MiB",
    ),
}


@pytest.mark.parametrize(("make", "reason", "memory"), PROPOSED.values(), ids=PROPOSED)
def test_proposed_with_one_warning(
    make: Callable[[list[Tensor]], Optimizer], reason: str, memory: str
) -> None:
    optimizer = make(some_params())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrapper = MoMoWrapper(optimizer)
    assert isinstance(wrapper.adapter, ProposingAdapter)
    (warning,) = caught
    kind = type(optimizer)
    assert f"for {kind.__module__}.{kind.__qualname__}: {reason}. During" in str(warning.message)
    assert f"that needs {memory} more" in str(warning.message)
    assert warning.category is UserWarning
    with warnings.catch_warnings():
        (advice,) = re.findall(r"write (warnings.*)\.$", str(warning.message))
        exec(advice)  # the line that silences it
        MoMoWrapper(optimizer)
    assert warning.filename == __file__  # the user's line


KNOWN: dict[str, tuple[Callable[[list[Tensor]], Optimizer], float]] = {
    "Muon, whose own average is read": (lambda p: Muon(p, nesterov=False), 1),
    "Muon with Nesterov, which looks at the gradients": (Muon, 2),
    "ASGD, with an average of its own": (torch.optim.ASGD, 3),
}


@pytest.mark.parametrize(("make", "memory"), KNOWN.values(), ids=KNOWN)
def test_proposed_without_a_warning(
    make: Callable[[list[Tensor]], Optimizer], memory: float
) -> None:
    """Nothing more is known of these: the memory is in the docs."""
    optimizer = make(some_params())
    adapter = MoMoWrapper([optimizer, SGD([torch.ones(1, requires_grad=True)])]).adapter
    assert isinstance(adapter, list)
    assert isinstance(adapter[0], ProposingAdapter)
    assert adapter[0].memory(optimizer) == memory * 2**20
    assert "0x" not in repr(adapter[0])


def test_no_warning_for_a_chosen_adapter() -> None:
    adapter = ProposingAdapter()
    assert MoMoWrapper(Muon(some_params()), adapter=adapter).adapter is adapter


def test_settings_that_become_unreadable_in_mid_run() -> None:
    """A scheduler may set the momentum of RMSprop; its adapter can't follow."""
    param = torch.ones(2, requires_grad=True)
    optimizer = MoMoWrapper(RMSprop([param]))
    optimizer.param_groups[0]["momentum"] = 0.9
    param.grad = torch.ones(2)
    with pytest.raises(ValueError, match=re.escape("can't read RMSprop: with momentum")):
        optimizer.step(loss=1.0)
    assert len(optimizer.state) == 0
    assert torch.equal(param.detach(), torch.ones(2))


def test_several_optimizers_have_an_adapter_each() -> None:
    optimizers = [SGD(some_params()), Adam(some_params())]
    wrapper = MoMoWrapper(optimizers)
    chosen: Any = wrapper.adapter
    assert [type(adapter) for adapter in chosen] == [SGDAdapter, AdamAdapter]
    own = AdamAdapter()
    chosen = MoMoWrapper(optimizers, adapter=[None, own]).adapter
    assert isinstance(chosen[0], SGDAdapter)
    assert chosen[1] is own


def test_adapter_argument_comes_first() -> None:
    renamed = trajectory(
        lambda p: MoMoWrapper(RenamedAdam(p, lr=0.3), MoMo(0.1), adapter=AdamAdapter()), 10
    )
    known = trajectory(lambda p: MoMoWrapper(Adam(p, lr=0.3), MoMo(0.1)), 10)
    assert relative_distance(renamed, known) == 0.0


def test_registering_again_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_adapters", dict(registry._adapters))
    adapter = AdamAdapter()
    register_adapter(Adam, adapter)
    assert adapter_for(Adam(Problem().params)) is adapter

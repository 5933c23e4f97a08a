"""Looking adapters up, and registering one's own."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from momo_wrap import MoMo, MoMoWrapper, adapter_for, register_adapter
from momo_wrap.adapters import AdamAdapter, SGDAdapter, registry
from tests.problems import Problem, relative_distance, trajectory


class RenamedAdam(Adam):
    """Adam under another name."""


def test_known_optimizers() -> None:
    params = [torch.ones(1, requires_grad=True)]
    assert isinstance(adapter_for(SGD(params)), SGDAdapter)
    assert isinstance(adapter_for(Adam(params)), AdamAdapter)
    assert isinstance(adapter_for(AdamW(params)), AdamAdapter)


def test_registered_adapter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_adapters", dict(registry._adapters))
    adapter = AdamAdapter()
    with pytest.raises(TypeError, match="No adapter is registered"):
        MoMoWrapper(RenamedAdam(Problem().params))
    register_adapter(RenamedAdam, adapter)
    assert MoMoWrapper(RenamedAdam(Problem().params)).adapter is adapter


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

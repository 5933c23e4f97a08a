"""The state that is restored after a step was repeated for a probe."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, deque
from typing import Any

import pytest
import torch
from torch import nn

from momo_wrap.integrations.repeating import undone, with_own_container


class Owner:
    """Attributes of all kinds."""

    def __init__(self) -> None:
        self.number, self.text = 1, "one"
        self.tensor = torch.ones(2)
        self.items = [1]
        self.names = {"a"}
        self.queue = deque([1])
        self.nested: dict[str, Any] = {"list": [1], "deeper": defaultdict(list, a=[1])}
        self.ordered = OrderedDict(a=1)
        self.shared = object()

    def log(self) -> int:
        return 1


def change(owner: Owner) -> None:
    owner.number += 1
    owner.text += "!"
    owner.tensor += 1
    owner.items.append(2)
    owner.names.add("b")
    owner.queue.append(2)
    owner.nested["list"].append(2)
    owner.nested["deeper"]["a"].append(2)
    owner.nested["deeper"]["b"].append(2)
    owner.ordered["b"] = 2
    owner.new = 1  # type: ignore[attr-defined]
    del owner.text


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_attributes_and_buffers_are_put_back(error: type[BaseException] | None) -> None:
    owner, module = Owner(), nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    kept, untouched = dict(vars(owner)), Owner()
    norm: Any = module[0]
    buffers = {name: (buffer, buffer.clone()) for name, buffer in module.named_buffers()}

    def repeat() -> None:
        with undone(module, owner, without=((owner, "log"),)):
            assert owner.log() is None
            assert owner.shared is kept["shared"]
            change(owner)
            module(torch.randn(4, 2))
            norm.running_var = torch.zeros(2)
            if error is not None:
                raise error

    if error is None:
        repeat()
    else:
        with pytest.raises(error):
            repeat()
    assert vars(owner).keys() == kept.keys()
    assert all(vars(owner)[name] is value for name, value in kept.items())
    for name in ("number", "text", "items", "names", "queue", "nested", "ordered"):
        assert getattr(owner, name) == getattr(untouched, name)
    assert torch.equal(owner.tensor, untouched.tensor)
    assert owner.log() == 1
    for name, buffer in module.named_buffers():
        before, value = buffers[name]
        assert buffer is before
        assert torch.equal(buffer, value)


def test_modules_keep_what_makes_them_up() -> None:
    """FSDP, for one, puts other parameters into a module."""
    module = nn.Linear(2, 2)
    other = nn.Parameter(torch.zeros(2, 2))
    with undone(module, module, without=()):
        module.weight = other
        module.register_buffer("late", torch.ones(1))
    assert module.weight is other
    assert dict(module.named_buffers()).keys() == {"late"}


@pytest.mark.parametrize("batch", [[torch.ones(1)], {0: torch.ones(1)}, UserDict({0: "a"})])
def test_a_container_of_its_own_shares_the_items(batch: Any) -> None:
    own = with_own_container(batch)
    assert type(own) is type(batch)
    assert own.pop(0) is batch[0]
    assert (len(own), len(batch)) == (0, 1)


def test_other_values_than_containers_are_passed_through() -> None:
    for batch in (torch.ones(1), (1, 2), object()):
        assert with_own_container(batch) is batch

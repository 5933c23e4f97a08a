"""The common part of the trainers; none of them is imported without need."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from typing import Any

import pytest
import torch

from momo_wrap.integrations import losses_from_backward, step_metrics, wrapper_of
from momo_wrap.research import PerGroup
from tests.integrations import task


def test_no_trainer_is_imported_unasked() -> None:
    code = """
import sys
import momo_wrap
assert not any("integrations" in name for name in sys.modules)
import momo_wrap.integrations
trainers = {"lightning", "pytorch_lightning", "accelerate", "transformers", "fastai", "ignite"}
found = trainers & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_group_needs_no_number() -> None:
    model = task.network()
    optimizer = task.wrapped(model)
    optimizer.param_groups.pop()
    optimizer.step(loss=1.0)
    assert list(step_metrics(optimizer)) == ["momo/theta", "momo/effective_lr"]


def test_groups_keep_the_names_that_they_have() -> None:
    optimizer = task.wrapped(task.network())
    optimizer.param_groups[0]["name"] = "body"
    optimizer.step(loss=1.0)
    names = ["momo/theta", "momo/effective_lr/body", "momo/effective_lr/pg2"]
    assert list(step_metrics(optimizer)) == names


def test_thetas_of_groups_have_the_same_names() -> None:
    optimizer = task.wrapped(task.network())
    optimizer.rule = PerGroup()
    optimizer.step(loss=1.0)
    metrics = step_metrics(optimizer)
    assert list(metrics)[:2] == ["momo/theta/pg1", "momo/theta/pg2"]
    assert all(value.dim() == 0 for value in metrics.values())


def test_nothing_but_a_wrapper_is_looked_for() -> None:
    optimizer = torch.optim.SGD(task.network().parameters())
    with pytest.raises(TypeError, match=r"got SGD\. Give the trainer MoMoWrapper"):
        wrapper_of(optimizer)


def test_a_bare_optimizer_is_named_with_its_wrapper_of_the_trainer() -> None:
    prepared = types.SimpleNamespace(optimizer=torch.optim.SGD(task.network().parameters()))
    message = r"got SGD in SimpleNamespace. .* one of momo_wrap.optim, such as TrustedAdamW"
    with pytest.raises(TypeError, match=message):
        wrapper_of(prepared)


def test_an_optimizer_that_is_not_made_yet() -> None:
    """As `trainer.optimizer` is before `train()`, where Trainer makes it from a class."""
    message = r"got None\. .* first call trainer\.create_optimizer\(\)"
    with pytest.raises(TypeError, match=message), losses_from_backward(None):
        pass
    with pytest.raises(TypeError, match=message):
        step_metrics(None)


CALLERS = {
    "lightning.pytorch.core.optimizer": "callbacks=[MoMoCallback()] of momo_wrap.",
    "pytorch_lightning.core": "in manual optimization write optimizer.record_loss(loss)",
    "fastai.learner": "cbs=MoMoCallback() of momo_wrap.integrations.fastai",
    "ignite.engine": "recorded(loss_function, optimizer) of momo_wrap.integrations.ignite",
    "stable_baselines3.ppo.ppo": "losses_from_backward(model.policy.optimizer): model.learn(",
    "transformers.trainer": "use MoMoTrainer of momo_wrap.integrations.transformers",
    "accelerate.optimizer": "backward(accelerator, loss, optimizer) of momo_wrap.integrations.acc",
    "of_mine": "If you can't change the code, write with momo_wrap.integrations.",
}


@pytest.mark.parametrize(("module", "message"), CALLERS.items(), ids=CALLERS)
def test_a_bare_step_names_the_integration_of_who_calls(module: str, message: str) -> None:
    names: dict[str, Any] = {"__name__": module}
    exec("def step(optimizer):\n    optimizer.step()", names)
    through_accelerate: dict[str, Any] = {"__name__": "accelerate.optimizer", "step": names["step"]}
    exec("def call(optimizer):\n    step(optimizer)", through_accelerate)
    optimizer = task.wrapped(task.network())
    call = names["step"] if module == "of_mine" else through_accelerate["call"]
    with pytest.raises(TypeError, match=re.escape(message)):
        call(optimizer)

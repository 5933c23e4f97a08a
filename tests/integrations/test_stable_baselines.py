"""stable-baselines3: losses that are local variables of `train()`, and runs that are saved."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from momo_wrap import MoMo, MoMoWrapper
from momo_wrap.integrations import losses_from_backward
from momo_wrap.optim import MoMoAdam, TrustedAdam
from tests.integrations import task
from tests.problems import flat, last_step

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")
    from stable_baselines3 import DQN, PPO, SAC

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of its own and of gymnasium

# A policy's loss is negative for good: its bound is not 0.
POLICY = {"optimizer_class": TrustedAdam, "optimizer_kwargs": {"lower_bound": -1.0}}
VALUES = {"optimizer_class": MoMoAdam, "optimizer_kwargs": {"lower_bound": 0.0}}
MODELS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "PPO": (
        PPO,
        "CartPole-v1",
        {"learning_rate": 100.0, "policy_kwargs": POLICY, "n_steps": 32, "batch_size": 16},
    ),
    "DQN": (
        DQN,
        "CartPole-v1",
        {"learning_rate": 0.1, "policy_kwargs": VALUES, "learning_starts": 20, "train_freq": 1},
    ),
}


def made(name: str) -> Any:
    kind, environment, settings = MODELS[name]
    return kind("MlpPolicy", environment, seed=0, device="cpu", **settings)


def params(model: Any) -> Tensor:
    return flat(list(model.policy.parameters()))


def compared(model: Any, **optimizers: Any) -> list[float]:
    """Compare the last logged loss of each `train()` with the loss that the optimizer got."""
    train, seen = model.train, []

    def train_and_compare(*args: Any, **kwargs: Any) -> None:
        train(*args, **kwargs)
        for name, optimizer in optimizers.items():
            logged = float(model.logger.name_to_value[f"train/{name}"])
            assert float(last_step(optimizer).loss) == pytest.approx(logged, rel=1e-6)
            seen.append(logged)

    model.train = train_and_compare
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_of_the_method(name: str) -> None:
    model = made(name)
    optimizer = model.policy.optimizer
    records = task.watched(optimizer)
    before = params(model).clone()
    losses = compared(model, loss=optimizer)
    with losses_from_backward(optimizer):
        model.learn(64)
    assert len(set(losses)) == len(losses) >= 2
    assert any(0 < record.theta < 1 for record in records)
    assert not torch.equal(params(model), before)
    assert params(model).isfinite().all()


def test_actor_and_critic_learn_each_their_own() -> None:
    """The actor's pass leaves gradients in the critic, which its next `zero_grad` resets."""
    settings = {"optimizer_class": MoMoAdam, "optimizer_kwargs": {"rule": MoMo(-100.0)}}
    model = SAC("MlpPolicy", "Pendulum-v1", learning_starts=10, policy_kwargs=settings, seed=0)
    both = {"actor_loss": model.actor.optimizer, "critic_loss": model.critic.optimizer}
    losses = compared(model, **both)
    with losses_from_backward(*both.values()):
        model.learn(30)
    assert len(losses) == 2 * 20


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = made(name)
    with losses_from_backward(model.policy.optimizer):
        model.learn(64)
    model.save(tmp_path / "model")
    again = MODELS[name][0].load(tmp_path / "model", device="cpu")
    if name == "DQN":
        model.save_replay_buffer(tmp_path / "buffer")
        again.load_replay_buffer(tmp_path / "buffer")
    found = []
    for one in (model, again):
        optimizer = one.policy.optimizer
        assert isinstance(optimizer, MoMoWrapper)
        one.set_env(made(name).get_env())  # as it starts
        one.set_random_seed(1)
        with losses_from_backward(optimizer):
            one.learn(64, reset_num_timesteps=False)
        found.append((params(one), last_step(optimizer)))
    (first, record), (second, same) = found
    assert torch.equal(first, second)
    assert record == same


def test_without_a_loss_the_error_names_the_line_to_write() -> None:
    with pytest.raises(TypeError, match=r"stable-baselines3 calls it: .*\(model.policy.optimizer"):
        made("PPO").learn(32)

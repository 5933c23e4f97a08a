"""The states of torch's random number generators, to draw the same numbers again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def random_states(devices: Iterable[torch.device]) -> list[Tensor]:
    """Return the states of the random number generators of the CPU and of devices.

    Args:
        devices: The devices with a random number generator.
    """
    own = [torch.get_device_module(device).get_rng_state(device) for device in devices]
    return [torch.get_rng_state(), *own]


def set_random_states(devices: Iterable[torch.device], states: Sequence[Tensor]) -> None:
    """Set the states that `random_states` returned.

    Args:
        devices: The argument of that call.
        states: Its result.
    """
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.get_device_module(device).set_rng_state(state, device)


def differ(one: Tensor, other: Tensor) -> bool:
    """Return whether two states, which are on the host, differ."""
    return not torch.equal(one, other)

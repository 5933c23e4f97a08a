"""An optimizer that shares everything but its step with another optimizer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from momo_wrap.joint import members
from momo_wrap.state.loading import check_state_dict, load, restored_on_failure


@contextmanager
def lasting_tensors() -> Iterator[None]:
    """Create ordinary tensors, also inside `torch.inference_mode`.

    Inference tensors can't be updated in place outside of inference mode. Grad mode does not
    change.
    """
    enabled = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(enabled):
        yield


class _Shared:
    """An attribute that the wrapper and its base share; either may set it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, wrapper: SharedStateOptimizer | None, owner: type | None = None) -> Any:
        return self if wrapper is None else getattr(wrapper.base, self._name)

    def __set__(self, wrapper: SharedStateOptimizer, value: Any) -> None:
        # Optimizer.__init__ assigns new ones, before there is a base; the base keeps its own.
        if "base" in wrapper.__dict__:
            setattr(wrapper.base, self._name, value)


class SharedStateOptimizer(Optimizer):
    """A proxy with the groups, state, defaults and state dicts of `base`, and another step."""

    param_groups: list[dict[str, Any]] = _Shared()  # type: ignore[assignment]
    state: Any = _Shared()
    defaults: dict[str, Any] = _Shared()  # type: ignore[assignment]

    def __init__(self, base: Optimizer) -> None:
        # Sets up the hooks. The group is never used, see `_Shared` and `add_param_group`.
        super().__init__([{"params": []}], {})
        self.base = base

    def _check(self) -> None:
        """Raise for settings and a state of the base that the next step can't use."""

    def _export(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the base's state dict with the subclass's entries; must not change it."""
        return state_dict

    def _import(self) -> None:
        """Import the entries loaded into the base's groups; raises before it changes tensors."""

    @lasting_tensors()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the base; see `torch.optim.Optimizer.add_param_group`.

        Args:
            param_group: The parameters and their settings.

        Raises:
            ValueError: The settings are out of range or contradict those of other groups. The
                optimizer is unchanged, also after any other error.
        """
        if not hasattr(self, "base"):
            return  # Optimizer.__init__ adds a group; the base keeps its own
        with restored_on_failure(self):
            self.base.add_param_group(param_group)
            self._check()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients; see `torch.optim.Optimizer.zero_grad`."""
        self.base.zero_grad(set_to_none)

    def train(self) -> None:
        """Forward `train()` to schedule-free bases. Call it before training continues."""
        for member in members(self.base):
            getattr(member, "train", lambda: None)()

    def eval(self) -> None:
        """Forward `eval()` to schedule-free bases. Call it before evaluating or saving."""
        for member in members(self.base):
            getattr(member, "eval", lambda: None)()

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state dict, with the wrapper's state in its parameter groups.

        Returns:
            The argument for `load_state_dict`. An unwrapped optimizer of the base's type loads it
            too.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state_dict = self._export(self.base.state_dict())
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    @lasting_tensors()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, or the state dict of an unwrapped optimizer, atomically.

        Args:
            state_dict: The state dict. Without the wrapper's entries, the model starts again.

        Raises:
            TypeError: It is not a state dict.
            ValueError: It belongs to another optimizer or other parameters, or is damaged. The
                optimizer is unchanged, also after any other error.
        """
        check_state_dict(state_dict, self.base)
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        with restored_on_failure(self):
            load(self.base, state_dict)
            self._check()
            self._import()
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        # Hooks and a scheduler's patch of the step are dropped, as in torch; groups and state are
        # in the base.
        return {
            name: value
            for name, value in self.__dict__.items()
            if name != "step" and not name.startswith("_optimizer_")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "base" in state:
            super().__setstate__(state)
        else:  # groups and state, which tools set directly
            self.base.__setstate__(state)

    @lasting_tensors()
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied

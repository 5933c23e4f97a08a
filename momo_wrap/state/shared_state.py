"""An optimizer that shares everything but its step with the optimizer that it is made from."""

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
    """Make ordinary tensors, also where the caller is in `torch.inference_mode`.

    Tensors that are made in inference mode can't be updated in place outside of it. Whether
    gradients are recorded stays as it is.
    """
    enabled = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(enabled):
        yield


class _Shared:
    """An attribute that the wrapper shares with its base, whichever of the two it is set on."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, wrapper: SharedStateOptimizer | None, owner: type | None = None) -> Any:
        return self if wrapper is None else getattr(wrapper.base, self._name)

    def __set__(self, wrapper: SharedStateOptimizer, value: Any) -> None:
        # Optimizer.__init__ assigns fresh ones, before there is a base; those of the base count.
        if "base" in wrapper.__dict__:
            setattr(wrapper.base, self._name, value)


class SharedStateOptimizer(Optimizer):
    """A proxy with the groups, state, defaults and state dicts of `base`, and a step of its own."""

    param_groups: list[dict[str, Any]] = _Shared()  # type: ignore[assignment]
    state: Any = _Shared()
    defaults: dict[str, Any] = _Shared()  # type: ignore[assignment]

    def __init__(self, base: Optimizer) -> None:
        # Sets up the hooks. The group is never used, see `_Shared` and `add_param_group`.
        super().__init__([{"params": []}], {})
        self.base = base

    def _check(self) -> None:
        """Refuse settings and a state of the base that the step can't go on from."""

    def _export(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the base's state dict with what the subclass keeps; must not change it."""
        return state_dict

    def _import(self) -> None:
        """Take over what was loaded into the base's groups; raises before it changes tensors."""

    @lasting_tensors()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the base; see `torch.optim.Optimizer.add_param_group`.

        Args:
            param_group: The parameters and their settings.

        Raises:
            ValueError: The settings are out of range or do not go with those of the other groups.
                The optimizer is as it was, also after any other error.
        """
        if not hasattr(self, "base"):
            return  # Optimizer.__init__ adds its own; those of the base count
        with restored_on_failure(self):
            self.base.add_param_group(param_group)
            self._check()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients; see `torch.optim.Optimizer.zero_grad`."""
        self.base.zero_grad(set_to_none)

    def train(self) -> None:
        """Forward `train()` to schedule-free bases, to be called before training goes on."""
        for member in members(self.base):
            getattr(member, "train", lambda: None)()

    def eval(self) -> None:
        """Forward `eval()` to schedule-free bases, to be called before evaluating or saving."""
        for member in members(self.base):
            getattr(member, "eval", lambda: None)()

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state dict, with the wrapper's own state in its parameter groups.

        Returns:
            What `load_state_dict` takes. A bare optimizer of the base's type takes it too.
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
        """Load what `state_dict` returned, or the state dict of a bare optimizer, atomically.

        Args:
            state_dict: The state. Without the wrapper's scalars, the model starts afresh.

        Raises:
            TypeError: It is no state dict.
            ValueError: It is that of another optimizer, of other parameters, or damaged. The
                optimizer is as it was, also after any other error.
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
        # Hooks, and the step that a scheduler patched in, stay behind, as they do in torch; groups
        # and state are in the base.
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

"""Several optimizers as one: Muon for the matrices and AdamW for the rest, say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class JointOptimizer(Optimizer):
    """Several optimizers, each with parameters of its own, in the form of one.

    Groups, state and settings are those of the optimizers themselves. The state dict is that of one
    optimizer with all the groups.

    Args:
        optimizers: The optimizers, kept as `optimizers`.

    Raises:
        TypeError: One is not an optimizer.
        ValueError: There is none, or two have a parameter in common.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        _check_optimizers(optimizers)
        super().__init__([{"params": []}], {})  # sets up the hooks; the group is never used
        self.optimizers = list(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all optimizers, in their order; a new list of the very groups."""
        return [group for optimizer in self._members for group in optimizer.param_groups]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        for optimizer, own in zip(self._members, self._split(groups), strict=True):
            optimizer.param_groups = own

    @property  # type: ignore[override]
    def state(self) -> MutableMapping[Tensor, Any]:
        """The state of all optimizers by parameter; what is written goes to the owner."""
        return _JointState(self._members)

    @state.setter
    def state(self, state: MutableMapping[Tensor, Any]) -> None:
        for optimizer in self._members:
            optimizer.state.clear()
        self.state.update(state)

    @property
    def defaults(self) -> dict[str, Any]:
        """The settings that all optimizers know, with the values of the first."""
        first, *others = [optimizer.defaults for optimizer in self._members] or [{}]
        return {name: first[name] for name in first if all(name in other for other in others)}

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        pass  # Optimizer.__init__ assigns; those of the optimizers count

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step with each optimizer.

        Args:
            closure: Reevaluates the model and returns the loss; called once.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self._members:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients; see `torch.optim.Optimizer.zero_grad`.

        Args:
            set_to_none: To None rather than to zeros.
        """
        for optimizer in self._members:
            optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: the group belongs to one of the optimizers.

        Args:
            param_group: The parameters and their settings.

        Raises:
            TypeError: Always.
        """
        if "optimizers" in self.__dict__:
            raise TypeError(
                "add_param_group on several optimizers can't know which of them is meant. Add the "
                "group to one, e.g. optimizers[0].add_param_group(group)."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return one state dict, with parameters numbered through."""
        state: dict[Any, Any] = {}
        groups: list[dict[str, Any]] = []
        offset = 0
        for optimizer in self._members:
            own = optimizer.state_dict()
            state |= {_shifted(key, offset): value for key, value in own["state"].items()}
            groups += [_renumbered(group, offset) for group in own["param_groups"]]
            offset += _count(optimizer.param_groups)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Args:
            state_dict: The state.

        Raises:
            ValueError: The groups are not those of the optimizers; nothing is changed then.
        """
        sizes = [len(group["params"]) for group in self.param_groups]
        found = [len(group["params"]) for group in state_dict["param_groups"]]
        if found != sizes:
            raise ValueError(
                f"The state dict has groups of {found} parameters, the optimizers have groups of "
                f"{sizes}. Give the optimizers in the order in which they were saved."
            )
        offset = 0
        parts = self._split(state_dict["param_groups"])
        for optimizer, groups in zip(self._members, parts, strict=True):
            count = _count(groups)
            state = {
                _shifted(key, -offset): value
                for key, value in state_dict["state"].items()
                if not isinstance(key, int) or offset <= key < offset + count
            }
            own = [_renumbered(group, -offset) for group in groups]
            optimizer.load_state_dict({"state": state, "param_groups": own})
            offset += count

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizers": self.optimizers}

    def __repr__(self) -> str:
        return f"JointOptimizer({self._members!r})"

    @property
    def _members(self) -> list[Optimizer]:
        members: list[Optimizer] = self.__dict__.get("optimizers", [])
        return members

    def _split(self, groups: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Return the part of each optimizer."""
        remaining = iter(groups)
        return [[next(remaining) for _ in o.param_groups] for o in self._members]


class _JointState(MutableMapping[Tensor, Any]):
    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers

    def _owner(self, param: Tensor) -> MutableMapping[Tensor, Any]:
        for optimizer in self._optimizers:
            if any(param is own for group in optimizer.param_groups for own in group["params"]):
                return optimizer.state
        raise KeyError(param)

    def __getitem__(self, param: Tensor) -> Any:
        return self._owner(param)[param]

    def __setitem__(self, param: Tensor, value: Any) -> None:
        self._owner(param)[param] = value

    def __delitem__(self, param: Tensor) -> None:
        del self._owner(param)[param]

    def __iter__(self) -> Iterator[Tensor]:
        return (param for optimizer in self._optimizers for param in optimizer.state)

    def __len__(self) -> int:
        return sum(len(optimizer.state) for optimizer in self._optimizers)

    def __contains__(self, param: object) -> bool:
        return any(param in optimizer.state for optimizer in self._optimizers)


def joined(optimizer: Optimizer | Sequence[Optimizer]) -> Optimizer:
    """Return one optimizer.

    Args:
        optimizer: The optimizer, or a list or tuple of several.
    """
    if isinstance(optimizer, (list, tuple)):
        return JointOptimizer(optimizer)
    single: Any = optimizer
    return single  # type: ignore[no-any-return]


def members(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers that an optimizer is made of.

    Args:
        optimizer: A `JointOptimizer`, or any other, which is its own only member.
    """
    return optimizer.optimizers if isinstance(optimizer, JointOptimizer) else [optimizer]


def _check_optimizers(optimizers: Sequence[Optimizer]) -> None:
    if not optimizers:
        raise ValueError("There are no optimizers. Write MoMoWrapper([muon, adamw]).")
    for index, optimizer in enumerate(optimizers):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"Entry {index} of the list is a {type(optimizer).__name__}, expected a "
                "torch.optim.Optimizer. Write MoMoWrapper(torch.optim.AdamW(parameters)), or "
                "MoMoWrapper([muon, adamw]) for several."
            )
    seen: dict[int, int] = {}
    for index, optimizer in enumerate(optimizers):
        for param in (param for group in optimizer.param_groups for param in group["params"]):
            if id(param) in seen:
                raise ValueError(
                    f"Optimizers {seen[id(param)]} and {index} share a parameter of shape "
                    f"{list(param.shape)}, which would be moved twice. Give it to one of them."
                )
            seen[id(param)] = index


def _shifted(key: Any, offset: int) -> Any:
    return key + offset if isinstance(key, int) else key


def _renumbered(group: dict[str, Any], offset: int) -> dict[str, Any]:
    return {**group, "params": [index + offset for index in group["params"]]}


def _count(groups: Sequence[dict[str, Any]]) -> int:
    return sum(len(group["params"]) for group in groups)

"""Several optimizers as one, such as Muon for the matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from itertools import count
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.checks.losses import evaluated


class JointOptimizer(Optimizer):
    """Several optimizers, each with different parameters, behind the interface of one.

    It shares groups, state and settings with the optimizers. Its state dict is that of one
    optimizer with all the groups.

    Args:
        optimizers: The optimizers, kept as `optimizers`.

    Raises:
        TypeError: An entry is not an optimizer.
        ValueError: The list is empty, or two optimizers share a parameter.
    """

    optimizers: Sequence[Optimizer] = ()  # while Optimizer.__init__ runs

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        _check_optimizers(optimizers)
        optimizers = [member for optimizer in optimizers for member in members(optimizer)]
        super().__init__([{"params": []}], {})  # sets up the hooks; the group is never used
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all optimizers, in their order, in a new list."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if self.optimizers and len(groups) != len(self.param_groups):
            raise ValueError(
                f"Expected {len(self.param_groups)} groups, as many as the optimizers have in "
                f"total, got {len(groups)}. Set the groups of one: optimizers[0].param_groups = ..."
            )
        for optimizer, own in zip(self.optimizers, self._split(groups), strict=True):
            optimizer.param_groups = own

    @property  # type: ignore[override]
    def state(self) -> MutableMapping[Tensor, Any]:
        """The state of all optimizers by parameter; writes go to the owner of the parameter."""
        return _JointState(self.optimizers)

    @state.setter
    def state(self, state: MutableMapping[Tensor, Any]) -> None:
        entries = dict(state)  # `state` may be the view that is cleared next
        for optimizer in self.optimizers:
            optimizer.state.clear()
        self.state.update(entries)

    @property
    def defaults(self) -> dict[str, Any]:
        """The settings that all optimizers have, with the values of the first."""
        first, *others = [optimizer.defaults for optimizer in self.optimizers] or [{}]
        return {name: first[name] for name in first if all(name in other for other in others)}

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        pass  # Optimizer.__init__ assigns; the optimizers keep theirs

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step with each optimizer.

        Args:
            closure: Reevaluates the model and returns the loss. It is called once.

        Returns:
            What the closure returned; None without one.
        """
        loss = evaluated(closure)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients; see `torch.optim.Optimizer.zero_grad`.

        Args:
            set_to_none: Whether to set gradients to None instead of zeros.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raise, because the group must go to one of the optimizers.

        Args:
            param_group: The parameters and their settings.

        Raises:
            TypeError: Always.
        """
        if self.optimizers:
            raise TypeError(
                "add_param_group on several optimizers is ambiguous. Add the group to one, e.g. "
                "optimizer.base.optimizers[0].add_param_group(group)."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return one state dict, with parameters numbered over all optimizers."""
        state: dict[Any, Any] = {}
        groups: list[dict[str, Any]] = []
        more: list[dict[str, Any]] = []
        numbers, offset = count(), 0
        for index, optimizer in enumerate(self.optimizers):
            own = dict(optimizer.state_dict())
            for key, value in own.pop("state", {}).items():
                state[key + offset if isinstance(key, int) else (index, key)] = value
            # A state dict without groups is not in torch's format; it is kept in "members".
            its_groups = own.pop("param_groups", optimizer.param_groups)
            groups += [{**g, "params": [next(numbers) for _ in g["params"]]} for g in its_groups]
            more.append(own)
            offset += sum(len(group["params"]) for group in its_groups)
        state_dict = {"state": state, "param_groups": groups}
        return {**state_dict, "members": more} if any(more) else state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            ValueError: The groups are not those of the optimizers. Nothing is changed.
        """
        sizes = [len(group["params"]) for group in self.param_groups]
        found = [len(group["params"]) for group in state_dict["param_groups"]]
        if found != sizes:
            raise ValueError(
                f"The state dict has groups of {found} parameters, the optimizers have groups of "
                f"{sizes}. Pass the optimizers in the order in which they were saved."
            )
        parts = self._split(state_dict["param_groups"])
        more = state_dict.get("members", [{}] * len(parts))
        for index, (optimizer, groups) in enumerate(zip(self.optimizers, parts, strict=True)):
            # Parameters keep their names in the state dict; torch matches them by position.
            names = {name for group in groups for name in group["params"]}
            state = {
                key[1] if isinstance(key, tuple) else key: value
                for key, value in state_dict["state"].items()
                if (key[0] == index if isinstance(key, tuple) else key in names)
            }
            optimizer.load_state_dict({"state": state, "param_groups": groups, **more[index]})
            for live, group in zip(optimizer.param_groups, groups, strict=True):
                # A member whose state dict is not in torch's format has not loaded the groups.
                unseen = [name for name in group if live.get(name) is None]
                live.update({name: group[name] for name in unseen})

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        shared = {name: own.pop(name) for name in ("param_groups", "state") if name in own}
        super().__setstate__(own)
        for name, value in shared.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        return f"JointOptimizer({self.optimizers!r})"

    def _split(self, groups: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Return the part of each optimizer."""
        remaining = iter(groups)
        return [[next(remaining) for _ in o.param_groups] for o in self.optimizers]


class _JointState(MutableMapping[Tensor, Any]):
    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers

    def _owner(self, param: Tensor) -> MutableMapping[Tensor, Any]:
        for optimizer in self._optimizers:
            if param in optimizer.state:
                return optimizer.state
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
        keys = (key for optimizer in self._optimizers for key in optimizer.state)
        return iter(dict.fromkeys(keys))  # keys other than parameters may be in several

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get(self, param: Any, default: Any = None) -> Any:
        # The inherited one would read a defaultdict, which creates the entry.
        return self[param] if param in self else default  # noqa: SIM401

    def __contains__(self, param: object) -> bool:
        return any(param in optimizer.state for optimizer in self._optimizers)


def joined(optimizer: Optimizer | Sequence[Optimizer]) -> Optimizer:
    """Return the given optimizer, or several in a list or tuple as one."""
    one: Any = JointOptimizer(optimizer) if isinstance(optimizer, (list, tuple)) else optimizer
    return one  # type: ignore[no-any-return]


def members(optimizer: Optimizer) -> Sequence[Optimizer]:
    """Return the members of a `JointOptimizer`, or any other optimizer as its only member."""
    return optimizer.optimizers if isinstance(optimizer, JointOptimizer) else [optimizer]


def _check_optimizers(optimizers: Sequence[Optimizer]) -> None:
    if not optimizers:
        raise ValueError(
            "The list of optimizers is empty, expected at least one. "
            "Write MoMoWrapper([muon, adamw])."
        )
    for index, optimizer in enumerate(optimizers):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"Entry {index} of the list is a {type(optimizer).__name__}, expected a "
                "torch.optim.Optimizer. Write MoMoWrapper(torch.optim.AdamW(parameters)), or "
                "MoMoWrapper([muon, adamw]) for several; the class that takes parameters is "
                "momo_wrap.optim.MoMoAdamW, or MoMoWrapper.of(torch.optim.AdamW)."
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

"""The contract between the wrapper and a base optimizer: observe, then apply a fraction θ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.averaging import Averaging
from momo_wrap.rules import WeightDecayForm

ParamGroup: TypeAlias = dict[str, Any]
State: TypeAlias = Mapping[Tensor, dict[str, Any]]


class StepSums(NamedTuple):
    """What a parameter group contributes to the model of the step, as 0-dim tensors.

    The move of group i is Δ_i(θ) = θ s_i + t_i, where s_i follows the preconditioned direction
    u_i = D_i^{-1} d_i and t_i is the weight decay. The sums of all groups add up.

    Attributes:
        predicted_decrease: -⟨d, s⟩; with proximal decay c α ⟨d, u⟩, the group's share of N in (3).
        gradient_decrease: α ⟨d, u⟩, for (7).
        decay_shift: (c - 1) ⟨d, x⟩, the group's share of h in (3).
        buffer_move: ⟨p B, s⟩, for (5).
        buffer_move_by_decay: ⟨p B, t⟩, for (5).
    """

    predicted_decrease: Tensor
    gradient_decrease: Tensor
    decay_shift: Tensor
    buffer_move: Tensor
    buffer_move_by_decay: Tensor


class Observation(ABC):
    """A base optimizer that has taken in the gradients of this step but has not moved yet.

    Attributes:
        sums: One record per parameter group, of scalars of the device and dtype that
            `momo_wrap.scalars.scalars_like` tells for the base.
        averagings: How each parameter group averages at this step.
    """

    sums: Sequence[StepSums]
    averagings: Sequence[Averaging]

    @abstractmethod
    def apply(self, thetas: Sequence[Tensor]) -> list[Tensor]:
        """Move the parameters by a fraction of the base's step, equation (4).

        Called once, after `sums` has been read.

        Args:
            thetas: The fraction θ for each parameter group, 0-dim, in [0, 1]. Most rules have one
                for all, which is then the same tensor.

        Returns:
            The effective learning rate θα of each parameter group, 0-dim.
        """


class Adapter(ABC):
    """Reads a base optimizer: how it averages, and what its step would do to the model.

    An adapter holds no state of a run; one instance serves any number of optimizers. To support an
    optimizer with a momentum buffer and a diagonal preconditioner, subclass `ReadingAdapter`.

    Attributes:
        needs_lr: Whether each parameter group must have a learning rate `lr`.
    """

    needs_lr: bool = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def obstacle(self, base: Optimizer) -> str | None:
        """Return why the adapter can't serve an optimizer with its present settings.

        Asked before anything is changed, at construction and at every step.

        Args:
            base: The optimizer, of a type that the adapter is for.

        Returns:
            The reason, as the end of the sentence "the adapter can't read the optimizer: ..."; None
            where there is none.
        """
        return None

    def has_history(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether the average of gradients in a group is older than the wrapper.

        Args:
            base: The optimizer, of a type that the adapter is for.
            group: An entry of its `param_groups`.
        """
        return False

    def is_traceable(self, base: Optimizer) -> bool:
        """Return whether `torch.compile` can follow a step; where not, it is taken as it is.

        Args:
            base: The optimizer, of a type that the adapter is for.
        """
        return False

    def check_entry(self, where: str, param: Tensor, entry: Mapping[str, Any]) -> None:
        """Refuse a loaded state of a parameter that the adapter can't go on from.

        Args:
            where: Which parameter it is, for the error: "parameter 0 of group 1".
            param: The parameter.
            entry: Its state.

        Raises:
            ValueError: A tensor does not belong to the parameter.
        """
        return

    def parts(self, base: Optimizer) -> list[tuple[Optimizer, Adapter]]:
        """Return the optimizers that a base is made of, each with its adapter.

        Args:
            base: The optimizer that is wrapped.

        Returns:
            The base itself with this adapter, unless the adapter is for several optimizers.
        """
        return [(base, self)]

    @abstractmethod
    def observe(self, base: Optimizer, weight_decay: WeightDecayForm) -> Observation:
        """Let the base take in the gradients, and sum up what its step would do.

        Called once per step with gradients disabled, after the loss and the settings of all groups
        were checked. Parameters keep their values; so do all settings of the groups, also when the
        base raises.

        Args:
            base: The optimizer that is wrapped.
            weight_decay: The form in which weight decay is applied.

        Returns:
            The observation.
        """

    def observe_compiled(self, base: Optimizer, weight_decay: WeightDecayForm) -> Observation:
        """Do the same as `observe`, with compiled passes where the adapter has them.

        Args:
            base: The optimizer that is wrapped.
            weight_decay: The form in which weight decay is applied.

        Returns:
            The observation; here that of `observe`.
        """
        return self.observe(base, weight_decay)


def check_shape(where: str, param: Tensor, name: str, value: object) -> None:
    """Refuse an entry of a parameter's state that is no tensor of its shape.

    Args:
        where: Which parameter it is, for the error: "parameter 0 of group 1".
        param: The parameter.
        name: The name of the entry.
        value: The entry.

    Raises:
        ValueError: It has another shape, or none.
    """
    shape = getattr(value, "shape", None)
    if shape != param.shape:
        found = "none" if shape is None else list(shape)
        raise ValueError(
            f"The state of {where} has {name!r} of shape {found}, but the parameter has shape "
            f"{list(param.shape)}. Load the state dict of an optimizer of the same parameters, "
            "in the same order."
        )


def maximizes(base: Optimizer, group: ParamGroup) -> bool:
    """Return whether an optimizer maximises its objective in a parameter group.

    Args:
        base: The optimizer; some keep the setting as an attribute.
        group: An entry of its `param_groups`.
    """
    return bool(group.get("maximize", getattr(base, "maximize", False)))

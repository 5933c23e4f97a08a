"""The interface between the wrapper and a base optimizer: observe, then apply a fraction θ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.engine.passes import Engine
from momo_wrap.engine.scalars import Scalar
from momo_wrap.model import Averaging
from momo_wrap.rules import WeightDecayForm

ParamGroup: TypeAlias = dict[str, Any]
State: TypeAlias = Mapping[Tensor, dict[str, Any]]


class BaseStep(ABC):
    """The step of a base optimizer that has updated its state but not moved the parameters.

    Attributes:
        averagings: How each parameter group averages at this step.
        sums: The contributions of the groups to the model, with the rows of `momo_wrap.model.SUMS`,
            of shape [2 or 5, groups], with the device and dtype of `engine.plan.like`. The last
            three rows may be omitted if weight decay is not a separate part of the step.
        penalty: λ ‖x‖²/2 of each group, of shape [groups], if the base adds λ x to the gradients,
            which are then those of the loss plus the penalty; None: no penalty.
        coupled_decay: λ of each group if there is a penalty, 0 for groups without one.
        offsets: ⟨g, z - x⟩ of each group, of shape [groups], for a model at a point z other than
            the parameters x; None: z = x.
        reach: After `apply`, the `reach` for the `momo_wrap.engine.ahead.Foreseen` of the next
            step.
    """

    averagings: Sequence[Averaging]
    sums: Tensor
    penalty: Tensor | None = None
    coupled_decay: Sequence[Scalar] = ()
    offsets: Tensor | None = None
    reach: Tensor | None = None

    @property
    def lacks_momentum(self) -> bool:
        """Whether the base averages neither gradients nor parameters."""
        decays = [averaging.decay for averaging in self.averagings]
        none = all(not isinstance(decay, Tensor) and decay == 0.0 for decay in decays)
        return none and self.offsets is None

    @abstractmethod
    def apply(self, thetas: Tensor) -> Tensor:
        """Move the parameters by a fraction of the base's step, equation (4).

        Called once, after `sums` is read.

        Args:
            thetas: The fraction θ, in [0, 1], 0-dim or of shape [groups].

        Returns:
            The effective learning rate θα of each parameter group, of shape [groups].
        """

    def withdraw(self) -> None:
        """Put back parameters that were already moved, up to rounding, if the step is not taken."""
        return


class Adapter(ABC):
    """Reads a base optimizer: how it averages, and how its step would change the model.

    An adapter has no state of a run; one instance serves any number of optimizers. To support an
    optimizer with a momentum buffer and a diagonal preconditioner, subclass `ReadingAdapter`.
    `base` is always an optimizer of a type that the adapter supports, `group` one of its groups.

    Attributes:
        needs_lr: Whether each parameter group must have a learning rate `lr`.
        keeps_averages: Whether the adapter keeps averages of gradients, see `has_lost_average`.
    """

    needs_lr: bool = True
    keeps_averages: bool = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def obstacle(self, base: Optimizer) -> str | None:
        """Return why the adapter can't support an optimizer with its current settings.

        Called before anything is changed, at construction and when settings have changed.

        Args:
            base: The base optimizer.

        Returns:
            The reason, to end the sentence "the adapter can't read the optimizer: ..."; None if it
            can.
        """
        return None

    def has_history(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether a group already has an average of gradients.

        Args:
            base: The base optimizer.
            group: One of its parameter groups.
        """
        return False

    def has_lost_average(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether an average of gradients that the adapter keeps is missing.

        Some tools save only the state entries of a new optimizer of the base's class.

        Args:
            base: The base optimizer.
            group: One of its parameter groups.
        """
        return False

    def moving(self, base: Optimizer, param: Tensor) -> Tensor:
        """Return the tensor whose move the model predicts: the parameter, or its anchor.

        Args:
            base: The base optimizer.
            param: One of its parameters.
        """
        return param

    def check_entry(self, where: str, param: Tensor, entry: Mapping[str, Any]) -> None:
        """Raise for a loaded state of a parameter that does not fit.

        Args:
            where: The name of the parameter in errors: "parameter 0 of group 1".
            param: The parameter.
            entry: Its optimizer state.

        Raises:
            ValueError: A tensor does not belong to the parameter.
        """
        return

    @abstractmethod
    def observe(
        self, base: Optimizer, weight_decay_form: WeightDecayForm, engine: Engine
    ) -> BaseStep:
        """Let the base update its state, and sum up what its step would do.

        Called once per step with gradients disabled, after the loss and the settings of all groups
        are checked. Parameters and the settings of all groups must be the same afterwards, also if
        the base raises.

        Args:
            base: The base optimizer.
            weight_decay_form: The form in which weight decay is applied.
            engine: The engine that computes on the parameters, the same one in all steps of the
                base.

        Returns:
            The step, not yet taken.
        """


def check_shape(where: str, param: Tensor, name: str, value: object) -> None:
    """Raise for an entry of a parameter's state that is not a tensor of its shape."""
    shape = getattr(value, "shape", None)
    if shape != param.shape:
        found = "none" if shape is None else list(shape)
        raise ValueError(
            f"The state of {where} has {name!r} of shape {found}, but the parameter has shape "
            f"{list(param.shape)}. Load the state dict of an optimizer with the same parameters, "
            "in the same order."
        )


def maximizes(base: Optimizer, group: ParamGroup) -> bool:
    """Return whether an optimizer maximizes in a group; some have the setting as an attribute."""
    return bool(group.get("maximize", getattr(base, "maximize", False)))

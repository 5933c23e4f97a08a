"""The contract between the wrapper and a base optimizer: observe, then apply a fraction θ."""

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
    """The step of a base optimizer that has taken in the gradients but has not moved yet.

    Attributes:
        averagings: How each parameter group averages at this step.
        sums: What the groups contribute to the model of the step, the rows of
            `momo_wrap.model.SUMS`, of shape [2 or 5, groups], like `engine.plan.like`. The last
            three may be left out where weight decay is not a part of the step of its own.
        penalty: λ ‖x‖²/2 of each group, of shape [groups], where the base adds λ x to the
            gradients, so that they are those of the loss and this; None: nowhere.
        coupled_decay: λ of each group where there is a penalty, 0 in other groups.
        offsets: ⟨g, z - x⟩ of each group, of shape [groups], where the model is taken at another
            place z than the parameters x; None: nowhere.
        reach: After `apply`, what `momo_wrap.engine.ahead.Foreseen` has of this step.
    """

    averagings: Sequence[Averaging]
    sums: Tensor
    penalty: Tensor | None = None
    coupled_decay: Sequence[Scalar] = ()
    offsets: Tensor | None = None
    reach: Tensor | None = None

    @property
    def lacks_momentum(self) -> bool:
        """Whether the parameters move by the gradients of single batches."""
        decays = [averaging.decay for averaging in self.averagings]
        none = all(not isinstance(decay, Tensor) and decay == 0.0 for decay in decays)
        return none and self.offsets is None

    @abstractmethod
    def apply(self, thetas: Tensor) -> Tensor:
        """Move the parameters by a fraction of the base's step, equation (4).

        Called once, after `sums` has been read.

        Args:
            thetas: The fraction θ, in [0, 1], 0-dim or of shape [groups].

        Returns:
            The effective learning rate θα of each parameter group, of shape [groups].
        """

    def withdraw(self) -> None:
        """Put back what was moved already, up to rounding, where the step is not taken."""
        return


class Adapter(ABC):
    """Reads a base optimizer: how it averages, and what its step would do to the model.

    An adapter holds no state of a run; one instance serves any number of optimizers. To support an
    optimizer with a momentum buffer and a diagonal preconditioner, subclass `ReadingAdapter`.
    `base` is always an optimizer of a type that the adapter is for, `group` one of its groups.

    Attributes:
        needs_lr: Whether each parameter group must have a learning rate `lr`.
        keeps_averages: Whether it keeps averages of gradients itself, see `has_lost_average`.
    """

    needs_lr: bool = True
    keeps_averages: bool = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def obstacle(self, base: Optimizer) -> str | None:
        """Return why the adapter can't serve an optimizer with its present settings.

        Asked before anything is changed, at construction and at every step.

        Returns:
            The reason, as the end of the sentence "the adapter can't read the optimizer: ..."; None
            where there is none.
        """
        return None

    def has_history(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether there is an average of gradients in a group already."""
        return False

    def has_lost_average(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether an average of gradients that the adapter itself keeps is missing.

        Some tools save only what a fresh optimizer of the base's class has in its state.
        """
        return False

    def moving(self, base: Optimizer, param: Tensor) -> Tensor:
        """Return what moves by the step that the model is about: the parameter, or its anchor."""
        return param

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

    @abstractmethod
    def observe(
        self, base: Optimizer, weight_decay_form: WeightDecayForm, engine: Engine
    ) -> BaseStep:
        """Let the base take in the gradients, and sum up what its step would do.

        Called once per step with gradients disabled, after the loss and the settings of all groups
        were checked. Parameters keep their values; so do all settings of the groups, also when the
        base raises.

        Args:
            base: The optimizer that is wrapped.
            weight_decay_form: The form in which weight decay is applied.
            engine: What computes on the parameters; the same one in all steps of the base.

        Returns:
            The step, not taken yet.
        """


def check_shape(where: str, param: Tensor, name: str, value: object) -> None:
    """Refuse an entry of a parameter's state that is no tensor of its shape."""
    shape = getattr(value, "shape", None)
    if shape != param.shape:
        found = "none" if shape is None else list(shape)
        raise ValueError(
            f"The state of {where} has {name!r} of shape {found}, but the parameter has shape "
            f"{list(param.shape)}. Load the state dict of an optimizer of the same parameters, "
            "in the same order."
        )


def maximizes(base: Optimizer, group: ParamGroup) -> bool:
    """Return whether an optimizer maximises in a group; some keep the setting as an attribute."""
    return bool(group.get("maximize", getattr(base, "maximize", False)))

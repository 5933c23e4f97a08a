"""MoMoWrapper: a PyTorch optimizer whose learning rate is only an upper bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter, StepSums, WeightDecayForm, maximizes
from momo_wrap.adapters.registry import chosen_adapter
from momo_wrap.checks import (
    Loss,
    check_arguments,
    check_bound,
    check_decision,
    check_gradients,
    check_groups,
    evaluate_loss,
)
from momo_wrap.joint import joined, members
from momo_wrap.model import ModelSums, MomentumModel
from momo_wrap.record import StepRecord
from momo_wrap.rules import ModelStats, MoMo, StepRule
from momo_wrap.scalars import as_scalar, kept_scalars, scalars_like, stacked, write_scalars


class _OfBase:
    """An attribute that the wrapper shares with its base, whichever of the two it is set on."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, wrapper: MoMoWrapper | None, owner: type | None = None) -> Any:
        return self if wrapper is None else getattr(wrapper.base, self._name)

    def __set__(self, wrapper: MoMoWrapper, value: Any) -> None:
        # Optimizer.__init__ assigns fresh ones, before there is a base; those of the base count.
        if "base" in wrapper.__dict__:
            setattr(wrapper.base, self._name, value)


class MoMoWrapper(Optimizer):
    r"""Cuts the steps of an optimizer where its momentum model of the loss would fall too low.

    At each step the base optimizer averages gradients and preconditions them, as always, to a
    direction u_i for each parameter group i. Where it would move by -α_i u_i (α_i the group's
    learning rate), the wrapper moves by -θ α_i u_i with one θ in [0, 1],

        θ = clip( (h - ρ f*) / Σ_i c_i α_i ⟨d_i, u_i⟩ , 0, 1 )                                 (3)
        x_i <- c_i ( x_i - θ α_i u_i ),    c_i = 1/(1 + α_i λ_i)                               (4)

    so that the model of the loss (`momo_wrap.model`, equations (1) and (2)) reaches the lower
    bound f* and does not fall below it. With f* = -inf the base's steps are unchanged, but for the
    form of weight decay.

    Source: Schaipp, Ohana, Eickenberg, Defazio, Gower, "MoMo: Momentum Models for Adaptive
    Learning Rates", ICML 2024, arXiv 2305.07583.

    The wrapper shares `param_groups`, `state` and `defaults` with the base. A scheduler may be
    built on either; the learning rates that it sets are the upper bounds α_i. The base's coupled
    or decoupled weight decay λ_i is taken over by the wrapper. Sums and scalars are computed in at
    least float32, and no step waits for the device. Step hooks belong on the wrapper: those of the
    base, and global ones a first time, run when the base has taken in the gradients, at learning
    rate 0 and before anything moves.

    Args:
        optimizer: The base optimizer, kept as `base`; or a list of them, which share one model of
            the loss and one θ, kept as a `JointOptimizer`.
        rule: The step rule; None: `MoMo(lower_bound=0.0)`.
        adapter: How to read the base; None: the one of `adapter_for`. With several optimizers, a
            list with an entry for each.
        weight_decay: "proximal", equation (4), or "decoupled",
            x_i <- (1 - α_i λ_i) x_i - θ α_i u_i with the same θ.

    Attributes:
        base: The optimizer that was wrapped, a `JointOptimizer` for several.
        rule: The step rule.
        adapter: The adapter.
        weight_decay: The form of weight decay.
        last_step: The `StepRecord` of the last step; None before the first.

    Raises:
        TypeError: `optimizer` is not an optimizer, or one that can't be wrapped; `rule` or
            `adapter` are of the wrong type.
        ValueError: The settings of a group are out of range, or do not go together.
    """

    param_groups: list[dict[str, Any]] = _OfBase()  # type: ignore[assignment]
    state: Any = _OfBase()
    defaults: dict[str, Any] = _OfBase()  # type: ignore[assignment]

    def __init__(
        self,
        optimizer: Optimizer | Sequence[Optimizer],
        rule: StepRule | None = None,
        *,
        adapter: Adapter | Sequence[Adapter | None] | None = None,
        weight_decay: WeightDecayForm = "proximal",
    ) -> None:
        base = joined(optimizer)
        if any(isinstance(member, MoMoWrapper) for member in members(base)):
            raise TypeError(
                "MoMoWrapper got an optimizer that is wrapped already; its steps would be cut "
                "twice. Wrap the base itself: MoMoWrapper(optimizer.base)."
            )
        check_arguments(base, rule, adapter, weight_decay)
        rule = MoMo() if rule is None else rule
        adapter = chosen_adapter(base, adapter)
        check_groups(base, adapter, tensors=True)
        # Sets up the hooks. The group is never used, see `_OfBase` and `add_param_group`.
        super().__init__([{"params": []}], {})
        self.base = base
        self.rule = rule
        check_bound(self._sign * rule.lower_bound)
        self.adapter = adapter
        self.weight_decay = weight_decay
        self.last_step: StepRecord | None = None
        self._effective_lrs: list[Tensor] = []
        self._kept_scalars(scalars_like(self.param_groups))

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Loss] | None = None, *, loss: Loss | None = None
    ) -> Loss:
        """Take one step: the base's own, cut by θ.

        Pass either the loss, after `loss.backward()`, or a closure that computes loss and
        gradients. A parameter without a gradient does not move.

        Args:
            closure: Reevaluates the model and returns the loss; runs with gradients enabled.
            loss: The loss that the gradients belong to: a one-element tensor on any device, or a
                Python number.

        Returns:
            The loss, as it was given.

        Raises:
            TypeError: Neither or both were given, or one of the wrong type; a gradient is sparse.
            ValueError: The loss has several elements, or settings have become invalid.

        After an error above, parameters, the base's state and the model are as they were. What a
        rule or an adapter returns is refused later: nothing has moved, but the base has taken in
        the gradients.
        """
        loss = evaluate_loss(closure, loss)
        check_groups(self.base, self.adapter)
        check_gradients(self.param_groups)
        bound = self._sign * self.rule.lower_bound
        check_bound(bound)
        like = scalars_like(self.param_groups)
        scalars, memory = self._kept_scalars(like)
        observation = self.adapter.observe(self.base, self.weight_decay)
        minimised = as_scalar(loss, like) * self._sign
        model = MomentumModel.of(stacked(scalars), observation.averagings, minimised)  # (1), (2)
        sums = StepSums(*(torch.stack(parts) for parts in zip(*observation.sums, strict=True)))
        stats = _statistics(model.total(sums), minimised, bound)
        decision = self.rule(stats, memory)  # (3)
        check_decision(decision, memory)
        effective_lrs = observation.apply(decision.theta)  # (4)
        # Where nothing moves, a sum that overflowed does not count.
        moved = torch.where(decision.theta == 0, 0.0, decision.theta * sums.buffer_move)
        buffer_move = moved + sums.buffer_move_by_decay  # (5)
        write_scalars(scalars, model.scalars_after(buffer_move))
        write_scalars([memory], decision.memory)
        self._effective_lrs = effective_lrs
        self.last_step = StepRecord.of(stats, decision, self._sign)
        return loss

    def effective_lrs(self) -> list[Tensor]:
        """Return the learning rates that the last step amounted to.

        Returns:
            θα for each parameter group, as 0-dim tensors; empty before the first step.
        """
        return list(self._effective_lrs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the base; see `torch.optim.Optimizer.add_param_group`.

        Args:
            param_group: The parameters and their settings.

        Raises:
            ValueError: The settings are out of range or do not go with those of the other groups.
        """
        if "base" not in self.__dict__:
            return  # Optimizer.__init__ adds its own; those of the base count
        self.base.add_param_group(param_group)
        try:
            check_groups(self.base, self.adapter, tensors=True)
        except Exception:
            self.param_groups.pop()
            raise

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients; see `torch.optim.Optimizer.zero_grad`.

        Args:
            set_to_none: To None rather than to zeros.
        """
        self.base.zero_grad(set_to_none)

    def train(self) -> None:
        """Tell bases that evaluate at other parameters than they train at that training goes on."""
        self._switch("train")

    def eval(self) -> None:
        """Tell such bases, the schedule-free ones, that the model is evaluated or saved next."""
        self._switch("eval")

    def _switch(self, mode: str) -> None:
        for member in members(self.base):
            getattr(member, mode, lambda: None)()

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state dict; the wrapper's scalars are in its parameter groups.

        Returns:
            What `load_state_dict` takes. A bare optimizer of the base's type takes it too.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state_dict = self.base.state_dict()
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, or the state dict of a bare optimizer.

        Args:
            state_dict: The state. Without the wrapper's scalars, the model starts afresh.
        """
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        self.base.load_state_dict(state_dict)
        self._kept_scalars(scalars_like(self.param_groups))
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

    def __repr__(self) -> str:
        settings = f"rule={self.rule!r}, weight_decay={self.weight_decay!r}"
        return f"MoMoWrapper({settings}, base={self.base!r})"

    @property
    def _sign(self) -> float:
        """-1 where the base maximises, which is minimisation of the negative."""
        first = members(self.base)[0]
        return -1.0 if maximizes(first, first.param_groups[0]) else 1.0

    def _kept_scalars(self, like: Tensor) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return the scalars of the momentum model of each group, and those of the rule."""
        groups, initial = self.param_groups, MomentumModel.initial_scalars()
        memory = self.rule.initial_memory(self._sign * self.rule.lower_bound)
        return (
            [kept_scalars(group, "momo_", initial, like) for group in groups],
            kept_scalars(groups[0], "momo_rule_", memory, like),
        )


def _statistics(model: ModelSums, loss: Tensor, lower_bound: float) -> ModelStats:
    """Return h/ρ, N/ρ and what else a rule may ask for."""
    return ModelStats(
        loss=loss,
        value_at_params=model.value,
        model_value=model.value_after_decay,
        predicted_decrease=model.predicted_decrease,
        gradient_decrease=model.gradient_decrease,
        lower_bound=lower_bound,
    )

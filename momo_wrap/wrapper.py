"""MoMoWrapper: a PyTorch optimizer whose learning rate is only an upper bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter, BaseStep, maximizes
from momo_wrap.adapters.registry import adapters_for
from momo_wrap.checks.arguments import (
    Compiled,
    Loss,
    NonFinite,
    check_arguments,
    check_bound,
    check_compiled,
    check_nonfinite,
    check_rule,
    check_unknown_arguments,
    decay_form,
)
from momo_wrap.checks.groups import check_parameters, check_settings
from momo_wrap.checks.nonfinite import count_nonfinite, nonfinite_error
from momo_wrap.distributed import (
    ProcessGroup,
    any_rank,
    check_process_group,
    reduced,
    reduction_group,
)
from momo_wrap.engine.params import can_move, has_zero_lr
from momo_wrap.engine.passes import Engine
from momo_wrap.engine.plan import common_template
from momo_wrap.engine.scalars import as_scalar, largest, scalar_template
from momo_wrap.joint import JointOptimizer, joined, members
from momo_wrap.losses import PendingLosses
from momo_wrap.model import Averaging, MomentumModel, complete_sums
from momo_wrap.record import StepRecord
from momo_wrap.rules import MoMo, StepRule, WeightDecayForm, checked_theta
from momo_wrap.state.loading import check_loaded, with_entries
from momo_wrap.state.memory import Memory
from momo_wrap.state.shared_state import SharedStateOptimizer, lasting_tensors

try:
    from momo_wrap.fast import FastEngine, is_chosen
except ImportError:  # an optional wing

    def is_chosen(compiled: Compiled, params: Sequence[Tensor]) -> bool:
        """Return that nothing is compiled."""
        return False


class MoMoWrapper(SharedStateOptimizer):
    r"""Cuts the steps of an optimizer where its momentum model of the loss would fall too low.

    At each step the base optimizer averages gradients and preconditions them, as always, to a
    direction u_i for each parameter group i. Where it would move by -α_i u_i (α_i the group's
    learning rate), the wrapper moves by -θ α_i u_i with one θ in [0, 1] for all groups,

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
    least float32, without host synchronisation. Register step hooks on the wrapper. Those of the
    base (and global ones, once more) run inside `base.step()`, which is called with lr=0, so that
    parameters have not moved yet.

    Args:
        optimizer: The base optimizer, kept as `base`; or a list of them, which share one model of
            the loss and one θ, kept as a `JointOptimizer`.
        rule: The step rule; None: `MoMo(lower_bound=0.0)`.
        adapter: How to read the base; None: the one of `adapter_for`. With several optimizers, a
            list with an entry for each.
        weight_decay_form: "proximal", equation (4); "decoupled", x_i <- (1 - α_i λ_i) x_i - θ α_i
            u_i with the same θ; "scaled", x_i <- x_i - θ α_i (u_i + λ_i x_i); None: the rule's own
            form, "proximal" for all but `TrustedMoMo`.
        nonfinite: What to do where the loss or a gradient is not finite: "propagate", the step
            writes NaN, as the base's would; "skip", the step changes nothing and is counted;
            "raise", it changes nothing and raises. The last two wait for the device at every step.
        compiled: Whether the passes over SGD and the Adam family are compiled: "auto", on the CPU
            for 2^24 parameters or more where there is a C++ compiler; True; False. It takes some
            seconds at first. They update the optimizer state instead of calling `base.step()`,
            unless the base has step hooks.
        process_group: The ranks whose losses are averaged, and over which parameters are sharded:
            "auto", all of `torch.distributed` if it is initialised; a group; None, this one alone.

    Attributes:
        base: The optimizer that was wrapped, a `JointOptimizer` for several.
        adapter: Its adapter, a list of them for several.
        rule, weight_decay_form, nonfinite, process_group, compiled: As they were given. They may be
            set, and are checked then. Another rule starts with nothing remembered.

    Raises:
        TypeError: `optimizer` is not an optimizer, or one that can't be wrapped; `rule` or
            `adapter` are of the wrong type.
        ValueError: The settings of a group are out of range, or do not go together.
    """

    def __init__(
        self,
        optimizer: Optimizer | Sequence[Optimizer],
        rule: StepRule | None = None,
        *,
        adapter: Adapter | Sequence[Adapter | None] | None = None,
        weight_decay_form: WeightDecayForm | None = None,
        nonfinite: NonFinite = "propagate",
        process_group: ProcessGroup = "auto",
        compiled: Compiled = "auto",
        **unknown: Any,
    ) -> None:
        check_unknown_arguments(unknown)
        base = joined(optimizer)
        if any(isinstance(member, MoMoWrapper) for member in members(base)):
            raise TypeError(
                "MoMoWrapper got an optimizer that is wrapped already; its steps would be cut "
                "twice. Wrap the base itself: MoMoWrapper(optimizer.base)."
            )
        rule = MoMo() if rule is None else rule
        check_arguments(base, rule, adapter, nonfinite)
        check_compiled(compiled)
        decay_form(weight_decay_form, rule)
        pairs = list(zip(members(base), adapters_for(base, adapter), strict=True))
        check_parameters(base.param_groups)
        check_settings(pairs, read_tensors=True)
        check_process_group(process_group, base.param_groups)
        super().__init__(base)
        self._pairs = pairs
        self._engines: list[Engine] = []
        self._settings: list[int] = []
        self.process_group = process_group
        self.compiled = compiled
        self.nonfinite = nonfinite
        self.rule = rule
        self.weight_decay_form = weight_decay_form
        self._last_step: StepRecord | None = None
        self._effective_lrs: list[Tensor] = []
        self._skipped = 0
        self._pending = PendingLosses()
        with lasting_tensors():
            self._import()

    def __setattr__(self, name: str, value: Any) -> None:
        check = _CHECKS.get(name)
        if check is not None:
            check(self, value)
        elif name in _FIXED and name in self.__dict__:
            raise AttributeError(f"{name} of a MoMoWrapper can't be set. Make a new one.")
        super().__setattr__(name, value)
        if name == "rule" and "_memory" in self.__dict__:
            self._memory.start_rule(self._initial_memory())
        elif name == "compiled":
            self._engines = []

    def record_loss(self, loss: Loss, weight: Loss = 1.0) -> None:
        """Record a loss for the next `step()`, which then takes none.

        The mean of what was recorded is the loss of the step: that of several batches whose
        gradients add up, or that of one where a trainer calls `step()` by itself. `zero_grad`
        forgets what was recorded, with the gradients that belong to it.

        Args:
            loss: The loss of a batch, before it is divided by the number of batches: a one-element
                tensor on any device, or a number. No host synchronisation.
            weight: Its weight in the mean, such as the number of tokens.

        Raises:
            TypeError: One is neither a tensor nor a number.
            ValueError: A tensor has several elements, or the weight is not positive.
        """
        self._pending.add(loss, weight)

    @overload  # type: ignore[override]
    def step(self, closure: Callable[[], Loss]) -> Loss: ...
    @overload
    def step(self, closure: None = None, *, loss: Loss) -> Loss: ...
    @overload
    def step(self, closure: None = None) -> Loss | None: ...
    # One correct graph break where the caller compiles.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(
        self, closure: Callable[[], Loss] | None = None, *, loss: Loss | None = None
    ) -> Loss | None:
        """Take one step: the base's own, shortened by θ.

        Pass the loss, after `loss.backward()`, or a closure that computes loss and gradients, or
        nothing where losses were recorded. A parameter without a gradient does not move, unless the
        base moves it: then by the fraction θ of that.

        Args:
            closure: Reevaluates the model and returns the loss; runs with gradients enabled.
            loss: The loss that the gradients belong to: a one-element tensor on any device, or a
                Python number.

        Returns:
            The loss, as it was given, or the mean of those that were recorded. None where there is
            no loss because all learning rates are 0, as when tools initialise the base's state.

        Raises:
            TypeError: There is no loss or two, or one of the wrong type; a gradient is sparse.
            ValueError: The loss has several elements, or settings have become invalid.
            FloatingPointError: Loss or gradients are not finite, with `nonfinite="raise"`.

        After an error above, parameters, the base's state and the model are as they were. What a
        rule or an adapter returns is refused later: nothing has moved, but the base has taken in
        the gradients.
        """
        if closure is None and loss is None and not self._pending and has_zero_lr(self.base):
            like = self._plan()
            for step in self._observe():
                step.apply(as_scalar(0.0, like))
            return None
        loss = self._pending.evaluate(closure, loss)
        like = self._plan()
        group = reduction_group(self.process_group)
        if self.nonfinite != "propagate" and self._must_skip(loss, group):
            return loss
        self._take(as_scalar(loss, like), like, group)
        return loss

    def _take(self, loss: Tensor, like: Tensor, group: dist.ProcessGroup | None) -> None:
        sign, memory = self._sign, self._memory
        bound = sign * self.rule.lower_bound
        check_bound(bound)
        memory.prepare(self._pairs, like)
        steps = self._observe()
        loss = loss if sign > 0 else -loss
        loss, sums = _reduced(loss, [step.sums for step in steps], group)
        coefficients = memory.coefficients([a for step in steps for a in step.averagings])
        model = MomentumModel.of(memory.averages, coefficients, loss)  # (1), (2)
        stats = model.stats(sums, loss, bound, self._largest_lr(like))
        decision = self.rule(stats, memory.rule)  # (3)
        theta = checked_theta(decision, memory.rule, sums.shape[1])
        self._effective_lrs = _apply(steps, theta)  # (4)
        memory.write(model.after(sums, theta), decision.memory)  # (5)
        memory.remember_state(self._pairs)
        self._last_step = StepRecord.of(stats, decision, sign)

    def _plan(self) -> Tensor:
        """Plan the step; return a tensor of the device and dtype of the scalars."""
        if not self._engines:
            self._engines = [
                self._engine_of(base)(partial(self._weight_sums, base)) for base, _ in self._pairs
            ]
            self._settings = []
        pairs = zip(self._engines, self._pairs, strict=True)
        plans = [engine.prepare(base.param_groups) for engine, (base, _) in pairs]
        settings = [engine.settings for engine in self._engines]
        if settings != self._settings:
            check_settings(self._pairs)
            self._settings = settings
        return plans[0].like if len(plans) == 1 else common_template(plans)

    def _engine_of(self, base: Optimizer) -> type[Engine]:
        params = [p for group in base.param_groups for p in group["params"]]
        movable = [param for param in params if can_move(param) and not is_lazy(param)]
        return FastEngine if is_chosen(self.compiled, movable) else Engine

    def _weight_sums(self, base: Optimizer, averagings: Sequence[Averaging]) -> Tensor:
        first = 0
        for other, _ in self._pairs:
            if other is base:
                break
            first += len(other.param_groups)
        return self._memory.weight_sums(first, averagings)

    def _observe(self) -> list[BaseStep]:
        form = decay_form(self.weight_decay_form, self.rule)
        return [
            adapter.observe(base, form, engine)
            for (base, adapter), engine in zip(self._pairs, self._engines, strict=True)
        ]

    def _must_skip(self, loss: Loss, group: dist.ProcessGroup | None) -> bool:
        """Wait for loss and gradients, and tell whether a number in them is not finite."""
        found = any_rank(count_nonfinite(loss, self.param_groups), group)
        if not found.item():
            return False
        if self.nonfinite == "raise":
            raise nonfinite_error(loss)
        self._skipped += 1
        return True

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, and forget the losses that were recorded with them.

        Args:
            set_to_none: To None rather than to zeros.
        """
        super().zero_grad(set_to_none)
        self._pending.clear()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler asks for this just before it takes the step or skips it, and tells no more.
        self._pending.mark_due()
        return False

    @property
    def adapter(self) -> Adapter | list[Adapter]:
        """The adapter of the base; with several optimizers a list, in their order."""
        adapters = [adapter for _, adapter in self._pairs]
        return adapters if isinstance(self.base, JointOptimizer) else adapters[0]

    @property
    def last_step(self) -> StepRecord | None:
        """The `StepRecord` of the last step; None before the first."""
        return self._last_step

    @property
    def skipped_steps(self) -> int:
        """The number of steps that were skipped since the wrapper was made."""
        return self._skipped

    def effective_lrs(self) -> list[Tensor]:
        """Return the learning rates θα that the last step amounted to; empty before the first."""
        return [lr for lrs in self._effective_lrs for lr in lrs.unbind()]

    def __repr__(self) -> str:
        form = self.weight_decay_form or self.rule.weight_decay_form
        return f"MoMoWrapper(rule={self.rule!r}, weight_decay_form={form!r}, base={self.base!r})"

    @property
    def _sign(self) -> float:
        """-1 where the base maximises, which is minimisation of the negative."""
        base, _ = self._pairs[0]
        return -1.0 if maximizes(base, base.param_groups[0]) else 1.0

    def _initial_memory(self) -> dict[str, float]:
        return self.rule.initial_memory(self._sign * self.rule.lower_bound)

    def _largest_lr(self, like: Tensor) -> Tensor:
        def made() -> Tensor:
            rates = [group.get("lr") for group in self.param_groups]
            return largest([1.0 if rate is None else rate for rate in rates], like)

        return self._engines[0].kept("largest lr", self._settings, made)

    def _check(self) -> None:
        check_loaded(self._pairs)
        check_parameters(self.param_groups)
        check_settings(self._pairs, read_tensors=True)

    def _export(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        self._memory.prepare(self._pairs, scalar_template(self.param_groups))
        exported: dict[str, Any] = with_entries(state_dict, self._memory.entries())
        return exported

    def _import(self) -> None:
        like = scalar_template(self.param_groups)
        self._memory = Memory(self._initial_memory(), like)
        self._memory.prepare(self._pairs, like)


def _reduced(
    loss: Tensor, sums: Sequence[Tensor], group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Put the groups of all bases together, and add up over the ranks."""
    if len(sums) > 1:
        rows = max(len(its) for its in sums)
        sums = [torch.cat([complete_sums(its, rows) for its in sums], dim=1)]
    return reduced(loss, sums[0], group)


def _apply(steps: Sequence[BaseStep], theta: Tensor) -> list[Tensor]:
    """Take a fraction of each step; return the effective learning rates."""
    if not theta.dim():
        return [step.apply(theta) for step in steps]
    thetas = theta.split([len(step.averagings) for step in steps])
    return [step.apply(own) for step, own in zip(steps, thetas, strict=True)]


def _check_bound_of(wrapper: MoMoWrapper, rule: Any) -> None:
    check_rule(rule)
    check_bound(wrapper._sign * rule.lower_bound)


# Attributes that may be set, with what refuses values.
_CHECKS: dict[str, Callable[[MoMoWrapper, Any], object]] = {
    "rule": _check_bound_of,
    "nonfinite": lambda _, value: check_nonfinite(value),
    "compiled": lambda _, value: check_compiled(value),
    "weight_decay_form": lambda self, value: decay_form(value, self.rule),
    "process_group": lambda self, value: check_process_group(value, self.param_groups),
}
_FIXED = frozenset({"base"})

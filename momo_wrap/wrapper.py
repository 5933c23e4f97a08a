"""MoMoWrapper: a PyTorch optimizer whose learning rate is only an upper bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter, StepSums, maximizes
from momo_wrap.adapters.compiled import Compiled, check_choice, chosen
from momo_wrap.adapters.registry import chosen_adapter
from momo_wrap.checks import (
    Loss,
    NonFinite,
    check_arguments,
    check_bound,
    check_gradients,
    check_groups,
    decay_form,
)
from momo_wrap.distributed import (
    ProcessGroup,
    any_rank,
    check_process_group,
    reduced,
    reduction_group,
)
from momo_wrap.facade import OptimizerFacade
from momo_wrap.joint import joined, members
from momo_wrap.loading import check_loaded
from momo_wrap.losses import RecordedLosses
from momo_wrap.model import MomentumModel, kept_model
from momo_wrap.numerics import count_nonfinite, is_at_rest, nonfinite_error
from momo_wrap.record import Outcome, StepRecord
from momo_wrap.rules import MoMo, StepRule, WeightDecayForm, checked_theta, scaled
from momo_wrap.scalars import (
    PREFIX,
    as_scalar,
    kept_scalars,
    largest_lr,
    scalars_like,
    stacked,
    write_scalars,
)


class MoMoWrapper(OptimizerFacade):
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
    least float32, and no step waits for the device. Step hooks belong on the wrapper: those of the
    base, and global ones a first time, run when the base has taken in the gradients, at learning
    rate 0 and before anything moves.

    Args:
        optimizer: The base optimizer, kept as `base`; or a list of them, which share one model of
            the loss and one θ, kept as a `JointOptimizer`.
        rule: The step rule; None: `MoMo(lower_bound=0.0)`.
        adapter: How to read the base; None: the one of `adapter_for`. With several optimizers, a
            list with an entry for each.
        weight_decay: "proximal", equation (4); "decoupled", x_i <- (1 - α_i λ_i) x_i - θ α_i u_i
            with the same θ; "scaled", x_i <- x_i - θ α_i (u_i + λ_i x_i); None: the rule's own
            form, "proximal" for all but `TrustedMoMo`.
        nonfinite: What to do where the loss or a gradient is not finite: "propagate", the step
            writes NaN, as the base's would; "skip", the step changes nothing and is counted;
            "raise", it changes nothing and raises. The last two wait for the device at every step.
        compiled: Whether the passes over SGD and the Adam family are compiled: "auto", on the CPU
            for 2^24 parameters or more where there is a C++ compiler; True; False. It takes some
            seconds at first. They advance the base's state in its stead, unless it has step hooks.
        process_group: The ranks whose losses are averaged, and over which parameters are cut:
            "auto", all of `torch.distributed` if it is initialised; a group; None, this one alone.

    Attributes:
        base: The optimizer that was wrapped, a `JointOptimizer` for several.
        rule, adapter, weight_decay, nonfinite, process_group, compiled: As they were given.

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
        weight_decay: WeightDecayForm | None = None,
        nonfinite: NonFinite = "propagate",
        process_group: ProcessGroup = "auto",
        compiled: Compiled = "auto",
    ) -> None:
        base = joined(optimizer)
        if any(isinstance(member, MoMoWrapper) for member in members(base)):
            raise TypeError(
                "MoMoWrapper got an optimizer that is wrapped already; its steps would be cut "
                "twice. Wrap the base itself: MoMoWrapper(optimizer.base)."
            )
        check_arguments(base, rule, adapter, nonfinite)
        check_choice(compiled)
        rule = MoMo() if rule is None else rule
        decay_form(weight_decay, rule)
        adapter = chosen_adapter(base, adapter)
        check_groups(base, adapter, tensors=True)
        check_process_group(process_group, base.param_groups)
        super().__init__(base)
        self.rule = rule
        check_bound(self._sign * rule.lower_bound)
        self.adapter = adapter
        self.weight_decay = weight_decay
        self.nonfinite = nonfinite
        self.process_group = process_group
        self.compiled = compiled
        self._outcome = Outcome()
        self._recorded = RecordedLosses()
        self._prepare()

    def record_loss(self, loss: Loss, weight: Loss = 1.0) -> None:
        """Record a loss for the next `step()`, which then takes none.

        The mean of what was recorded is the loss of the step: that of several batches whose
        gradients add up, or that of one where a trainer calls `step()` by itself. `zero_grad`
        forgets what was recorded, with the gradients that belong to it.

        Args:
            loss: The loss of a batch, before it is divided by the number of batches: a one-element
                tensor on any device, or a number. Nobody waits for it.
            weight: Its weight in the mean, such as the number of tokens.

        Raises:
            TypeError: One is neither a tensor nor a number.
            ValueError: A tensor has several elements, or the weight is not positive.
        """
        self._recorded.add(loss, weight)

    @overload  # type: ignore[override]
    def step(self, closure: Callable[[], Loss]) -> Loss: ...
    @overload
    def step(self, closure: None = None, *, loss: Loss) -> Loss: ...
    @overload
    def step(self, closure: None = None) -> Loss | None: ...
    @torch.no_grad()
    def step(
        self, closure: Callable[[], Loss] | None = None, *, loss: Loss | None = None
    ) -> Loss | None:
        """Take one step: the base's own, cut by θ.

        Pass the loss, after `loss.backward()`, or a closure that computes loss and gradients, or
        nothing where losses were recorded. A parameter without a gradient does not move.

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
        if torch.compiler.is_dynamo_compiling() and not self._is_traceable():
            return self._untraced_step(closure, loss)
        return self._step(closure, loss)

    # torch.compiler.disable, but for the second that the import of Dynamo takes.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _untraced_step(self, *args: Any) -> Loss | None:
        return self._step(*args)

    def _step(self, closure: Callable[[], Loss] | None, loss: Loss | None) -> Loss | None:
        if closure is None and loss is None and not self._recorded and is_at_rest(self.base):
            zero = as_scalar(0.0, scalars_like(self.param_groups))
            observation = self.adapter.observe(self.base, decay_form(self.weight_decay, self.rule))
            observation.apply([zero] * len(self.param_groups))
            return None
        loss = self._recorded.evaluate(closure, loss)
        check_groups(self.base, self.adapter)
        check_gradients(self.param_groups)
        group = reduction_group(self.process_group)
        if self.nonfinite != "propagate" and self._must_skip(loss, group):
            return loss
        self._take(loss, group)
        return loss

    def _take(self, loss: Loss, group: dist.ProcessGroup | None) -> None:
        bound = self._sign * self.rule.lower_bound
        check_bound(bound)
        like = scalars_like(self.param_groups)
        scalars, memory = self._kept_scalars(like)
        compiles = chosen(self.compiled, self.param_groups)
        observe = self.adapter.observe_compiled if compiles else self.adapter.observe
        observation = observe(self.base, decay_form(self.weight_decay, self.rule))
        sums = StepSums(*(torch.stack(parts) for parts in zip(*observation.sums, strict=True)))
        minimised, sums = reduced(as_scalar(loss, like) * self._sign, sums, group)
        model = MomentumModel.of(stacked(scalars), observation.averagings, minimised)  # (1), (2)
        lr = largest_lr(self.param_groups, like)
        stats = model.total(sums).statistics(minimised, bound, lr)
        decision = self.rule(stats, memory)  # (3)
        theta = checked_theta(decision, memory, groups=len(scalars))
        effective_lrs = observation.apply(list(theta.expand(len(scalars)).unbind()))  # (4)
        buffer_move = scaled(sums.buffer_move, theta) + sums.buffer_move_by_decay  # (5)
        write_scalars(scalars, model.scalars_after(buffer_move))
        write_scalars([memory], decision.memory)
        self._outcome.effective_lrs = effective_lrs
        self._outcome.record = StepRecord.of(stats, decision, self._sign)

    def _is_traceable(self) -> bool:
        """Whether `torch.compile` can follow the step, which may then add nothing to the groups."""
        return (
            self.nonfinite == "propagate"  # the others wait for the device
            and self.adapter.is_traceable(self.base)
            and reduction_group(self.process_group) is None
            and all(f"{PREFIX}weight_sum" in group for group in self.param_groups)
        )

    def _must_skip(self, loss: Loss, group: dist.ProcessGroup | None) -> bool:
        """Wait for loss and gradients, and tell whether a number in them is not finite."""
        found = any_rank(count_nonfinite(loss, self.param_groups), group)
        if not found.item():
            return False
        if self.nonfinite == "raise":
            raise nonfinite_error(loss)
        self._outcome.skipped += 1
        return True

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, and forget the losses that were recorded with them.

        Args:
            set_to_none: To None rather than to zeros.
        """
        super().zero_grad(set_to_none)
        self._recorded.clear()

    @property
    def last_step(self) -> StepRecord | None:
        """The `StepRecord` of the last step; None before the first."""
        return self._outcome.record

    @property
    def skipped_steps(self) -> int:
        """The number of steps that were skipped since the wrapper was made."""
        return self._outcome.skipped

    def effective_lrs(self) -> list[Tensor]:
        """Return the learning rates θα that the last step amounted to; empty before the first."""
        return list(self._outcome.effective_lrs)

    def __repr__(self) -> str:
        form = self.weight_decay or self.rule.weight_decay_form
        return f"MoMoWrapper(rule={self.rule!r}, weight_decay={form!r}, base={self.base!r})"

    @property
    def _sign(self) -> float:
        """-1 where the base maximises, which is minimisation of the negative."""
        first = members(self.base)[0]
        return -1.0 if maximizes(first, first.param_groups[0]) else 1.0

    def _check(self) -> None:
        check_loaded(self.base, self.adapter)
        check_groups(self.base, self.adapter, tensors=True)

    def _prepare(self) -> None:
        self._kept_scalars(scalars_like(self.param_groups))

    def _kept_scalars(self, like: Tensor) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return the scalars of the momentum model of each group, and those of the rule."""
        kept = kept_model(self.base, self.adapter, like)
        memory = self.rule.initial_memory(self._sign * self.rule.lower_bound)
        return kept, kept_scalars(self.param_groups[0], f"{PREFIX}rule_", memory, like)

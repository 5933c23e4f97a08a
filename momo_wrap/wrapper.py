"""MoMoWrapper: a PyTorch optimizer whose learning rate is only an upper bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter
from momo_wrap.adapters.registry import adapters_for
from momo_wrap.bases import Bases
from momo_wrap.checks.arguments import (
    WRAPPER_CHECKS,
    CheckedAttributes,
    Closure,
    Compiled,
    Loss,
    NonFinite,
    check_arguments,
    check_unknown_arguments,
)
from momo_wrap.checks.nonfinite import must_skip
from momo_wrap.distributed import ProcessGroup, Ranks, check_process_group, ranks_of, reduced
from momo_wrap.engine.params import has_zero_lr
from momo_wrap.engine.scalars import as_scalar
from momo_wrap.joint import JointOptimizer, joined, members
from momo_wrap.losses import PendingLosses, RecordsLosses
from momo_wrap.model import MomentumModel, loss_of_model
from momo_wrap.of import MakesClasses
from momo_wrap.probes import Probe, measured
from momo_wrap.record import SAMPLED_EVERY, Outcome, Results
from momo_wrap.rules import MoMo, StepRule, WeightDecayForm, checked_theta, signed_bound
from momo_wrap.rules.of_batch import shift_of_batch
from momo_wrap.state.loading import shown
from momo_wrap.state.saving import SavesMemory
from momo_wrap.state.shared_state import lasting_tensors


class MoMoWrapper(CheckedAttributes, RecordsLosses, Results, MakesClasses, SavesMemory):
    r"""Shortens the steps of an optimizer to keep its momentum model of the loss above a bound.

    At each step the base optimizer averages gradients and preconditions them, as always. This gives
    a direction u_i for each parameter group i. The base would move by -α_i u_i, where α_i is the
    group's learning rate. The wrapper moves by -θ α_i u_i with one θ in [0, 1] for all groups,

        θ = clip( (h - ρ f*) / Σ_i α_i ⟨d_i, u_i⟩ , 0, 1 )                                     (3)
        x_i <- x_i - θ α_i u_i                                                                 (4)

    so that the model of the loss (`momo_wrap.model`, equations (1) and (2)) reaches the lower
    bound f* and does not fall below it. With f* = -inf the base's steps are unchanged.

    Source: Schaipp, Ohana, Eickenberg, Defazio, Gower, "MoMo: Momentum Models for Adaptive
    Learning Rates", ICML 2024, arXiv 2305.07583.

    The wrapper shares `param_groups`, `state` and `defaults` with the base. A scheduler may be
    built on either; it sets the caps α_i. Sums and scalars are computed in at least float32. Only
    every 500th step synchronizes with the host, for `diagnosis`. Register step hooks on the
    wrapper. Hooks of the base run inside `base.step()`, which is called with lr=0, before
    parameters move. Global hooks run once, for the wrapper.

    Args:
        optimizer: The base optimizer, kept as `base`; or a list of them, kept as a
            `JointOptimizer`, which share one model of the loss and one θ.
        rule: The step rule; None: `MoMo(lower_bound=0.0)`.
        adapter: How to read the base; None: `adapter_for(optimizer)`. For several bases, a list.
        weight_decay_form: What the base's weight decay λ_i does. "base": the same as in the base,
            shortened with the step; "scaled": as in AdamW, x_i <- x_i - θ α_i (u_i + λ_i x_i);
            "decoupled": x_i <- (1 - α_i λ_i) x_i - θ α_i u_i; "proximal", as in the paper: x_i <-
            (x_i - θ α_i u_i)/(1 + α_i λ_i); None: the rule's `weight_decay_form`, "base" by
            default. A `ProposingAdapter` supports only "base".
        nonfinite: What to do if the loss or a gradient is not finite. "propagate": the step writes
            NaN, as the base's would; "skip": the step is a no-op and is counted; "raise": it is a
            no-op and raises. The last two synchronize with the host at every step.
        compiled: How the state of SGD and the Adam family is updated. False: by `base.step()`, as
            for all other bases. True: by compiled passes instead, unless the base has step hooks.
            "auto": like True on the CPU, compiled from 2^24 parameters on; on CUDA like True from
            as many on, if triton is installed; else by `base.step()`.
        max_grad_norm: The norm to which each step clips gradients, as torch's `clip_grad_norm_`
            does; the model of the loss accounts for it. None: no clipping. If you clip gradients
            yourself, see `record_clipping`.
        process_group: The ranks over which losses are averaged and parameters are sharded. "auto":
            all ranks if `torch.distributed` is initialized; a process group; None: only this rank.

    Attributes:
        base: The wrapped optimizer; a `JointOptimizer` for several.
        adapter: The adapter of the base; a list for several.
        rule: As given, like `weight_decay_form`, `nonfinite`, `max_grad_norm`, `process_group` and
            `compiled`. All may be set, and are checked then. A new rule has no memory.

    Raises:
        TypeError: `optimizer` is not an optimizer or can't be wrapped, or `rule` or `adapter` has
            the wrong type.
        ValueError: The settings of a group are out of range or contradict each other.
    """

    def __init__(
        self,
        optimizer: Optimizer | Sequence[Optimizer],
        rule: StepRule | None = None,
        *,
        adapter: Adapter | Sequence[Adapter | None] | None = None,
        weight_decay_form: WeightDecayForm | None = None,
        nonfinite: NonFinite = "propagate",
        max_grad_norm: float | None = None,
        process_group: ProcessGroup = "auto",
        compiled: Compiled = "auto",
        **unknown: Any,
    ) -> None:
        check_unknown_arguments(unknown)
        base = joined(optimizer)
        if any(isinstance(member, MoMoWrapper) for member in members(base)):
            raise TypeError(
                "MoMoWrapper got an optimizer that is already wrapped; its steps would be "
                "shortened twice. Wrap the base: MoMoWrapper(optimizer.base)."
            )
        rule = MoMo() if rule is None else rule
        check_arguments(base, rule, adapter, nonfinite, compiled, weight_decay_form, max_grad_norm)
        bases = Bases(members(base), adapters_for(base, adapter), self._weight_sums)
        check_process_group(process_group, base.param_groups)
        super().__init__(base)
        self._bases = bases
        self.process_group, self.compiled = process_group, compiled
        self.nonfinite, self.max_grad_norm = nonfinite, max_grad_norm
        self.rule, self.weight_decay_form = rule, weight_decay_form
        self._outcome, self._pending = Outcome(), PendingLosses()
        with lasting_tensors():
            self._import()

    def _changed(self, name: str) -> None:
        if name == "rule" and "_memory" in self.__dict__:
            bound = signed_bound(self.rule, self._bases.sign)
            self._memory.start_rule(self.rule.initial_memory(bound))
            self._pending.before = None
            self._outcome.tally.start_rule()
        elif name == "compiled":
            self._bases.forget()

    @overload  # type: ignore[override]
    def step(
        self, closure: Closure, *, probe: Probe | None = None, lower_bound: Loss | None = None
    ) -> Loss: ...
    @overload
    def step(
        self,
        closure: None = None,
        *,
        loss: Loss,
        probe: Probe | None = None,
        lower_bound: Loss | None = None,
    ) -> Loss: ...
    @overload
    def step(
        self, closure: None = None, *, probe: Probe | None = None, lower_bound: Loss | None = None
    ) -> Loss | None: ...
    @torch.no_grad()
    def step(
        self,
        closure: Closure | None = None,
        *,
        loss: Loss | None = None,
        probe: Probe | None = None,
        lower_bound: Loss | None = None,
    ) -> Loss | None:
        """Take the base's step, shortened by θ.

        After `loss.backward()`, pass the loss; or pass a closure that computes loss and gradients,
        or nothing if losses were recorded. A parameter without a gradient does not move unless the
        base moves it; that move is shortened by θ too.

        Args:
            closure: Reevaluates the model and returns the loss. It runs with gradients enabled.
            loss: The loss of the gradients: a one-element tensor on any device, or a number.
            probe: Returns the loss of the same batch at the current parameters. Pass it at every
                step. It is called when the rule requests it, without gradients, with the parameters
                moved back to where they were before the last step.
            lower_bound: A lower bound of the loss of this batch, such as the loss of a teacher,
                instead of the rule's: a one-element tensor on any device, or a number. The model of
                the loss is truncated at the average of the bounds, equation (18).

        Returns:
            The loss as given, or the mean or sum of the recorded losses. None if there is no loss:
            all learning rates are 0, as when tools initialize the optimizer state, or the closure
            left no gradients, as a trainer's does for a batch that it skips.

        Raises:
            TypeError: There is no loss, or two, or one of the wrong type; or a gradient is sparse.
            ValueError: Loss or bound has several elements, or a setting has become invalid.
            FloatingPointError: Loss or gradients are not finite and `nonfinite="raise"`.

        These errors change nothing. A wrong return value of a rule or an adapter raises later: no
        parameter has moved, but the optimizer state is updated.
        """
        if torch.compiler.is_dynamo_compiling():
            return self._untraced_step(closure, loss, probe, lower_bound)
        return self._step(closure, loss, probe, lower_bound)

    def _step(
        self, closure: Closure | None, loss: Loss | None, probe: Probe | None, limit: Loss | None
    ) -> Loss | None:
        own_loss, pending = True, self._pending
        if closure is None and loss is None and not pending.count and has_zero_lr(self.base):
            form, pending.clipping = self.weight_decay_form or self.rule.weight_decay_form, None
            self._bases.update_state(self.compiled, form)
            return None
        # Nearly always it is a real 0-dim tensor, which needs no check.
        other = (
            not (closure is None and pending.clipping is None and limit is None) or pending.count
        )
        if other or not isinstance(loss, Tensor) or loss.dim() or loss.is_complex():
            groups = self.param_groups
            loss, probe, limit, own_loss = pending.evaluate(closure, loss, probe, limit, groups)
            if loss is None:  # a skipped batch, without gradients
                return None
        self._bases.prepare(self.compiled)
        several = dist.is_available() and dist.is_initialized()
        group = ranks_of(self.process_group) if several else None
        cares = self.nonfinite != "propagate"
        if cares and must_skip(self.nonfinite, loss, limit, self.param_groups, group):
            self._outcome.skipped, pending.clipping = self._outcome.skipped + 1, None
        else:
            self._take(loss, group, probe, limit, own_loss=own_loss)
        return loss

    # One correct graph break if the caller compiles.
    _untraced_step = torch._disable_dynamo(_step)  # type: ignore[attr-defined]

    def _take(
        self, loss: Loss, group: Ranks, probe: Probe | None, limit: Loss | None, *, own_loss: bool
    ) -> None:
        bases, memory, told, like = self._bases, self._memory, self._pending, self._bases.like
        bound = signed_bound(self.rule, bases.sign)
        shift = None if limit is None else shift_of_batch(limit, bound, like, bases.sign)
        before, clipping, has_probe = told.before, told.clipping, probe is not None
        probed = kept = foreseen = None
        if before is not None or has_probe:
            probed = measured(before, probe, loss, like, bases.sign, clipping, own_loss)
        told.before = None
        if self.max_grad_norm is not None or clipping is not None:
            clipping = told.clip(self.param_groups, self.max_grad_norm, like)
            memory.follow_clipping()
        memory.prepare(bases.pairs, like, bases.rates)
        if type(loss) is not Tensor or (loss.dtype, loss.device) != (like.dtype, like.device):
            loss = as_scalar(loss, like)
        loss = loss.detach() if bases.sign > 0 else -loss.detach()
        on_host = (memory.steps + 1, has_probe, probed is not None, memory.is_scheduled)
        # Most rules measure nothing: no call then, unless parameters are moved ahead.
        measures = type(self.rule).wants_slope is not StepRule.wants_slope
        if measures or has_probe or bases.foresees:
            early = (loss_of_model(loss, shift), bound, (*bases.seen(before, probed), *on_host))
            kept, foreseen = bases.look_ahead(self.rule, early, memory.rule, before, group)
        form = self.weight_decay_form or self.rule.weight_decay_form
        step = bases.observe(form, foreseen, memory.reach)
        try:
            own = (loss, step.sums, step.penalty, step.offsets, probed, shift)
            own = own if group is None else reduced(own, group)
            given, sums, penalty, offsets, probed, shift = own
            loss = given
            if shift is not None or penalty is not None:
                loss = loss_of_model(given, shift, penalty, clipping)
            coefficients = memory.coefficients(step.averagings)  # (1), (2)
            model = MomentumModel.of(memory.averages, coefficients, loss, clipping, offsets)
            known = (*bases.seen(before, probed), *on_host)
            stats = model.stats(sums, loss, bound, bases.largest_lr, known)
            decision = self.rule(stats, memory.rule)  # (3)
            theta = checked_theta(decision, memory.rule, sums.shape[1])
            if kept is not None:
                kept.predict(stats, theta, step.coupled_decay)
        except BaseException:
            step.withdraw()
            raise
        told.before, self._outcome.effective_lrs = kept, step.apply(theta)  # (4)
        memory.write(model.after(sums, theta), decision.memory, step.reach)  # (5)
        told.clipping, self._outcome.of_step = None, (stats, decision, given, bases.sign, shift)
        if memory.steps % SAMPLED_EVERY == 0:
            self._sample(lacks_momentum=step.lacks_momentum)

    @property
    def adapter(self) -> Adapter | list[Adapter]:
        """The adapter of the base; a list in the order of the bases for several."""
        adapters = [adapter for _, adapter in self._bases.pairs]
        return adapters if isinstance(self.base, JointOptimizer) else adapters[0]

    def __repr__(self) -> str:
        form = self.weight_decay_form or self.rule.weight_decay_form
        settings = f"rule={self.rule!r}, weight_decay_form={form!r}"
        return f"{type(self).__name__}({settings}, base={shown(self.base)})"

    CHECKS = WRAPPER_CHECKS
    FIXED = frozenset({"base"})

"""Adapters that read the momentum buffer and the preconditioner from the optimizer state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import AdamW, Optimizer

from momo_wrap.adapters.ahead_step import AheadStep
from momo_wrap.adapters.base import (
    Adapter,
    BaseStep,
    ParamGroup,
    State,
    check_shape,
    maximizes,
)
from momo_wrap.adapters.planned_step import (
    PlannedStep,
    Reading,
    global_hooks,
    step_without_global_hooks,
)
from momo_wrap.adapters.rates import Rates
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.passes import Engine
from momo_wrap.engine.scalars import Scalar
from momo_wrap.model import Averaging
from momo_wrap.rules import WeightDecayForm

# The names of the setting in torch, pytorch-optimizer and timm.
_DECOUPLING = ("decoupled_weight_decay", "weight_decouple", "decoupled_decay")


class ReadingAdapter(Adapter):
    """The adapter for a base whose state contains the averaged gradient and the preconditioner.

    The base updates its state with its own code, at learning rate 0 and weight decay 0, so
    parameters do not move. Then the adapter reads B_k and D_k from the state, and the wrapper moves
    the parameters. A subclass defines how the base averages, which tensors to read, and how to
    compute the direction from them. It computes on flat blocks, independent of the layout of
    parameters.
    """

    @abstractmethod
    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return how a parameter group averages gradients at this step.

        Args:
            group: An entry of the base's `param_groups`.
            state: The optimizer state, by parameter, after its update. Only an optimizer with its
                own momentum schedule needs it. A `ProposingAdapter` that gets this method also
                calls it before the update, with a state that is empty at the first step.

        Returns:
            The coefficients of the averaging, for all parameters of the group.
        """

    @abstractmethod
    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Gather the optimizer state after its update.

        Called in every step for every group. It returns existing tensors; computation belongs into
        `scalars`.

        Args:
            group: The parameter group.
            params: The parameters of the group with a gradient, on one device and of one dtype.
            state: The optimizer state, by parameter.

        Returns:
            The momentum buffers, further tensors and scalars of these parameters.
        """

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return the values per parameter that `preconditioned` needs, from those of `read`.

        Called once for the parameters of all groups that share blocks.

        Args:
            read: The values of `Reading.scalars`, and "decay" (a), "weight" (b), "buffer_scale" (p)
                and "grad_scale" (q) of the averaging: each a number that all parameters share, or a
                tensor of shape [] or [parameters].

        Returns:
            Values of the same types, by name, for `block.scalar`. "buffer_scale" and "grad_scale"
            may be omitted. By default all of `read`.
        """
        return read

    def preconditioned(self, block: Block) -> Tensor:
        """Return u_k = D_k^{-1} d_k of a block: the base would move the parameters by -α u_k.

        Args:
            block: The block. Its `flat` columns are "buffer" (B_k), "grad" (g_k, in the sense of
                minimization), "param" and the names of `Reading.tensors`; its `scalar`s are
                "buffer_scale" (p), "grad_scale" (q) and the names of `scalars`. It must not be
                changed.

        Returns:
            A tensor of the block's flat shape, which may be a column. By default d_k, for D_k = I.
        """
        return self.grad_avg(block)

    def grad_avg(self, block: Block) -> Tensor:
        """Return d_k = p B_k + q g_k of a block.

        Args:
            block: As for `preconditioned`.

        Returns:
            A tensor of the block's flat shape, which may be a column.
        """
        scale, grad_scale = block.scalar("buffer_scale"), block.scalar("grad_scale")
        buffer = block.flat("buffer")
        if isinstance(scale, Tensor) or scale != 1.0:
            buffer = buffer * scale
        if isinstance(grad_scale, Tensor) or grad_scale != 0.0:
            return buffer + grad_scale * block.flat("grad")
        return buffer

    def moved(self, block: Block, direction: Tensor, keep: Scalar, pull: Tensor) -> Tensor:
        """Move the parameters of a block, x <- keep x - pull u.

        Args:
            block: As for `preconditioned`.
            direction: u, of the block's flat shape.
            keep: The factor of the parameters by weight decay.
            pull: θ times the learning rate.

        Returns:
            The column "param", changed in place.
        """
        x = block.flat("param")
        if isinstance(keep, Tensor) or keep != 1.0:
            x.mul_(keep)
        return x.addcmul_(direction, pull, value=-1.0)

    def while_updating(self, group: ParamGroup) -> dict[str, Any]:
        """Return settings that the group needs while the base steps at learning rate 0.

        Args:
            group: The parameter group, with its original settings.

        Returns:
            A dict from setting to value, besides lr, which is always 0, and weight_decay, which is
            0 unless the base adds it to the gradients and the form of weight decay keeps that. They
            are restored afterwards.
        """
        return {}

    def couples_weight_decay(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether the base adds its weight decay λ x to the gradients.

        Otherwise it shrinks the parameters, by α λ in a step.

        Args:
            base: The optimizer.
            group: An entry of its `param_groups`.

        Returns:
            By default, the value of a setting with a usual name; without one, False only for AdamW.
        """
        known = [not group[name] for name in _DECOUPLING if name in group]
        return known[0] if known else not isinstance(base, AdamW)

    def has_history(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether the base already has a state; see `Adapter`."""
        return any(base.state.get(param) for param in group["params"])

    def check_entry(self, where: str, param: Tensor, entry: Mapping[str, Any]) -> None:
        """Raise for tensors of another shape than the parameter's; see `Adapter`."""
        for name, value in entry.items():
            if isinstance(value, Tensor) and value.dim() > 0:
                check_shape(where, param, name, value)

    def observe(
        self, base: Optimizer, weight_decay_form: WeightDecayForm, engine: Engine
    ) -> BaseStep:
        """Let the base update its state, and read it; see `Adapter`."""
        groups, plan, form = base.param_groups, engine.plan, weight_decay_form
        if form not in engine.kept:
            own = form == "base"
            coupled = [
                own and "weight_decay" in group and self.couples_weight_decay(base, group)
                for group in groups
            ]
            rates = Rates.of(groups, form, plan.like, coupled)
            engine.kept[form] = (coupled, rates, maximizes(base, groups[0]))
        coupled, rates, negate = engine.kept[form]
        if not engine.replaces_step(base, self, plan):
            ahead = None
            if engine.foreseen is not None and form == "base":
                ahead = engine.lrs_ahead(base)
            settings = [self.while_updating(group) for group in groups]
            with zero_lr(groups, coupled, settings) if ahead is None else with_lrs(groups, ahead):
                step_without_global_hooks(base) if any(global_hooks) else base.step()
        averagings = [self.averaging(group, base.state) for group in groups]
        readings = [self.read(groups[c.group], c.params, base.state) for c in plan.cells]
        kind = PlannedStep if engine.foreseen is None else AheadStep
        return kind(self, engine, readings, averagings, rates, negate=negate)


@contextmanager
def with_lrs(groups: list[ParamGroup], lrs: Sequence[float]) -> Iterator[None]:
    """Set learning rates, and restore the same objects afterwards."""
    saved = [group["lr"] for group in groups]
    try:
        for group, lr in zip(groups, lrs, strict=True):
            group["lr"] = lr
        yield
    finally:
        for group, lr in zip(groups, saved, strict=True):
            group["lr"] = lr


@contextmanager
def zero_lr(
    groups: list[ParamGroup], coupled: Sequence[bool], settings: list[dict[str, Any]]
) -> Iterator[None]:
    """Set learning rates to 0, weight decay too if it is not coupled, and further settings.

    Restore the same objects afterwards.
    """
    saved = [dict(group) for group in groups]
    changed = [
        {**changes, "lr": 0.0} if keeps else {**changes, "lr": 0.0, "weight_decay": 0.0}
        for changes, keeps in zip(settings, coupled, strict=True)
    ]
    try:
        for group, changes in zip(groups, changed, strict=True):
            group.update(changes)
        yield
    finally:
        for group, before, changes in zip(groups, saved, changed, strict=True):
            for key in changes:
                if key in before:
                    group[key] = before[key]
                else:
                    group.pop(key, None)

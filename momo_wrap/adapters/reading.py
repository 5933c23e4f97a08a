"""Adapters that read the momentum buffer and the preconditioner out of the base's own state."""

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

# What torch, pytorch-optimizer and timm call the setting.
_DECOUPLING = ("decoupled_weight_decay", "weight_decouple", "decoupled_decay")


class ReadingAdapter(Adapter):
    """The adapter for a base whose state holds the averaged gradient and the preconditioner.

    The base updates its own state with its own code, at learning rate 0 and weight decay 0, so that
    parameters stay put. Then B_k and D_k are read from its state, and the wrapper moves the
    parameters itself. A subclass says how the base averages, which tensors to read, and how they
    make a direction; it computes on flat blocks and never sees how parameters are laid out.
    """

    @abstractmethod
    def averaging(self, group: ParamGroup, state: State) -> Averaging:
        """Return how a parameter group averages gradients at this step.

        Args:
            group: An entry of the base's `param_groups`.
            state: The base's state, by parameter, after it has taken in the gradients. Only an
                optimizer whose momentum changes by a schedule of its own needs it. A
                `ProposingAdapter` that is given this method also calls it before, with a state
                that is empty at the first step.
        """

    @abstractmethod
    def read(self, group: ParamGroup, params: Sequence[Tensor], state: State) -> Reading:
        """Gather the base's state after it has taken in the gradients.

        Called in every step for every group: it returns what is there and computes on no tensor,
        which is left to `scalars`.

        Args:
            group: The parameter group.
            params: Those of its parameters that have a gradient, on one device and of one dtype.
            state: The base's state, by parameter.
        """

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return the values per parameter that `preconditioned` needs, from those that were read.

        Called once for the parameters of all groups that are computed with together.

        Args:
            read: The names of `Reading.scalars`, and "decay" (a), "weight" (b), "buffer_scale" (p)
                and "grad_scale" (q) of the averaging, each with a number that all parameters share,
                or a tensor of shape [] or [parameters].

        Returns:
            Values of the same kind, by name: those that `block.scalar` returns, besides
            "buffer_scale" and "grad_scale". Here all that were read.
        """
        return read

    def preconditioned(self, block: Block) -> Tensor:
        """Return u_k = D_k^{-1} d_k of a block: the base would move the parameters by -α u_k.

        Args:
            block: Its `flat` columns are "buffer" (B_k), "grad" (g_k, of the function that is
                minimised), "param" and the names of `Reading.tensors`; its `scalar`s are
                "buffer_scale" (p), "grad_scale" (q) and the names of `scalars`. Must not be
                changed.

        Returns:
            A tensor of the block's flat shape, which may be a column itself. Here d_k: D_k = I.
        """
        return self.grad_avg(block)

    def grad_avg(self, block: Block) -> Tensor:
        """Return d_k = p B_k + q g_k of a block.

        Args:
            block: As for `preconditioned`.

        Returns:
            A tensor of the block's flat shape, which may be a column itself.
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
            keep: What weight decay leaves of the parameters.
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
            group: The parameter group, with its own settings.

        Returns:
            Setting to value, besides lr, which is always 0, and weight_decay, which is 0 unless the
            base adds it to the gradients and is meant to; put back afterwards.
        """
        return {}

    def couples_weight_decay(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether the base adds its weight decay λ x to the gradients.

        Otherwise it shrinks the parameters, by α λ in a step.

        Args:
            base: The optimizer.
            group: An entry of its `param_groups`.

        Returns:
            Here what a setting of a usual name says; where there is none, whether it is not AdamW.
        """
        known = [not group[name] for name in _DECOUPLING if name in group]
        return known[0] if known else not isinstance(base, AdamW)

    def has_history(self, base: Optimizer, group: ParamGroup) -> bool:
        """Return whether the base has a state already; see `Adapter`."""
        return any(base.state.get(param) for param in group["params"])

    def check_entry(self, where: str, param: Tensor, entry: Mapping[str, Any]) -> None:
        """Refuse tensors of another shape than the parameter's; see `Adapter`."""
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
    """Set learning rates, and put back the very objects that were there."""
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
    """Set learning rates to 0, weight decay too where it is not coupled, and further settings.

    Put back the very objects that were there.
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

"""The laws that any adapter satisfies."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters import Adapter, ProposingAdapter, ReadingAdapter, adapter_for
from momo_wrap.adapters.proposing import AveragingOfGroup
from momo_wrap.rules import ModelStats, MoMo, StepDecision, StepRule
from momo_wrap.testing.regression import STEPS, MakeOptimizer, Prepare, Run
from momo_wrap.wrapper import MoMoWrapper

_TOLERANCE = 1e-9  # relative, in float64
_ROUNDING = 1e-12
_BFLOAT16_TOLERANCE = 0.05
_STEPS_BEFORE_FILE = 10
_BFLOAT16_STEPS = 25  # trajectories that are rounded so coarsely part in the end


class _Soft(StepRule):
    """θ = h / (h + N): a fraction in every step, which tells any two models apart."""

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        gap = (stats.model_value - stats.lower_bound).clamp(min=0.0)
        total = gap + stats.predicted_decrease.clamp(min=0.0)
        theta = torch.where(total > 0, gap / total, 0.0)
        return StepDecision(theta, theta, stats.lower_bound)


@dataclass(frozen=True)
class Setting:
    """What is checked, and what it is compared with.

    Attributes:
        bare: Makes the bare optimizer.
        adapter: The adapter that is checked.
        oracle: The adapter that it is compared with.
    """

    bare: MakeOptimizer
    adapter: Adapter
    oracle: ProposingAdapter

    @classmethod
    def of(
        cls,
        make_optimizer: MakeOptimizer,
        adapter: Adapter | None,
        averaging: AveragingOfGroup | None,
    ) -> Setting:
        """Make sure that the bare optimizer trains; see `check_adapter`."""

        def bare(params: Any) -> Optimizer:
            optimizer = make_optimizer(params)
            for group in optimizer.param_groups:
                if isinstance(adapter, ReadingAdapter) and "weight_decay" in group:
                    group["weight_decay"] = 0.0
            return optimizer

        run = Run(make_optimizer)
        adapter = adapter_for(run.optimizer) if adapter is None else adapter
        reason = adapter.obstacle(run.optimizer)
        if reason is not None:
            raise AssertionError(f"{adapter!r} says that it can't read this optimizer: {reason}.")
        run = Run(bare)
        start = run.whole_loss()
        run.train()
        end = run.whole_loss()
        if not end < 0.9 * start:
            raise AssertionError(
                f"The bare optimizer brought the loss from {start:.4g} to {end:.4g} in {STEPS} "
                "steps. Choose a learning rate at which it trains."
            )
        if averaging is None:
            averaging = getattr(adapter, "averaging", None)
        return cls(bare, adapter, ProposingAdapter(averaging=averaging))

    def wrapped(
        self, rule: StepRule | None = None, adapter: Adapter | None = None
    ) -> Callable[[Any], MoMoWrapper]:
        """Return what makes a wrapped optimizer, with the adapter that is checked or another."""
        rule = _Soft() if rule is None else rule
        chosen = self.adapter if adapter is None else adapter
        return lambda params: MoMoWrapper(self.bare(params), rule, adapter=chosen)


def _distance(left: Tensor, right: Tensor) -> float:
    distances = (left - right).norm(dim=-1) / right.norm(dim=-1)
    return float(torch.where(distances.isnan(), math.inf, distances).max())


def _require_close(left: Tensor, right: Tensor, what: str, tolerance: float = _TOLERANCE) -> None:
    distance = _distance(left, right)
    if distance > tolerance:
        close = (left - right).norm(dim=-1) <= tolerance * right.norm(dim=-1)
        first = int((~close).nonzero()[0])
        raise AssertionError(
            f"{what} differ by {distance:.2g} relative to the parameters (allowed: "
            f"{tolerance:.2g}), from step {first} on."
        )


def _follows_bare(setting: Setting, prepare: Prepare | None = None, **kind: Any) -> None:
    coarse = kind.get("dtype") is torch.bfloat16
    tolerance, steps = (_BFLOAT16_TOLERANCE, _BFLOAT16_STEPS) if coarse else (_TOLERANCE, STEPS)
    bare = Run(setting.bare, **kind).train(prepare, steps)
    wrapped = Run(setting.wrapped(MoMo(-math.inf)), **kind).train(prepare, steps)
    _require_close(wrapped, bare, "without a bound, wrapped and bare optimizer", tolerance)


def _follows_proposing(setting: Setting, prepare: Prepare | None = None, **kind: Any) -> None:
    ours = Run(setting.wrapped(), **kind).train(prepare)
    theirs = Run(setting.wrapped(adapter=setting.oracle), **kind).train(prepare)
    _require_close(ours, theirs, "adapter and ProposingAdapter")


def _stop(setting: Setting) -> None:
    start = Run(setting.bare)
    run = Run(setting.wrapped(MoMo(float(start.loss(0).detach()))))
    before = run.flat()
    run.step(0)
    moved = float((run.flat() - before).norm())
    if run.thetas[0] > _ROUNDING or moved > _ROUNDING:
        raise AssertionError(
            f"with the bound at the loss, θ is {run.thetas[0]:.3g} and parameters move by "
            f"{moved:.3g}."
        )


def _resume(setting: Setting) -> None:
    # In float32, because torch loads a base's own scalars with the dtype of the parameters. With
    # two adapters, so that what one of them remembers by itself is lost.
    run = Run(setting.wrapped(), dtype=torch.float32)
    fresh = copy.deepcopy(setting.adapter)
    resumed, file = Run(setting.wrapped(adapter=fresh), dtype=torch.float32), io.BytesIO()
    run.train(steps=_STEPS_BEFORE_FILE)
    torch.save((run.optimizer.state_dict(), [p.detach() for p in run.params], run.late), file)
    file.seek(0)
    state, params, late = torch.load(file, weights_only=False)
    for own, saved in zip([*resumed.params, resumed.late], [*params, late], strict=True):
        own.detach().copy_(saved)
    resumed.optimizer.load_state_dict(state)
    random = torch.get_rng_state()
    uninterrupted = run.train()
    torch.set_rng_state(random)
    distance = _distance(resumed.train(), uninterrupted)
    if distance != 0.0:
        raise AssertionError(f"the resumed run differs by {distance:.2g} from the uninterrupted.")


def _missing_gradients(setting: Setting) -> None:
    def prepare(step: int, run: Run) -> None:
        missing = [run.params[1]] if step < 5 else [run.params[step % 4]] if step % 3 == 0 else []
        for param in missing:
            param.grad = None
        if not run.thetas:
            still.extend(copy.deepcopy([p.detach() for p in missing]))

    still: list[Tensor] = []
    _follows_bare(setting, prepare)
    run = Run(setting.wrapped())
    still.clear()
    run.step(0, prepare)
    if not torch.equal(still[0], run.params[1].detach()):
        raise AssertionError("a parameter without a gradient moved.")
    run.train(prepare)
    if not all(0.0 <= theta <= 1.0 for theta in run.thetas):
        raise AssertionError(f"θ is {min(run.thetas)} to {max(run.thetas)}, outside of [0, 1].")


def _groups(setting: Setting) -> None:
    _follows_bare(setting, groups=2)
    _follows_proposing(setting, groups=2)


def _late_group(setting: Setting) -> None:
    def prepare(step: int, run: Run) -> None:
        if step == 10:
            known = run.optimizer.param_groups[0]
            decay = {name: known[name] for name in ("weight_decay",) if name in known}
            run.optimizer.add_param_group({"params": [run.late], **decay})

    _follows_bare(setting, prepare)
    _follows_proposing(setting, prepare)


def _permuted(setting: Setting) -> None:
    make = setting.wrapped()
    permuted = Run(make, permuted=True).train()
    _require_close(permuted, Run(make).train(), "permuted and unpermuted parameters")


def _bfloat16(setting: Setting) -> None:
    _follows_bare(setting, dtype=torch.bfloat16)
    run = Run(setting.wrapped(), dtype=torch.bfloat16)
    start = run.whole_loss()
    run.train(steps=_BFLOAT16_STEPS)
    if not run.whole_loss() < start:
        raise AssertionError(f"the loss went from {start:.4g} to {run.whole_loss():.4g}.")
    if not all(param.dtype is torch.bfloat16 for param in run.params):
        raise AssertionError(f"parameters became {[param.dtype for param in run.params]}.")


def _can_maximize(optimizer: Optimizer) -> bool:
    groups = optimizer.param_groups
    return all("maximize" in group for group in groups) or hasattr(optimizer, "maximize")


def _maximize(setting: Setting) -> None:
    def maximising(params: Any) -> MoMoWrapper:
        optimizer = setting.bare(params)
        if hasattr(optimizer, "maximize"):
            optimizer.maximize = True
        for group in optimizer.param_groups:
            if "maximize" in group:
                group["maximize"] = True
        return MoMoWrapper(optimizer, _Soft(), adapter=setting.adapter)

    minimised = Run(setting.wrapped()).train()
    maximised = Run(maximising, sign=-1.0).train()
    _require_close(maximised, minimised, "maximising -f and minimising f")


def _settings(setting: Setting) -> None:
    run = Run(setting.wrapped())
    before = [(group.get("lr"), group.get("weight_decay")) for group in run.optimizer.param_groups]
    run.step(0)
    for (lr, decay), group in zip(before, run.optimizer.param_groups, strict=True):
        if group.get("lr") is not lr or group.get("weight_decay") is not decay:
            raise AssertionError(
                f"lr and weight_decay were {lr} and {decay}, are {group.get('lr')} and "
                f"{group.get('weight_decay')} after a step."
            )


def applicable(setting: Setting) -> dict[str, Callable[[Setting], None]]:
    """Return the laws that speak of something that the optimizer has."""
    laws = dict(LAWS)
    if not _can_maximize(Run(setting.bare).optimizer):
        del laws["maximize"]
    return laws


LAWS: dict[str, Callable[[Setting], None]] = {
    "bare": _follows_bare,
    "proposing": _follows_proposing,
    "stop": _stop,
    "resume": _resume,
    "missing gradients": _missing_gradients,
    "groups": _groups,
    "late group": _late_group,
    "permuted": _permuted,
    "bfloat16": _bfloat16,
    "maximize": _maximize,
    "settings": _settings,
}

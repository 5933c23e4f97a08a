"""The laws that any adapter satisfies, each by the name of its function; see `check_adapter`."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from momo_wrap.engine.compat import run_as_it_is
from momo_wrap.rules import MoMo
from momo_wrap.testing.blocks import block_elements
from momo_wrap.testing.setting import FEWER_STEPS, STEPS, Prepare, Run, Setting, Soft
from momo_wrap.wrapper import MoMoWrapper

try:
    from momo_wrap.fast.updates import UPDATES
except ImportError:  # this subpackage is optional
    UPDATES = {}

_TOLERANCE = 1e-9  # relative, in float64
_ROUNDING = 1e-12
_BFLOAT16_TOLERANCE = 0.05
_STEPS_BEFORE_FILE = 10
_FLOAT32_TOLERANCE = 1e-2  # of the distance moved, which is short at first
_COARSE_STEPS = 25  # in low precision, trajectories diverge later


def _require_close(left: Tensor, right: Tensor, what: str, tolerance: float = _TOLERANCE) -> None:
    distances = (left - right).norm(dim=-1) / right.norm(dim=-1)
    distances = torch.where(distances.isnan(), math.inf, distances)
    far = (distances > tolerance).nonzero()
    if len(far):
        raise AssertionError(
            f"{what} differ by {float(distances.max()):.2g} relative to the parameters (allowed: "
            f"{tolerance:.2g}), from step {int(far[0])} on."
        )


def _follows_bare(
    setting: Setting,
    prepare: Prepare | None = None,
    *,
    steps: int = FEWER_STEPS,
    tolerance: float = _TOLERANCE,
    **kind: Any,
) -> None:
    bare = Run(setting.bare, **kind).train(prepare, steps)
    wrapped = Run(setting.wrapped(MoMo(-math.inf)), **kind).train(prepare, steps)
    _require_close(wrapped, bare, "without a bound, wrapped and unwrapped optimizer", tolerance)


def _follows_proposing(
    setting: Setting, prepare: Prepare | None = None, *, steps: int = FEWER_STEPS, **kind: Any
) -> None:
    ours = Run(setting.wrapped(), **kind).train(prepare, steps)
    theirs = Run(setting.wrapped(adapter=setting.oracle), **kind).train(prepare, steps)
    _require_close(ours, theirs, "adapter and ProposingAdapter")


def _bare(setting: Setting) -> None:
    _follows_bare(setting, steps=STEPS)
    runs = [
        Run(make, dtype=torch.float32) for make in (setting.wrapped(MoMo(-math.inf)), setting.bare)
    ]
    start = runs[0].flat()
    ours, theirs = (run.train(steps=_COARSE_STEPS) - start for run in runs)
    what = "the moves of wrapped and unwrapped optimizer in float32"
    _require_close(ours, theirs, what, _FLOAT32_TOLERANCE)


def _weight_decay(setting: Setting) -> None:
    def prepare(step: int, run: Run) -> None:
        for group in run.optimizer.param_groups if step == 0 else ():
            group["weight_decay"] = 0.1

    _follows_bare(setting, prepare)
    _follows_bare(setting, prepare, groups=2)


def _proposing(setting: Setting) -> None:
    _follows_proposing(setting, steps=STEPS)


def _stop(setting: Setting) -> None:
    run = Run(setting.wrapped(MoMo(float(Run(setting.bare).loss(0).detach()))))
    before = run.flat()
    run.step(0)
    theta, moved = run.thetas[0], float((run.flat() - before).norm())
    if not (theta <= _ROUNDING and moved <= _ROUNDING):
        raise AssertionError(
            f"with the bound at the loss, θ is {theta:.3g} and parameters move by {moved:.3g}."
        )


def _resume(setting: Setting) -> None:
    # In float32, because torch loads a base's scalars with the dtype of the parameters. With a copy
    # of the adapter, so any state in the adapter is lost.
    run = Run(setting.wrapped(), dtype=torch.float32)
    fresh = copy.deepcopy(setting.adapter)
    resumed, file = Run(setting.wrapped(adapter=fresh), dtype=torch.float32), io.BytesIO()
    run.train(steps=_STEPS_BEFORE_FILE)
    torch.save((run.optimizer.state_dict(), [p.detach() for p in [*run.params, run.late]]), file)
    file.seek(0)
    state, params = torch.load(file, weights_only=False)
    for own, saved in zip([*resumed.params, resumed.late], params, strict=True):
        own.detach().copy_(saved)
    resumed.optimizer.load_state_dict(state)
    random = torch.get_rng_state()
    uninterrupted = run.train()
    torch.set_rng_state(random)
    _require_close(resumed.train(), uninterrupted, "resumed and uninterrupted run", 0.0)


def _missing_gradients(setting: Setting) -> None:
    def prepare(step: int, run: Run) -> None:
        missing = [run.params[1]] if step < 5 else [run.params[step % 4]] if step % 3 == 0 else []
        for param in missing:
            param.grad = None

    _follows_bare(setting, prepare)
    run = Run(setting.wrapped())
    still = run.params[1].detach().clone()
    run.step(0, prepare)
    if not torch.equal(still, run.params[1].detach()):
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


def _blocks(setting: Setting) -> None:
    with block_elements(7):
        _follows_bare(setting)


def _bfloat16(setting: Setting) -> None:
    kind: dict[str, Any] = {"dtype": torch.bfloat16}
    _follows_bare(setting, steps=_COARSE_STEPS, tolerance=_BFLOAT16_TOLERANCE, **kind)
    run = Run(setting.wrapped(), **kind)
    start = run.whole_loss()
    run.train(steps=_COARSE_STEPS)
    if not run.whole_loss() < start:
        raise AssertionError(f"the loss went from {start:.4g} to {run.whole_loss():.4g}.")
    if not all(param.dtype is torch.bfloat16 for param in run.params):
        raise AssertionError(f"parameters became {[param.dtype for param in run.params]}.")


def _maximize(setting: Setting) -> None:
    def maximizing(params: Any) -> MoMoWrapper:
        optimizer = setting.bare(params)
        if hasattr(optimizer, "maximize"):
            optimizer.maximize = True
        for group in optimizer.param_groups:
            if "maximize" in group:
                group["maximize"] = True
        return MoMoWrapper(optimizer, Soft(), adapter=setting.adapter, compiled=False)

    minimized = Run(setting.wrapped()).train()
    maximized = Run(maximizing, sign=-1.0).train()
    _require_close(maximized, minimized, "maximizing -f and minimizing f")


def _compiled(setting: Setting) -> None:
    theirs = Run(setting.wrapped(), groups=2).train()
    # Kernels run uncompiled, because the law is about their results.
    with run_as_it_is():
        for compiled in ("auto", True):
            ours = Run(setting.wrapped(compiled=compiled), groups=2).train()
            _require_close(ours, theirs, f"compiled={compiled!r} and compiled=False")


def _changes(before: list[dict[str, Any]], run: Run) -> dict[str, tuple[object, object]]:
    """Return the settings of a run that were replaced, except the wrapper's."""
    return {
        name: (old.get(name), group.get(name))
        for old, group in zip(before, run.optimizer.param_groups, strict=True)
        for name in old.keys() | group.keys()
        if not name.startswith("momo_") and old.get(name) is not group.get(name)
    }


def _settings(setting: Setting) -> None:
    bare, run = Run(setting.bare), Run(setting.wrapped())
    assert isinstance(run.optimizer, MoMoWrapper)
    at_first = [dict(group) for group in bare.optimizer.param_groups]
    bare.step(0)
    before = [dict(group) for group in run.optimizer.param_groups]

    def require_same(when: str) -> None:
        for name, (old, new) in _changes(before, run).items():
            if name not in _changes(at_first, bare):
                raise AssertionError(f"{name} was {old} and is {new} after {when}.")

    def fail(*_: Any) -> None:
        raise MemoryError("simulated")

    run.step(0)
    require_same("a step")
    params = run.flat()
    handle = run.optimizer.base.register_step_post_hook(fail)
    try:
        run.step(1)
    except MemoryError:
        require_same("a step in which the base raised")
    handle.remove()
    if not torch.equal(run.flat(), params):
        raise AssertionError("parameters moved in a step in which the base raised.")


def _results(setting: Setting) -> None:
    rule = Soft()
    run = Run(setting.wrapped(rule), groups=2)
    run.train(steps=3)
    assert isinstance(run.optimizer, MoMoWrapper)
    theta = run.thetas[-1]
    expected = [theta * float(group["lr"]) for group in run.optimizer.param_groups if "lr" in group]
    found = [float(lr) for lr in run.optimizer.effective_lrs()]
    if len(found) != 2 or any(abs(f - e) > 1e-9 for f, e in zip(found, expected, strict=False)):
        raise AssertionError(f"effective learning rates are {found}, expected θα, {expected}.")
    whole, gradient = rule.decreases
    if abs(whole - gradient) > _TOLERANCE * abs(whole):
        raise AssertionError(
            f"without weight decay predicted_decrease is {whole}, expected gradient_decrease, "
            f"{gradient}."
        )


_LAWS = [_bare, _weight_decay, _proposing, _stop, _resume, _missing_gradients, _groups]
_LAWS += [_late_group, _permuted, _blocks, _bfloat16, _maximize, _compiled, _settings, _results]
LAWS: dict[str, Callable[[Setting], None]] = {
    law.__name__[1:].replace("_", " "): law for law in _LAWS
}


def applicable(setting: Setting) -> dict[str, Callable[[Setting], None]]:
    """Return the laws that apply to the optimizer's settings."""
    laws, optimizer = dict(LAWS), Run(setting.bare).optimizer
    if not all("weight_decay" in group for group in optimizer.param_groups):
        del laws["weight decay"]
    in_groups = all("maximize" in group for group in optimizer.param_groups)
    if not (in_groups or hasattr(optimizer, "maximize")):
        del laws["maximize"]
    if (type(optimizer), type(setting.adapter)) not in UPDATES:
        del laws["compiled"]
    return laws

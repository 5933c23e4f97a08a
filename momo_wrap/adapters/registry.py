"""The registry of adapters, by class of optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from momo_wrap.adapters.adadelta import AdadeltaAdapter
from momo_wrap.adapters.adagrad import AdagradAdapter
from momo_wrap.adapters.adam import AdamAdapter
from momo_wrap.adapters.adamax import AdamaxAdapter
from momo_wrap.adapters.base import Adapter, ParamGroup, State
from momo_wrap.adapters.lion import LionAdapter
from momo_wrap.adapters.nadam import NAdamAdapter
from momo_wrap.adapters.proposing import ProposingAdapter
from momo_wrap.adapters.radam import RAdamAdapter
from momo_wrap.adapters.rmsprop import RMSpropAdapter
from momo_wrap.adapters.sgd import SGDAdapter
from momo_wrap.checks.warning import users_level
from momo_wrap.engine.scalars import Scalar
from momo_wrap.joint import members
from momo_wrap.model import Averaging

# By type, or by qualified name for packages that are not imported.
_adapters: dict[type[Optimizer] | str, Adapter] = {
    torch.optim.SGD: SGDAdapter(),
    torch.optim.Adam: AdamAdapter(),
    torch.optim.AdamW: AdamAdapter(),
    torch.optim.NAdam: NAdamAdapter(),
    torch.optim.RAdam: RAdamAdapter(),
    torch.optim.Adamax: AdamaxAdapter(),
    torch.optim.Adagrad: AdagradAdapter(),
    torch.optim.Adadelta: AdadeltaAdapter(),
    torch.optim.RMSprop: RMSpropAdapter(),
    "lion_pytorch.lion_pytorch.Lion": LionAdapter(),
    "pytorch_optimizer.optimizer.lion.Lion": LionAdapter(),
    "timm.optim.lion.Lion": LionAdapter(),
}


def _muon_averaging(group: ParamGroup, _: State) -> Averaging:
    """Return that of `torch.optim.Muon`: B <- μ B + (1 - μ) g; Nesterov: d = μ B + (1 - μ) g."""
    momentum = group["momentum"]
    if group["nesterov"] and momentum != 0.0:
        return Averaging(momentum, 1.0 - momentum, buffer_scale=momentum, grad_scale=1.0 - momentum)
    return Averaging(momentum, 1.0 - momentum)


def _schedule_free_drift(group: ParamGroup) -> Scalar:
    """Return the weight of the newest z in the average x of a schedule-free optimizer."""
    total, steps = group["weight_sum"], group["k" if "k" in group else "step"]
    weight = steps ** group["r"] * group["lr_max"] ** group["weight_lr_power"]
    share: Scalar = weight / total if total != 0.0 else 0.0
    decoupling = group.get("decoupling_c", 0.0)
    return min(1.0, share * (1.0 - group["betas"][0]) * decoupling) if decoupling > 0 else share


def _muon_max_averaging(group: ParamGroup, _: State) -> Averaging:
    """Return that of `MuonMax`, whose average starts with the first gradient."""
    beta1 = group["betas"][0]
    return Averaging(beta1, 1.0 - beta1, first_weight=1.0)


# Proposing adapters with special arguments, by optimizer.
_SCHEDULE_FREE = ProposingAdapter(anchor="z", drift=_schedule_free_drift)
_proposing: dict[str, ProposingAdapter] = {
    "torch.optim.Muon": ProposingAdapter("momentum_buffer", averaging=_muon_averaging),
    # Its result, the average of the parameters, must follow the shortened moves.
    "torch.optim.asgd.ASGD": ProposingAdapter(iterates=("ax",)),
    "momo_wrap.research.heavy_ball.HeavyBall": ProposingAdapter(
        anchor="z", drift=lambda group: 1.0 - group["momentum"]
    ),
    "momo_wrap.research.muon_max.MuonMax": ProposingAdapter(
        "momentum_buffer", averaging=_muon_max_averaging
    ),
    "schedulefree.adamw_schedulefree.AdamWScheduleFree": _SCHEDULE_FREE,
    "schedulefree.radam_schedulefree.RAdamScheduleFree": _SCHEDULE_FREE,
    "schedulefree.sgd_schedulefree.SGDScheduleFree": _SCHEDULE_FREE,
    "pytorch_optimizer.optimizer.schedulefree.ScheduleFreeAdamW": _SCHEDULE_FREE,
    "pytorch_optimizer.optimizer.schedulefree.ScheduleFreeRAdam": _SCHEDULE_FREE,
    "pytorch_optimizer.optimizer.schedulefree.ScheduleFreeSGD": _SCHEDULE_FREE,
}

_OWN_ESTIMATE = (
    "it estimates its learning rate from steps that it assumes to be full, so the estimate grows "
    "without limit if they are shortened. Use it without a wrapper; or wrap an optimizer with a "
    "fixed learning rate, or Prodigy, which measures how far the parameters have moved"
)
_NEEDS_CLOSURE = (
    "its step evaluates the closure after it has moved the parameters, so there is no loss and "
    "gradient before. Use the class without Closure, SGDScheduleFree, AdamWScheduleFree or "
    "RAdamScheduleFree"
)
# Optimizers that can't be wrapped, by the beginning of their qualified name, with the reason.
_impossible = {
    "torch.optim.lbfgs.LBFGS": (
        "it evaluates its closure several times per step, so there is no single loss and gradient "
        "to build the model from. Use it without a wrapper"
    ),
    "torch.optim.sparse_adam.SparseAdam": (
        "it needs sparse gradients, and the momentum model needs dense ones. Use an embedding "
        "with sparse=False and torch.optim.Adam"
    ),
    "pytorch_optimizer.optimizer.sam.": (
        "it evaluates its closure at two places per step, so there is no single loss and gradient "
        "to build the model from. Wrap its base instead: SAM(params, "
        "base_optimizer=momo_wrap.optim.MoMoSGD, lr=1.0), and, before each of its steps, "
        "sam.base_optimizer.record_loss(loss)"
    ),
    "schedulefree.sgd_schedulefree_closure.": _NEEDS_CLOSURE,
    "schedulefree.adamw_schedulefree_closure.": _NEEDS_CLOSURE,
    "schedulefree.radam_schedulefree_closure.": _NEEDS_CLOSURE,
    "dadaptation.": _OWN_ESTIMATE,
    "mechanic_pytorch.": _OWN_ESTIMATE,
    "pytorch_optimizer.optimizer.dadapt.": _OWN_ESTIMATE,
}


def register_adapter(optimizer_type: type[Optimizer], adapter: Adapter) -> None:
    """Register an adapter for an optimizer class, which `adapter_for` then returns.

    Args:
        optimizer_type: The class. Its subclasses are not included, because a subclass may update
            differently (AdamW is a subclass of Adam).
        adapter: The adapter, which replaces an earlier one.

    Raises:
        TypeError: The first argument is not an optimizer class, or the second not an adapter.
    """
    kind: object = optimizer_type
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise TypeError(
            f"register_adapter expects an optimizer class as its first argument, got {kind!r}. "
            "Write register_adapter(MyOptimizer, MyAdapter())."
        )
    given: object = adapter
    if not isinstance(given, Adapter):
        raise TypeError(
            "register_adapter expects an instance of Adapter as its second argument, got "
            f"{given!r}. Write register_adapter({kind.__name__}, MyAdapter())."
        )
    _adapters[kind] = given


def adapter_for(optimizer: Optimizer) -> Adapter:
    """Return the adapter that `MoMoWrapper(optimizer)` uses.

    That is the adapter registered for the exact type. If there is none, or it can't read the
    optimizer with its settings, it is a `ProposingAdapter`: one with arguments for this optimizer
    if they are known, else the default with a warning that names its memory.

    Args:
        optimizer: The base optimizer.

    Raises:
        TypeError: The optimizer can't be wrapped.
    """
    found = type(optimizer)
    name = f"{found.__module__}.{found.__qualname__}"
    adapter = _adapters.get(found) or _adapters.get(name)
    reason = "no adapter is registered for it" if adapter is None else adapter.obstacle(optimizer)
    if adapter is not None and reason is None:
        return adapter
    for prefix, why_not in _impossible.items():
        if name.startswith(prefix):
            raise TypeError(f"MoMoWrapper can't wrap {found.__name__}: {why_not}.")
    if name in _proposing:
        return _proposing[name]
    proposing = ProposingAdapter()
    warnings.warn(
        f"MoMoWrapper uses {proposing!r} for {name}: {reason}. During a step, that needs "
        f"{proposing.memory(optimizer) / 2**20:.3g} MiB more than the optimizer alone. To silence "
        "this warning, write warnings.filterwarnings('ignore', 'MoMoWrapper uses "
        "ProposingAdapter').",
        stacklevel=users_level(),
    )
    return proposing


def adapters_for(
    base: Optimizer, adapter: Adapter | Sequence[Adapter | None] | None
) -> list[Adapter]:
    """Return the adapter of each member of a base: the user's, or that of `adapter_for`."""
    optimizers = members(base)
    if adapter is None or isinstance(adapter, Adapter):
        adapter = [adapter] * len(optimizers)
    if len(adapter) != len(optimizers):
        raise ValueError(
            f"MoMoWrapper got {len(optimizers)} optimizers and {len(adapter)} adapters. Give one "
            "for each, with None for the registered one: adapter=[None, MyAdapter()]."
        )
    pairs = zip(optimizers, adapter, strict=True)
    return [adapter_for(optimizer) if its is None else its for optimizer, its in pairs]

"""The compared optimizers, by name: bare, wrapped, and self-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from dadaptation import DAdaptAdam
from lion_pytorch import Lion
from mechanic_pytorch import mechanize
from prodigyopt import Prodigy
from prodigyplus import ProdigyPlusScheduleFree
from schedulefree import AdamWScheduleFree, SGDScheduleFree
from torch import nn
from torch.optim import Optimizer

from momo_wrap import JointOptimizer, MoMo, MoMoWrapper, StepRule, TrustedMoMo
from momo_wrap.sweep import OptimizerFactory

Params = Iterable[nn.Parameter]


def sgd_m(params: Params, lr: float) -> Optimizer:
    """Return SGD with the average of gradients as momentum, as MoMo's paper has it."""
    return torch.optim.SGD(params, lr=lr, momentum=0.9, dampening=0.9)


def muon_and_adamw(params: Params, lr: float) -> list[Optimizer]:
    """Return Muon for the matrices, with steps as long as AdamW's, and AdamW for the rest."""
    listed = list(params)
    matrices = [p for p in listed if p.dim() == 2]
    rest = [p for p in listed if p.dim() != 2]
    muon = torch.optim.Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw")
    return [muon, *([torch.optim.AdamW(rest, lr=lr)] if rest else [])]


def muon(params: Params, lr: float) -> Optimizer:
    return JointOptimizer(muon_and_adamw(params, lr))


def mechanic(params: Params, lr: float) -> Optimizer:
    """Return Mechanic around AdamW; it multiplies its own learning rate by lr."""
    optimizer: Optimizer = mechanize(torch.optim.AdamW)(params, lr=lr)
    return optimizer


def wrapped(
    params: Params, lr: float, *, base: Callable[..., Any], rule: Callable[[], StepRule] = MoMo
) -> Optimizer:
    """Return a base with a step rule."""
    return MoMoWrapper(base(params, lr), rule())


BARE: dict[str, Callable[..., Optimizer]] = {
    "SGD-M": sgd_m,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "Lion": Lion,
    "Adagrad": torch.optim.Adagrad,
    "Muon": muon,
}
TUNERS: dict[str, OptimizerFactory] = {
    "Prodigy": Prodigy,
    "D-Adaptation": DAdaptAdam,
    "Mechanic": mechanic,
    "schedule-free AdamW": AdamWScheduleFree,
    "schedule-free SGD": SGDScheduleFree,
    "schedule-free Prodigy": ProdigyPlusScheduleFree,
}


def with_rule(name: str, rule: Callable[[], StepRule]) -> dict[str, OptimizerFactory]:
    """Return all bases with a rule, as "SGD-M + MoMo" and so on.

    Args:
        name: What the rule is called.
        rule: Makes it.
    """
    bases: dict[str, Callable[..., Any]] = {**BARE, "Muon": muon_and_adamw}
    return {f"{base}{name}": partial(wrapped, base=make, rule=rule) for base, make in bases.items()}


METHODS: dict[str, OptimizerFactory] = {
    **BARE,
    **with_rule(" + MoMo", MoMo),
    **with_rule(" + TrustedMoMo", TrustedMoMo),
    **TUNERS,
}

"""The one table of base optimizers and settings that drives the tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer


@dataclass(frozen=True)
class Case:
    """A base optimizer with settings.

    Attributes:
        name: The test's id.
        kind: The optimizer's class.
        settings: Its arguments; the learning rate is one at which it trains `Problem` well.
        takes_complex: Whether the bare optimizer can train complex parameters so.
        takes_float16: Whether the bare optimizer stays finite on float16 parameters.
    """

    name: str
    kind: type[Optimizer]
    settings: Mapping[str, Any] = field(default_factory=dict)
    takes_complex: bool = True
    takes_float16: bool = True

    def __str__(self) -> str:
        return self.name

    def make(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], **more: Any) -> Optimizer:
        """Make the base, with further settings over those of the case."""
        settings = {**self.settings, **more}
        if isinstance(settings["lr"], Tensor):
            settings["lr"] = settings["lr"].clone()
        return self.kind(params, **settings)

    @property
    def sign(self) -> float:
        """-1 where the base maximises."""
        return -1.0 if self.settings.get("maximize") else 1.0


_ALGORITHMS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "SGD": (SGD, {"lr": 0.05}),
    "SGD-momentum": (SGD, {"lr": 0.005, "momentum": 0.9}),
    "SGD-dampening": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.9}),
    "SGD-half-dampening": (SGD, {"lr": 0.02, "momentum": 0.8, "dampening": 0.5}),
    "SGD-nesterov": (SGD, {"lr": 0.005, "momentum": 0.9, "nesterov": True}),
    "Adam": (Adam, {"lr": 0.01}),
    "Adam-amsgrad": (Adam, {"lr": 0.01, "amsgrad": True, "betas": (0.8, 0.95)}),
    "AdamW": (AdamW, {"lr": 0.01, "weight_decay": 0.0}),
    "AdamW-amsgrad": (AdamW, {"lr": 0.01, "weight_decay": 0.0, "amsgrad": True, "eps": 1e-3}),
}
_MODES = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}

# One case per algorithm, in torch's default mode.
ALGORITHMS = [
    # Adam's usual eps is 0 in float16, where second moments underflow as well
    Case(name, kind, settings, takes_float16=kind is SGD or settings.get("eps", 0.0) > 1e-4)
    for name, (kind, settings) in _ALGORITHMS.items()
]

# Every combination of algorithm, mode, direction and kind of learning rate that torch has.
FLAG_COMBINATIONS = [
    Case(
        f"{name}-{mode}" + "-maximize" * maximize + "-tensor_lr" * tensor_lr,
        kind,
        {
            **settings,
            **_MODES[mode],
            "maximize": maximize,
            "lr": torch.tensor(settings["lr"], dtype=torch.float64)
            if tensor_lr
            else settings["lr"],
        },
        takes_complex=mode != "fused",
    )
    for name, (kind, settings) in _ALGORITHMS.items()
    for mode in _MODES
    for maximize in (False, True)
    for tensor_lr in (False, True)
    # torch refuses a tensor lr for foreach Adam that is not capturable
    if not (tensor_lr and mode == "foreach" and issubclass(kind, Adam))
]

"""The one table of base optimizers and settings that drives the tests."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lion_pytorch import Lion
from torch import Tensor
from torch.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)


@dataclass(frozen=True)
class Case:
    """A base optimizer with settings.

    Attributes:
        name: The test's id.
        kind: The optimizer's class.
        settings: Its arguments; the learning rate is one at which it trains `Problem` well.
        takes_complex: Whether the bare optimizer can train complex parameters so.
        takes_float16: Whether the bare optimizer stays finite on float16 parameters.
        takes_maximize: Whether the bare optimizer has the setting.
        can_be_copied: Whether a deep or pickled copy of the bare optimizer can step.
        resumes: Whether the bare optimizer goes on bit for bit from a state dict, in float64.
    """

    name: str
    kind: type[Optimizer]
    settings: Mapping[str, Any] = field(default_factory=dict)
    takes_complex: bool = True
    takes_float16: bool = True
    takes_maximize: bool = True
    can_be_copied: bool = True
    resumes: bool = True

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
    "NAdam": (NAdam, {"lr": 0.01}),
    "NAdam-fast": (NAdam, {"lr": 0.01, "momentum_decay": 0.5, "betas": (0.8, 0.95)}),
    # the rectification sets in within the first steps, and never
    "RAdam": (RAdam, {"lr": 0.02, "betas": (0.9, 0.95)}),
    "RAdam-unrectified": (RAdam, {"lr": 0.02, "betas": (0.9, 0.6)}),
    "Adamax": (Adamax, {"lr": 0.01}),
    "Adagrad": (Adagrad, {"lr": 0.1}),
    "Adagrad-lr_decay": (Adagrad, {"lr": 0.2, "lr_decay": 0.05}),
    "Adadelta": (Adadelta, {"lr": 1.0}),
    "RMSprop": (RMSprop, {"lr": 0.01}),
    "RMSprop-centered": (RMSprop, {"lr": 0.01, "centered": True, "alpha": 0.9, "eps": 1e-3}),
    "Lion": (Lion, {"lr": 0.003, "betas": (0.9, 0.95)}),
}
_MODES = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}

# Adam's usual eps is 0 in float16, where second moments underflow as well.
_TAKE_FLOAT16 = {SGD, Lion}
# Takes the sign of a complex number to be the number over its absolute value; has no maximize, and
# attributes that copies lose.
_PLAIN = {Lion}
# Its mu_product is float32, but torch loads it with the dtype of the parameters.
_DO_NOT_RESUME = {NAdam}

# One case per algorithm, in torch's default mode.
ALGORITHMS = [
    Case(
        name,
        kind,
        settings,
        takes_complex=kind not in _PLAIN,
        takes_float16=kind in _TAKE_FLOAT16 or settings.get("eps", 0.0) > 1e-4,
        takes_maximize=kind not in _PLAIN,
        can_be_copied=kind not in _PLAIN,
        resumes=kind not in _DO_NOT_RESUME,
    )
    for name, (kind, settings) in _ALGORITHMS.items()
]

# The first case of each adapter, and of each form that its direction has.
_OF_EACH = (
    *("SGD-momentum", "SGD-nesterov", "AdamW-amsgrad", "NAdam", "RAdam", "Adamax"),
    *("Adagrad-lr_decay", "Adadelta", "RMSprop-centered", "Lion"),
)
ADAPTERS = [case for case in ALGORITHMS if case.name in _OF_EACH]


def _is_accepted(kind: type[Optimizer], settings: dict[str, Any]) -> bool:
    """Whether the optimizer itself has these settings, and takes them together."""
    if not settings.keys() <= inspect.signature(kind).parameters.keys():
        return False
    try:
        kind([torch.ones(1, requires_grad=True)], **settings)
    except (ValueError, RuntimeError):
        return False
    return True


def _flag_combinations() -> Iterator[Case]:
    for number, (name, (kind, settings)) in enumerate(_ALGORITHMS.items()):
        for mode, choice in _MODES.items():
            # The other direction and kind of learning rate in the other mode.
            maximize = (number % 2 == 0) != (mode == "foreach")
            tensor_lr = (number % 4 < 2) != (mode != "single")
            flags = {**settings, **choice, "maximize": maximize}
            with_tensor = {**flags, "lr": torch.tensor(settings["lr"], dtype=torch.float64)}
            if tensor_lr and _is_accepted(kind, with_tensor):
                flags = with_tensor
            elif not _is_accepted(kind, flags):
                continue
            suffix = "-maximize" * maximize + "-tensor_lr" * isinstance(flags["lr"], Tensor)
            yield Case(
                f"{name}-{mode}{suffix}",
                kind,
                flags,
                takes_complex=mode != "fused",
                resumes=kind not in _DO_NOT_RESUME,
            )


# Each algorithm in each mode that torch has of it, in either direction and with either kind of
# learning rate: every two of these settings meet, but not every three.
FLAG_COMBINATIONS = list(_flag_combinations())

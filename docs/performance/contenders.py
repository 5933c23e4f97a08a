"""The optimizers that the benchmark compares: bare bases, wrapped ones, and those of momo-opt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import momo
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from momo_wrap import MoMo, MoMoWrapper, ProposingAdapter, TrustedMoMo

# How PyTorch may implement one and the same step.
FORMS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}

DEFAULT = "wrapped, default"
READING = "wrapped"
READING_FORESEEN = "wrapped, foreseen"
COMPILED = "wrapped, compiled"
COMPILED_FORESEEN = "wrapped, compiled, foreseen"
MEASURED = "wrapped, compiled, measured"
PROPOSING = "wrapped, proposing"

# Every mode of the wrapper. The loss of the benchmark is so near to 0 that MoMo cuts each step;
# without a bound it cuts none, which is foreseen. TrustedMoMo measures each of its first 100 steps.
WRAPPINGS: dict[str, Callable[[Optimizer], Optimizer]] = {
    DEFAULT: MoMoWrapper,
    READING: lambda base: MoMoWrapper(base, compiled=False),
    READING_FORESEEN: lambda base: MoMoWrapper(base, MoMo(-math.inf), compiled=False),
    COMPILED: lambda base: MoMoWrapper(base, compiled=True),
    COMPILED_FORESEEN: lambda base: MoMoWrapper(base, MoMo(-math.inf), compiled=True),
    MEASURED: lambda base: MoMoWrapper(base, TrustedMoMo(), compiled=True),
    PROPOSING: lambda base: MoMoWrapper(base, adapter=ProposingAdapter()),
}


@dataclass(frozen=True)
class Family:
    """A base optimizer, and what is compared with it.

    `bare_accesses` and `wrapped_accesses` are how often an ideal implementation reads or writes a
    number in memory for each parameter. θ is known only when every average is, so a wrapped step
    takes two passes over the memory: one that averages, and one that moves the parameters. Where θ
    is foreseen, one pass does both, as that of the bare base.
    """

    base: str
    momo_opt: str
    make_base: Callable[..., Optimizer]
    make_momo_opt: Callable[..., Optimizer]
    states: int
    bare_accesses: int
    wrapped_accesses: int

    def bare(self, form: str) -> str:
        """The name of the bare base in a form of `FORMS`."""
        return f"{self.base}({form})"


ADAM = Family(
    base="AdamW",
    momo_opt="MomoAdam (momo-opt)",
    make_base=partial(AdamW, lr=1e-4, weight_decay=0.0),
    make_momo_opt=partial(momo.MomoAdam, lr=1e-4),
    states=2,
    bare_accesses=7,  # read g, m, v, p; write m, v, p
    wrapped_accesses=9,  # read g, m, v; write m, v; then read m, v, p; write p
)
SGD_M = Family(
    base="SGD-M",
    momo_opt="Momo (momo-opt)",
    make_base=partial(SGD, lr=1e-4, momentum=0.9, dampening=0.9),
    make_momo_opt=partial(momo.Momo, lr=1e-4),
    states=1,
    bare_accesses=5,  # read g, B, p; write B, p
    wrapped_accesses=6,  # read g, B; write B; then read B, p; write p
)
FAMILIES = (ADAM, SGD_M)


@dataclass(frozen=True)
class Contender:
    """A bare base (no wrapping), a wrapped one, or momo-opt's optimizer (no form)."""

    family: Family
    form: str | None = None
    wrapping: str | None = None

    @property
    def name(self) -> str:
        if self.form is None:
            return self.family.momo_opt
        bare = self.family.bare(self.form)
        return bare if self.wrapping is None else f"{bare} {self.wrapping}"

    @property
    def is_bare(self) -> bool:
        return self.form is not None and self.wrapping is None

    @property
    def accesses(self) -> int:
        """How often an ideal implementation of the step touches memory for each parameter."""
        one_pass = self.is_bare or self.wrapping in (COMPILED_FORESEEN, MEASURED)
        return self.family.bare_accesses if one_pass else self.family.wrapped_accesses

    def make(self, params: list[Tensor]) -> Optimizer:
        if self.form is None:
            return self.family.make_momo_opt(params)
        base = self.family.make_base(params, **FORMS[self.form])
        return base if self.wrapping is None else WRAPPINGS[self.wrapping](base)


def _contenders(family: Family) -> list[Contender]:
    return [
        *(Contender(family, form) for form in FORMS),
        *(Contender(family, form, READING) for form in FORMS),
        Contender(family, "foreach", DEFAULT),
        Contender(family, "fused", READING_FORESEEN),
        Contender(family, "fused", COMPILED),
        Contender(family, "fused", COMPILED_FORESEEN),
        Contender(family, "fused", MEASURED),
        Contender(family, "fused", PROPOSING),
        Contender(family),
    ]


CONTENDERS = {c.name: c for family in FAMILIES for c in _contenders(family)}


def in_scale(contender: Contender) -> bool:
    """Whether `--scale` measures it: the wrapper, and the bare bases that it should grow like."""
    if contender.is_bare:
        return contender.form in ("fused", "foreach")
    return contender.form == "fused" and contender.wrapping in (READING, COMPILED)

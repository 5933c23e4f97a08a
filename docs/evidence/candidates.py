"""Rules that were tried for high learning rates, on the tasks that rules are chosen on.

    python -m docs.evidence.candidates      # the missing trials; a quarter of an hour on two cores

trains SGD-M and Adam with each rule at learning rates of 1 and 100 on the design tasks. The
results in docs/evidence/results/candidates.csv are taken up where they are; the table in
docs/evidence.md is written by report.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from docs.evidence.methods import BARE, wrapped
from docs.evidence.plan import RESULTS, SEEDS, run_from_command_line
from docs.evidence.problems import train
from docs.evidence.rules.limited_growth import LimitedGrowth
from docs.evidence.rules.trust_region import TrustRegion
from docs.evidence.rules.warm_target import WarmTarget
from docs.evidence.tasks import DESIGN
from momo_wrap import MoMo, MoMoStar, StepRule, TrustedMoMo, sweep
from momo_wrap.research import ModelNGN, PerGroup
from momo_wrap.sweep import OptimizerFactory

CANDIDATES = RESULTS / "candidates.csv"
LEARNING_RATES = [1.0, 100.0]
BASES = {name: BARE[name] for name in ("SGD-M", "Adam")}
RULES: dict[str, Callable[[], StepRule]] = {
    "MoMo": MoMo,
    "MoMoStar": MoMoStar,
    "WarmTarget(steps=20)": partial(WarmTarget, steps=20),
    "LimitedGrowth(factor=1.1)": partial(LimitedGrowth, factor=1.1),
    "ModelNGN": ModelNGN,
    "PerGroup": PerGroup,
    "TrustRegion": TrustRegion,
    "TrustedMoMo": TrustedMoMo,
    "TrustedMoMo(rate=0.1)": partial(TrustedMoMo, rate=0.1),
    "TrustedMoMo(start=0.1)": partial(TrustedMoMo, start=0.1),
    "TrustedMoMo(every=10)": partial(TrustedMoMo, every=10.0),
    "TrustedMoMo(descends=0.3)": partial(TrustedMoMo, descends=0.3),
}


def methods() -> dict[str, OptimizerFactory]:
    """Return both bases with each rule, by names such as "SGD-M + MoMo"."""
    return {
        f"{base} + {name}": partial(wrapped, base=make, rule=rule)
        for base, make in BASES.items()
        for name, rule in RULES.items()
    }


def run(processes: int | None = None) -> None:
    """Run the missing trials in so many processes; None: one per core."""
    tasks = {name: partial(train, make_problem=make) for name, make in DESIGN.items()}
    sweep.run(tasks, methods(), LEARNING_RATES, SEEDS, CANDIDATES, processes=processes)


if __name__ == "__main__":
    run_from_command_line(run, __doc__)

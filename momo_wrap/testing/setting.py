"""What is checked, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters import Adapter, ProposingAdapter, ReadingAdapter, adapter_for
from momo_wrap.adapters.proposing import AveragingOfGroup
from momo_wrap.checks.arguments import Compiled
from momo_wrap.rules import ModelStats, StepDecision, StepRule
from momo_wrap.testing.regression import STEPS, MakeOptimizer, Run
from momo_wrap.wrapper import MoMoWrapper


class Soft(StepRule):
    """θ = h / (h + N): a fraction in every step, which tells any two models apart."""

    decreases = (0.0, 0.0)

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Return θ, and remember what it was made of."""
        gap = (stats.value_after_decay - stats.lower_bound).clamp(min=0.0)
        total = gap + stats.predicted_decrease.clamp(min=0.0)
        theta = torch.where(total > 0, gap / total, 0.0)
        self.decreases = (float(stats.predicted_decrease), float(stats.gradient_decrease))
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
        run.train(steps=STEPS)
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
        self,
        rule: StepRule | None = None,
        adapter: Adapter | None = None,
        compiled: Compiled = False,
    ) -> Callable[[Any], MoMoWrapper]:
        """Return what makes a wrapped optimizer, with the adapter that is checked or another."""
        rule = Soft() if rule is None else rule
        chosen = self.adapter if adapter is None else adapter
        return lambda params: MoMoWrapper(
            self.bare(params), rule, adapter=chosen, compiled=compiled
        )

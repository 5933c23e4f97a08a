"""The adapter for several optimizers under one model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.adapters.base import Adapter, Observation, StepSums
from momo_wrap.joint import members
from momo_wrap.reductions import to_device
from momo_wrap.rules import WeightDecayForm
from momo_wrap.scalars import scalars_like


class JointAdapter(Adapter):
    """Reads each member of a `JointOptimizer` with an adapter of its own.

    Args:
        adapters: The adapters, in the order of the optimizers.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters = list(adapters)

    def __repr__(self) -> str:
        return f"JointAdapter({self.adapters!r})"

    def parts(self, base: Optimizer) -> list[tuple[Optimizer, Adapter]]:
        """Return each optimizer with its adapter; see `Adapter`."""
        optimizers = members(base)
        if len(optimizers) != len(self.adapters):
            raise ValueError(
                f"JointAdapter has {len(self.adapters)} adapters, the base {len(optimizers)} "
                "optimizers. Give one for each: MoMoWrapper(optimizers, adapter=[...])."
            )
        return list(zip(optimizers, self.adapters, strict=True))

    def is_traceable(self, base: Optimizer) -> bool:
        """Return whether all members are; see `Adapter`."""
        return all(adapter.is_traceable(optimizer) for optimizer, adapter in self.parts(base))

    def observe(self, base: Optimizer, weight_decay: WeightDecayForm) -> Observation:
        """Observe each optimizer; see `Adapter`."""
        observations = [a.observe(optimizer, weight_decay) for optimizer, a in self.parts(base)]
        return _JointObservation(observations, scalars_like(base.param_groups))

    def observe_compiled(self, base: Optimizer, weight_decay: WeightDecayForm) -> Observation:
        """Observe each optimizer with compiled passes, where it has them; see `Adapter`."""
        observations = [a.observe_compiled(o, weight_decay) for o, a in self.parts(base)]
        return _JointObservation(observations, scalars_like(base.param_groups))


class _JointObservation(Observation):
    def __init__(self, observations: list[Observation], like: Tensor) -> None:
        self._observations = observations
        self.averagings = [a for observation in observations for a in observation.averagings]
        self.sums = [
            StepSums(*(to_device(part, like.device, like.dtype) for part in sums))
            for observation in observations
            for sums in observation.sums
        ]

    def apply(self, thetas: Sequence[Tensor]) -> list[Tensor]:
        remaining = iter(thetas)
        parts = [(o, [next(remaining) for _ in o.averagings]) for o in self._observations]
        return [lr for observation, own in parts for lr in observation.apply(own)]

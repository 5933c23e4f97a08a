"""The contract of a step rule, and the truncation that most rules share.

A step rule sees the momentum model of the loss only through a handful of small tensors and answers
with θ in [0, 1], for all parameter groups or for each. To try a variant, subclass `StepRule`;
nothing else has to change.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from momo_wrap.rules.arguments import A_BOUND, Setting
from momo_wrap.rules.stats import ModelStats

WeightDecayForm: TypeAlias = Literal["base", "proximal", "decoupled", "scaled"]

# "no_progress", "no_lower" and "no_momentum", which no single step shows, the wrapper finds itself.
ADVICE: Mapping[str, str] = {
    "below_bound": (
        "The losses have reached the lower bound that the rule was given, or are below it, so that "
        "steps are not taken (θ = 0). If that is as good as it gets, training is done. Else give a "
        "number that the loss never goes below, MoMoWrapper(optimizer, MoMo(lower_bound=-10.0)), "
        "or none, MoMo(-math.inf); with maximize=True one that the objective never exceeds, or "
        "MoMo(math.inf)."
    ),
    "no_progress": (
        "Step after step was foretold to bring the loss at least halfway to the lower bound, and "
        "the loss has not fallen: steps are too long, as the learning rate is far too large and "
        "the bound far away. Write MoMoWrapper(optimizer, TrustedMoMo()), lower the learning rate, "
        "or give a bound that can almost be reached, MoMo(lower_bound=...)."
    ),
    "no_lower": (
        "The loss is not lower than at the start of the training. If it is one that should fall, "
        "steps are too long, or the network was ruined by them: begin again with a lower learning "
        "rate, or with MoMoWrapper(optimizer, TrustedMoMo()), which shortens steps that are too "
        "long."
    ),
    "no_momentum": (
        "The rule judges a step by the next batch, and the base optimizer averages no gradients, "
        "so that each step fits one batch alone: steps that are right look too long, and stay "
        "short. Use a base with momentum, such as AdamW or SGD(params, lr, momentum=0.9), or "
        "write MoMoWrapper(optimizer, MoMo())."
    ),
}


@dataclass(frozen=True)
class StepDecision:
    """What a step rule answers.

    Attributes:
        theta: The fraction of the base's step that is taken, in [0, 1]: 0-dim, or of shape
            [groups] with one for each parameter group.
        theta_uncapped: The same before it was cut at 1, 0-dim or of shape [groups].
        lower_bound: The bound that was aimed at, as a number or a 0-dim tensor.
        memory: New values of what the rule remembers, by the names of `initial_memory`.
    """

    theta: Tensor
    theta_uncapped: Tensor
    lower_bound: float | Tensor
    memory: Mapping[str, Tensor] = field(default_factory=dict)


def signed_bound(rule: StepRule, sign: float) -> float:
    """Return a rule's lower bound times `sign`, that of a minimisation; refuse an infinite one."""
    own = vars(rule).get("lower_bound")  # asked at every step: spares a call
    bound = sign * (rule.lower_bound if own is None else own)
    if bound == math.inf:
        raise ValueError(
            "The lower bound is infinite, so that no step would ever be taken. For no bound, write "
            "MoMo(-math.inf), or MoMo(math.inf) for a base with maximize=True."
        )
    return bound


def checked_theta(decision: object, memory: Mapping[str, Tensor], groups: int) -> Tensor:
    """Return the θ of a rule's decision; refuse one that can't be carried out, before any move."""
    if not isinstance(decision, StepDecision):
        raise TypeError(
            f"The rule returned {type(decision).__name__}, expected a StepDecision. Write return "
            "StepDecision(theta, theta_uncapped, lower_bound)."
        )
    for name in ("theta", "theta_uncapped"):
        value: object = getattr(decision, name)
        if not isinstance(value, Tensor) or (value.dim() and tuple(value.shape) != (groups,)):
            raise no_fraction(name, value, groups)
    new: Mapping[str, object] = decision.memory
    for name, value in new.items():
        if not (isinstance(value, Tensor) and value.dim() == 0):
            raise TypeError(
                f"The rule's {name} must be a 0-dim tensor, got {_form(value)}. Compute it from "
                "the tensors in stats, which are."
            )
    if new.keys() != memory.keys():
        raise ValueError(
            f"The rule's initial_memory names {sorted(memory)}, but its decision has memory for "
            f"{sorted(new)}. Return StepDecision(..., memory={{...}}) with those names."
        )
    bound: object = decision.lower_bound
    if isinstance(bound, Tensor) and bound.numel() != 1:
        raise TypeError(
            f"The rule's lower_bound must be a number or a 0-dim tensor, got {_form(bound)}: there "
            "is one loss, and one bound for it. Return stats.lower_bound, or a 0-dim tensor."
        )
    return decision.theta


def no_fraction(name: str, value: object, groups: int) -> TypeError:
    """Return what is raised where what a rule has given has not the form of a θ."""
    return TypeError(
        f"The rule's {name} must be a 0-dim tensor, or one of shape [{groups}] with a value for "
        f"each parameter group, got {_form(value)}. Compute it from the tensors in stats, or from "
        "those in stats.by_group."
    )


def _form(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


@dataclass(eq=False, repr=False)
class StepRule(ABC):
    """Maps the statistics of the momentum model to the fraction θ of the base's step.

    A rule never sees an optimizer, branches on no tensor and reads none (`torch.where`, never
    `if` or `.item()`), and keeps what it has to remember in the `memory` of its decision, so that
    it is saved with the optimizer.

    Args:
        lower_bound: f*, a number that the loss can't go below; 0 suits most losses, `-math.inf`
            turns the truncation of `MoMo` off. For a base with `maximize=True`, a number that the
            objective can't exceed, and `math.inf` for none. It is checked whenever it is set.

    Attributes:
        weight_decay_form: The form of weight decay where the user of the wrapper chooses none.
        needs_momentum: Whether the rule can't judge steps by the gradients of single batches.
        advice: What is said of each of the `symptoms`: the cause, and what to write instead.

    Raises:
        TypeError: The bound is not a number.
        ValueError: The bound is NaN.
    """

    lower_bound: Setting = Setting(A_BOUND, 0.0)
    weight_decay_form: ClassVar[WeightDecayForm] = "base"
    needs_momentum: ClassVar[bool] = False
    advice: ClassVar[Mapping[str, str]] = ADVICE

    def wants_probe(self, stats: ModelStats) -> bool:
        """Return whether a step is to be probed, where the user gives `step()` a probe.

        Args:
            stats: What is known before the model of the step, whose own values are NaN;
                `stats.step` is its number, from 1 on.

        Returns:
            Here False. Each probe costs an evaluation of the loss, and a copy of the parameters
            until the next step.
        """
        return False

    def wants_slope(self, stats: ModelStats) -> bool:
        """Return whether the slope at the end of a step is to be measured, `probed_slope`.

        Args:
            stats: As for `wants_probe`.

        Returns:
            Here False. Each costs an inner product, and a copy of the parameters until the next
            step, in float32 at least.
        """
        return False

    def foresee(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> Tensor | None:
        """Return the θ that is expected before the momentum model of a step is known.

        Parameters can then be moved in the pass over memory that computes the model. Where θ turns
        out to be another, a second pass puts that right, and the next step takes two passes.

        Args:
            stats: What is known: the loss, the bound, the learning rate, what was measured of the
                last step. The model's own values are NaN, and weight decay that the base adds to
                the gradients is not in the loss.
            memory: What the rule remembered, as in the decision that follows.

        Returns:
            0-dim or of shape [groups], as the θ of the decision; None where nothing is expected,
            as here.
        """
        return None

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return what the rule remembers between steps, as it is before the first one.

        Args:
            lower_bound: The user's bound in the sense of minimisation.

        Returns:
            Name to value; empty for a rule without memory.
        """
        return {}

    def symptoms(self, stats: ModelStats, decision: StepDecision) -> Mapping[str, Tensor]:
        """Return signs that the rule can't do its work, each true or false of a step.

        Asked for at every 10th step. What is true of most of them is told in a warning, once, with
        the text of `advice`. A subclass adds to what is returned here.

        Args:
            stats: The momentum model at the step.
            decision: What the rule decided.

        Returns:
            By the names of `advice`, 0-dim tensors of dtype bool, computed without a host visit.
            Here "below_bound": the model falls along the step, which is not taken (θ = 0), and the
            average of the losses is below the bound, or above by less than 0.1 % of it. A loss of
            exactly 0 is not below a bound of 0: training is done.
        """
        bound = decision.lower_bound
        size = bound.abs() if isinstance(bound, Tensor) else abs(bound)
        reached = stats.mean_loss < bound + 0.001 * size
        stopped = (decision.theta == 0).all() & (stats.predicted_decrease > 0)
        return {"below_bound": reached & stopped}

    @abstractmethod
    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        """Decide on one step.

        Args:
            stats: The momentum model at this step.
            memory: What the rule remembered, by the names of `initial_memory`, 0-dim tensors that
                must not be changed in place.

        Returns:
            The decision. A tensor of `memory` that is in it stays what it is.
        """

    def __repr__(self) -> str:
        settings = {"lower_bound": self.lower_bound, **vars(self)}
        listed = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        return f"{type(self).__name__}({listed})"


def truncate(stats: ModelStats, lower_bound: float | Tensor) -> tuple[Tensor, Tensor]:
    """Cut the base's step where the model would fall below a bound, equation (3).

        θ = clip( (h - ρ f*) / N , 0, 1 )

    Where the step does not descend on the model (N ≤ 0), θ is 1 above the bound and 0 below. A
    model value that is not finite, or a decrease or bound that is NaN, gives θ = NaN: the run shows
    that it has failed, instead of going on with the base's full step.

    Source: arXiv 2305.07583, sections 2 and 3.

    Args:
        stats: The momentum model, or those of single groups.
        lower_bound: f*, a number or a 0-dim tensor.

    Returns:
        θ, and θ before it was cut at 1; both of the shape of what is in `stats`.
    """
    gap, decrease = gap_to_bound(stats, lower_bound), stats.predicted_decrease
    ratio = gap / torch.threshold(decrease, 0.0, 0.0)  # which takes -0.0 for 0.0, too
    # Gaps of 0 and inf are the answer over any decrease but NaN, also where the ratio is 0/0 or
    # inf/inf. They are those that a factor does not change; a NaN decrease makes the factor NaN.
    is_answer = (gap * decrease.clamp(2.0, 3.0)).eq(gap)
    uncapped = torch.where(is_answer, gap, ratio)
    return uncapped.clamp_max(1.0), uncapped


def gap_to_bound(stats: ModelStats, lower_bound: float | Tensor) -> Tensor:
    """Return max(h/ρ - f*, 0), infinite without a bound; NaN where the value is not finite."""
    value = stats.value_after_decay
    # The way from a number to itself is 0, but NaN for inf.
    finite = torch.lerp(value, value, 0.5)
    if isinstance(lower_bound, Tensor) or lower_bound != 0.0:
        finite = finite - lower_bound
    return finite.clamp_min(0.0)


def scaled(change: Tensor, theta: Tensor) -> Tensor:
    """Return what the fraction θ of a step does, where the whole step does `change`.

    Where θ is 0, nothing moves, and a change that overflowed does not count.

    Args:
        change: What the whole step does, such as the predicted decrease.
        theta: The fraction that is taken.
    """
    return (theta * change).masked_fill(theta == 0, 0.0)

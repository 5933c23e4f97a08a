"""The interface of a step rule, and the truncation that most rules share.

A step rule sees the momentum model of the loss only through a few small tensors and returns θ in
[0, 1], for all parameter groups or for each. To try a variant, subclass `StepRule`; no other code
changes.
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

# The wrapper finds "no_progress", "no_lower" and "no_momentum", which no single step shows.
ADVICE: Mapping[str, str] = {
    "below_bound": (
        "The losses are at or below the lower bound of the rule, so no steps are taken (θ = 0). If "
        "the loss can't be lower, training is done. Otherwise give a number that the loss never "
        "goes below, MoMoWrapper(optimizer, MoMo(lower_bound=-10.0)), or no bound, "
        "MoMo(-math.inf); with maximize=True a number that the objective never exceeds, or "
        "MoMo(math.inf)."
    ),
    "no_progress": (
        "Step after step was predicted to bring the loss at least halfway to the lower bound, and "
        "the loss has not fallen. Steps are too long, because the learning rate is far too large "
        "and the bound far away. Write MoMoWrapper(optimizer, TrustedMoMo()), lower the learning "
        "rate, or give a bound that the loss can almost reach, MoMo(lower_bound=...)."
    ),
    "no_lower": (
        "The loss is not lower than at the start of training. If it should fall, steps are too "
        "long, or long steps have ruined the network: start again with a lower learning rate, or "
        "with MoMoWrapper(optimizer, TrustedMoMo()), which shortens steps that are too long."
    ),
    "no_momentum": (
        "The rule judges a step by the next batch, and the base optimizer averages no gradients, "
        "so each step fits only one batch: good steps look too long, and stay short. Use a base "
        "with momentum, such as AdamW or SGD(params, lr, momentum=0.9), or write "
        "MoMoWrapper(optimizer, MoMo())."
    ),
}


@dataclass(frozen=True)
class StepDecision:
    """What a step rule returns.

    Attributes:
        theta: The fraction of the base's step to take, in [0, 1]: 0-dim, or of shape [groups] with
            one for each parameter group.
        theta_uncapped: θ before it was clipped at 1, 0-dim or of shape [groups].
        lower_bound: The bound that the step aims at: a number or a 0-dim tensor.
        memory: The new memory of the rule: 0-dim tensors by the names of `initial_memory`.
    """

    theta: Tensor
    theta_uncapped: Tensor
    lower_bound: float | Tensor
    memory: Mapping[str, Tensor] = field(default_factory=dict)


def signed_bound(rule: StepRule, sign: float) -> float:
    """Return a rule's lower bound in the sense of minimization; raise if it is inf."""
    own = vars(rule).get("lower_bound")  # read at every step: saves a call
    bound = sign * (rule.lower_bound if own is None else own)
    if bound == math.inf:
        raise ValueError(
            "The lower bound is infinite, so no step would ever be taken. For no bound, write "
            "MoMo(-math.inf), or MoMo(math.inf) for a base with maximize=True."
        )
    return bound


def checked_theta(decision: object, memory: Mapping[str, Tensor], groups: int) -> Tensor:
    """Return the θ of a rule's decision; raise if the decision is invalid, before any move."""
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
                "the tensors in stats, which are 0-dim."
            )
    if new.keys() != memory.keys():
        raise ValueError(
            f"The rule's initial_memory names {sorted(memory)}, but its decision has memory for "
            f"{sorted(new)}. Return StepDecision(..., memory={{...}}) with those names."
        )
    bound: object = decision.lower_bound
    if isinstance(bound, Tensor) and bound.numel() != 1:
        raise TypeError(
            f"The rule's lower_bound must be a number or a 0-dim tensor, got {_form(bound)}: one "
            "loss has one bound. Return stats.lower_bound, or a 0-dim tensor."
        )
    return decision.theta


def no_fraction(name: str, value: object, groups: int) -> TypeError:
    """Return the error for a value of a rule that does not have the shape of θ."""
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

    A rule never sees an optimizer. It must not branch on tensors or read them on the host: write
    `torch.where`, not `if` or `.item()`. Its state goes into the `memory` of its decision, which is
    saved with the optimizer.

    Args:
        lower_bound: f*, a lower bound of the loss; 0 suits most losses, `-math.inf` turns off the
            truncation of `MoMo`. For a base with `maximize=True`, an upper bound of the objective,
            and `math.inf` for none. It is checked whenever it is set.

    Attributes:
        weight_decay_form: The form of weight decay if the user of the wrapper chooses none.
        needs_momentum: Whether the rule needs a base that averages gradients or parameters.
        advice: The warning for each of the `symptoms`: the cause, and what to write instead.

    Raises:
        TypeError: The bound is not a number.
        ValueError: The bound is NaN.
    """

    lower_bound: Setting = Setting(A_BOUND, 0.0)
    weight_decay_form: ClassVar[WeightDecayForm] = "base"
    needs_momentum: ClassVar[bool] = False
    advice: ClassVar[Mapping[str, str]] = ADVICE

    def wants_probe(self, stats: ModelStats) -> bool:
        """Return whether to probe this step, if the user passes a probe to `step()`.

        Args:
            stats: The statistics known before the model of the step, whose values are NaN;
                `stats.step` is the number of the step, from 1 on.

        Returns:
            False by default. Each probe costs an evaluation of the loss, and a copy of the
            parameters until the next step.
        """
        return False

    def wants_slope(self, stats: ModelStats) -> bool:
        """Return whether to measure the slope at the end of this step, `probed_slope`.

        Args:
            stats: As for `wants_probe`.

        Returns:
            False by default. Each measurement costs an inner product, and a copy of the parameters
            in at least float32 until the next step.
        """
        return False

    def foresee(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> Tensor | None:
        """Return the θ that is expected before the momentum model of a step is known.

        Parameters can then be moved in the pass over memory that computes the model. If the
        decision has another θ, a second pass corrects the move; on the CPU the next step then takes
        two passes.

        Args:
            stats: The loss, the bound, the learning rate and the measurements of the last step. The
                values of the model are NaN, and the loss does not include weight decay that the
                base adds to the gradients.
            memory: The memory, as in the call that follows.

        Returns:
            A tensor, 0-dim or of shape [groups], as the θ of the decision; None, the default, for
            no expectation.
        """
        return None

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        """Return the memory of the rule before the first step.

        Args:
            lower_bound: The user's bound in the sense of minimization.

        Returns:
            A dict from name to value; empty for a rule without memory.
        """
        return {}

    def symptoms(self, stats: ModelStats, decision: StepDecision) -> Mapping[str, Tensor]:
        """Return signs that the rule can't work, each true or false for a step.

        Called at every 10th step. A symptom that is true in most of them causes one warning, with
        the text of `advice`. A subclass adds to the returned dict.

        Args:
            stats: The momentum model at the step.
            decision: What the rule decided.

        Returns:
            0-dim tensors of dtype bool by the names of `advice`, computed without host
            synchronization. By default "below_bound": the model falls along the step, the step is
            not taken (θ = 0), and the average of the losses is below the bound, or above it by less
            than 0.1 % of it. A loss of exactly 0 is not below a bound of 0: training is done.
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
            memory: The memory of the rule, 0-dim tensors by the names of `initial_memory`, which
                must not be changed in place.

        Returns:
            The decision. Its memory may contain tensors of `memory` as they are.
        """

    def __repr__(self) -> str:
        settings = {"lower_bound": self.lower_bound, **vars(self)}
        listed = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        return f"{type(self).__name__}({listed})"


def truncate(stats: ModelStats, lower_bound: float | Tensor) -> tuple[Tensor, Tensor]:
    """Shorten the base's step where the model would fall below a bound, equation (3).

        θ = clip( (h - ρ f*) / N , 0, 1 )

    If the step does not descend on the model (N ≤ 0), θ is 1 above the bound and 0 below. A model
    value that is not finite, or a decrease or bound that is NaN, gives θ = NaN: the run shows that
    it has failed, instead of continuing with the base's full step.

    Source: arXiv 2305.07583, sections 2 and 3.

    Args:
        stats: The momentum model, or `by_group`, the models of single groups.
        lower_bound: f*, a number or a 0-dim tensor.

    Returns:
        θ, and θ before it was clipped at 1; both with the shape of the values in `stats`.
    """
    gap, decrease = gap_to_bound(stats, lower_bound), stats.predicted_decrease
    ratio = gap / torch.threshold(decrease, 0.0, 0.0)  # which takes -0.0 for 0.0, too
    # Gaps of 0 and inf are the result for any decrease but NaN, also if the ratio is 0/0 or
    # inf/inf. A factor does not change them; a NaN decrease makes the factor NaN.
    is_answer = (gap * decrease.clamp(2.0, 3.0)).eq(gap)
    uncapped = torch.where(is_answer, gap, ratio)
    return uncapped.clamp_max(1.0), uncapped


def gap_to_bound(stats: ModelStats, lower_bound: float | Tensor) -> Tensor:
    """Return max(h/ρ - f*, 0), infinite without a bound; NaN if the value is not finite."""
    value = stats.value_after_decay
    # From a number to itself lerp adds 0, but NaN for inf.
    finite = torch.lerp(value, value, 0.5)
    if isinstance(lower_bound, Tensor) or lower_bound != 0.0:
        finite = finite - lower_bound
    return finite.clamp_min(0.0)


def scaled(change: Tensor, theta: Tensor) -> Tensor:
    """Return the change by the fraction θ of a step, given that by the full step.

    If θ is 0, the result is 0, also for a change that overflowed.

    Args:
        change: The change by the full step, such as the predicted decrease.
        theta: The fraction that is taken.
    """
    return (theta * change).masked_fill(theta == 0, 0.0)

"""What a step rule answers: refused where it can't be carried out, and handed to the groups."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from momo_wrap.rules import StepDecision


def checked_fractions(decision: object, memory: Mapping[str, Tensor], groups: int) -> list[Tensor]:
    """Refuse a rule's decision that can't be carried out, before the parameters move.

    Args:
        decision: What the rule answered.
        memory: What the rule remembers.
        groups: The number of parameter groups.

    Returns:
        The fraction of the base's step that each group takes, 0-dim.

    Raises:
        TypeError: It is no `StepDecision`, or a value in it no tensor of the right shape.
        ValueError: The decision remembers something else than the rule said it would.
    """
    if not isinstance(decision, StepDecision):
        raise TypeError(
            f"The rule returned {type(decision).__name__}, expected a StepDecision. Write return "
            "StepDecision(theta, theta_uncapped, lower_bound)."
        )
    _check_shapes(decision, groups)
    if decision.memory.keys() != memory.keys():
        raise ValueError(
            f"The rule's initial_memory names {sorted(memory)}, but its decision has memory for "
            f"{sorted(decision.memory)}. Return StepDecision(..., memory={{...}}) with those names."
        )
    return list(decision.theta.unbind()) if decision.theta.dim() else [decision.theta] * groups


def _check_shapes(decision: StepDecision, groups: int) -> None:
    fractions: dict[str, object] = {
        "theta": decision.theta,
        "theta_uncapped": decision.theta_uncapped,
    }
    for name, value in fractions.items():
        if not (isinstance(value, Tensor) and tuple(value.shape) in ((), (groups,))):
            raise TypeError(
                f"The rule's {name} must be a 0-dim tensor, or one of shape [{groups}] with a "
                f"value for each parameter group, got {_form(value)}. Compute it from the tensors "
                "in stats, or from those in stats.by_group."
            )
    memories: dict[str, object] = dict(decision.memory)
    for name, value in memories.items():
        if not (isinstance(value, Tensor) and value.dim() == 0):
            raise TypeError(
                f"The rule's {name} must be a 0-dim tensor, got {_form(value)}. Compute it from "
                "the tensors in stats, which are."
            )
    bound: object = decision.lower_bound
    if isinstance(bound, Tensor) and bound.numel() != 1:
        raise TypeError(
            f"The rule's lower_bound must be a number or a 0-dim tensor, got {_form(bound)}: there "
            "is one loss, and one bound for it. Return stats.lower_bound, or a 0-dim tensor."
        )


def _form(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__

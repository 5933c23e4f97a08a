"""Muon and AdamW as one optimizer, from a model in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from momo_wrap.distributed import cut_into
from momo_wrap.rules import StepRule
from momo_wrap.wrapper import MoMoWrapper


def muon_and_adamw(
    model: nn.Module,
    lr: float | Tensor = 1e-2,
    rule: StepRule | None = None,
    *,
    weight_decay: float = 0.1,
    adamw_for: Iterable[nn.Module | Tensor] | None = None,
    muon: Mapping[str, Any] | None = None,
    adamw: Mapping[str, Any] | None = None,
    **settings: Any,
) -> MoMoWrapper:
    """Return Muon for the matrices of hidden layers and AdamW for the rest, as one optimizer.

    Both are under one model of the loss, with one θ: `MoMoWrapper([Muon(...), AdamW(...)])`. There
    are up to three parameter groups with learning rates and weight decays of their own, which a
    `Recorder` tells apart by their `"name"`:

        hidden      Muon     parameters with two dimensions, but for those of the next
        ends        AdamW    embeddings, the last layer, and all else with two dimensions or more
        vectors     AdamW    biases and norms, without weight decay

    Muon's steps are scaled to the size of AdamW's (`adjust_lr_fn="match_rms_adamw"`), so that one
    learning rate does for both. Frozen parameters are left out.

    Under `fully_shard`, make it after the model was cut. Whole matrices are orthogonalised, not the
    parts of ranks: torch gathers what it needs.

    Args:
        model: The model. Parameters that it shares between modules count once.
        lr: The learning rate of all groups, which is a cap.
        rule: The step rule; None: `MoMo()`. With `TrustedMoMo()` an `lr` of 100 does.
        weight_decay: Of the first two groups, as AdamW has it.
        adamw_for: Modules and parameters whose matrices AdamW gets, besides embeddings; None: the
            last module that has a matrix, in the order of `model.modules()`. Give the output layer
            where it is not the last one, `[]` where there is none.
        muon: Further settings of `torch.optim.Muon`, or others of the same, such as its lr.
        adamw: The same of `torch.optim.AdamW`.
        **settings: Those of `MoMoWrapper`, such as `max_grad_norm`.

    Returns:
        The optimizer.

    Raises:
        ImportError: torch is older than 2.9, which has no Muon.
        ValueError: There is no matrix for Muon, or one with fewer rows than it is cut into.

    Example:
        >>> optimizer = muon_and_adamw(model, lr=1e-2)
        >>> loss.backward()
        >>> optimizer.step(loss=loss)
    """
    if not hasattr(torch.optim, "Muon"):
        raise ImportError(
            f"muon_and_adamw needs torch.optim.Muon, which torch has from 2.9 on, and this is "
            f"{torch.__version__}. Upgrade torch, or write MoMoWrapper([muon, adamw]) with a Muon "
            "of another package."
        )
    ends = _ends(model, adamw_for)
    groups: dict[str, list[Tensor]] = {"hidden": [], "ends": [], "vectors": []}
    for name, param in model.named_parameters():
        if param.requires_grad:
            is_hidden = param.dim() == 2 and id(param) not in ends
            kind = "hidden" if is_hidden else "ends" if param.dim() > 1 else "vectors"
            groups[kind].append(param)
            if is_hidden:
                _check_parts(name, param)
    if not groups["hidden"]:
        raise ValueError(
            f"{type(model).__name__} has no matrix of a hidden layer for Muon: parameters with two "
            "dimensions, besides embeddings and the last layer. Write MoMoWrapper(AdamW(params)), "
            "or name the output layer, muon_and_adamw(model, adamw_for=[model.head])."
        )
    of_muon = {"lr": lr, "weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    hidden = {"params": groups["hidden"], "name": "hidden"}
    bases: list[torch.optim.Optimizer] = [torch.optim.Muon([hidden], **{**of_muon, **(muon or {})})]
    of_adamw = {"lr": lr, "weight_decay": weight_decay, **(adamw or {})}
    rest: list[dict[str, Any]] = [
        {"params": groups[name], "name": name} for name in ("ends", "vectors") if groups[name]
    ]
    for group in rest:
        if group["name"] == "vectors":
            group["weight_decay"] = 0.0
    if rest:
        bases.append(torch.optim.AdamW(rest, **of_adamw))
    return MoMoWrapper(bases, rule, **settings)


def _ends(model: nn.Module, adamw_for: Iterable[nn.Module | Tensor] | None) -> set[int]:
    """Return the ids of parameters that are no matrices of hidden layers, whatever their shape."""
    embeddings = [
        module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    ]
    if adamw_for is None:
        with_matrix = [
            module
            for module in model.modules()
            if module not in embeddings
            and any(p.dim() == 2 for p in module.parameters(recurse=False))
        ]
        adamw_for = with_matrix[-1:]
    found: set[int] = set()
    for end in [*embeddings, *adamw_for]:
        found |= set(map(id, end.parameters())) if isinstance(end, nn.Module) else {id(end)}
    return found


def _check_parts(name: str, param: Tensor) -> None:
    """Refuse a matrix that torch can't orthogonalise, as it has fewer rows than parts."""
    for dim, parts in cut_into(param):
        if param.shape[dim] < parts:
            raise ValueError(
                f"{name} of shape {list(param.shape)} is cut into {parts} parts along dimension "
                f"{dim}, more than it has rows there, so that torch.optim.Muon can't orthogonalise "
                "it. Leave it to AdamW, with the output layer: muon_and_adamw(model, "
                f"adamw_for=[model.get_parameter({name!r}), model.head]); or don't cut it."
            )

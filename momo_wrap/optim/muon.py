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

    Both share one model of the loss and one θ: `MoMoWrapper([Muon(...), AdamW(...)])`. There are up
    to three parameter groups with separate learning rates and weight decays, which a `Recorder`
    logs by their `"name"`:

        hidden      Muon     parameters with two dimensions, except `ends`
        ends        AdamW    embeddings, the last layer, and others with two or more dimensions
        vectors     AdamW    biases and norms, without weight decay

    Muon's steps are scaled to the size of AdamW's (`adjust_lr_fn="match_rms_adamw"`), so both can
    share one learning rate. Frozen parameters are left out.

    With `fully_shard`, create it after sharding the model. Full matrices are orthogonalized, not
    local shards: torch gathers them.

    Args:
        model: The model. Shared parameters count once.
        lr: The learning rate of all groups, which is a cap.
        rule: The step rule; None: `MoMo()`. With `TrustedMoMo()`, `lr` may be 100.
        weight_decay: The weight decay of the first two groups, decoupled as in AdamW.
        adamw_for: Modules and parameters for AdamW, besides embeddings; None: the last module with
            a matrix, in the order of `model.modules()`. Pass the output layer if it is not the last
            one, `[]` if there is none.
        muon: Further arguments of `torch.optim.Muon`, or other values, such as another lr.
        adamw: The same for `torch.optim.AdamW`.
        **settings: Arguments of `MoMoWrapper`, such as `max_grad_norm`.

    Returns:
        The optimizer.

    Raises:
        ImportError: torch is older than 2.9, which has no Muon.
        ValueError: There is no matrix for Muon, or one has fewer rows than shards.

    Example:
        >>> optimizer = muon_and_adamw(model, lr=1e-2)
        >>> loss.backward()
        >>> optimizer.step(loss=loss)
    """
    if not hasattr(torch.optim, "Muon"):
        raise ImportError(
            "muon_and_adamw needs torch.optim.Muon, which exists from torch 2.9 on, got torch "
            f"{torch.__version__}. Upgrade torch, or write MoMoWrapper([muon, adamw]) with a Muon "
            "of another package."
        )
    hidden, *rest = _groups(model, _ends(model, adamw_for))
    both = {"lr": lr, "weight_decay": weight_decay}
    of_muon = {**both, "adjust_lr_fn": "match_rms_adamw", **(muon or {})}
    bases: list[torch.optim.Optimizer] = [torch.optim.Muon([hidden], **of_muon)]
    if rest:
        bases.append(torch.optim.AdamW(rest, **{**both, **(adamw or {})}))
    return MoMoWrapper(bases, rule, **settings)


def _groups(model: nn.Module, ends: set[int]) -> list[dict[str, Any]]:
    """Return the parameter groups that there are: that of Muon, then those of AdamW."""
    groups: dict[str, list[Tensor]] = {"hidden": [], "ends": [], "vectors": []}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        is_hidden = param.dim() == 2 and id(param) not in ends
        groups["hidden" if is_hidden else "ends" if param.dim() > 1 else "vectors"].append(param)
        if is_hidden:
            _check_parts(name, param)
    if not groups["hidden"]:
        raise ValueError(
            f"{type(model).__name__} has no matrix of a hidden layer for Muon: parameters with two "
            "dimensions, besides embeddings and the last layer. Write MoMoWrapper(AdamW(params)), "
            "or name the output layer, muon_and_adamw(model, adamw_for=[model.head])."
        )
    own: dict[str, dict[str, float]] = {"vectors": {"weight_decay": 0.0}}
    return [{"params": ps, "name": name, **own.get(name, {})} for name, ps in groups.items() if ps]


def _ends(model: nn.Module, adamw_for: Iterable[nn.Module | Tensor] | None) -> set[int]:
    """Return the ids of parameters for AdamW in spite of their shape."""
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
    """Raise for a matrix with fewer rows than shards, which torch can't orthogonalize."""
    for dim, parts in cut_into(param):
        if param.shape[dim] < parts:
            raise ValueError(
                f"{name} of shape {list(param.shape)} is sharded into {parts} parts along "
                f"dimension {dim}, expected at most as many as its size there, or torch.optim.Muon "
                "can't orthogonalize it. Leave it to AdamW, with the output layer: "
                f"muon_and_adamw(model, adamw_for=[model.get_parameter({name!r}), model.head]); or "
                "do not shard it."
            )

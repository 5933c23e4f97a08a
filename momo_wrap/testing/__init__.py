"""Checks for authors of adapters: the laws that any adapter satisfies, in one call.

Example:
    >>> def test_my_adapter():
    ...     check_adapter(lambda params: MyOptimizer(params, lr=0.01), MyAdapter())
"""

from __future__ import annotations

from collections.abc import Collection

from momo_wrap.adapters import Adapter
from momo_wrap.adapters.proposing import AveragingOfGroup
from momo_wrap.testing import laws
from momo_wrap.testing.setting import MakeOptimizer, Setting

__all__ = ["LAWS", "check_adapter"]

LAWS = tuple(laws.LAWS)


def check_adapter(
    make_optimizer: MakeOptimizer,
    adapter: Adapter | None = None,
    *,
    averaging: AveragingOfGroup | None = None,
    skip: Collection[str] = (),
) -> list[str]:
    """Check that an adapter reads an optimizer correctly.

    It trains a small regression with the unwrapped optimizer, with the wrapped one, and with the
    `ProposingAdapter`, which uses no preconditioner and keeps its own average of gradients. The
    laws, `LAWS`, are

    - bare: without a bound, the wrapped optimizer takes the steps of the unwrapped one, in float64
      and, with a larger tolerance, in float32;
    - weight decay: the same with a weight decay of 0.1 (if groups have the setting);
    - proposing: with θ = h/(h + N), it takes those of the proposing adapter (equation (8));
    - stop: with the bound at the loss it does not move;
    - resume: from a saved state dict it continues bit for bit;
    - missing gradients: parameters without a gradient stay, the others follow the unwrapped one;
    - groups, late group: the first two laws, with two learning rates and with a group added during
      training;
    - permuted: neither the order of the parameters nor their memory layout matters;
    - blocks: the bare law with blocks of a few elements, so no block contains a whole group;
    - bfloat16: the bare law to the precision of bfloat16, and parameters keep their dtype;
    - maximize: maximizing -f is minimizing f (if the optimizer has the setting, in its groups or as
      an attribute);
    - compiled: if compiled passes can replace `base.step()`, the steps are the same;
    - settings: a step keeps the settings of the groups, as the same objects, also if the base
      raises, and then parameters do not move;
    - results: the effective learning rates are θα, and the sums agree without weight decay.

    Args:
        make_optimizer: Creates the base from parameters or parameter groups, all of them 2-dim,
            with a learning rate that lowers the loss within 100 steps. With a `ReadingAdapter`,
            weight decay is set to 0.
        adapter: The adapter; None: that of `adapter_for`.
        averaging: How the base averages, for the `ProposingAdapter`; None: the adapter's
            `averaging`.
        skip: Names of laws to skip, because the unwrapped optimizer does not satisfy them.

    Returns:
        The names of the laws that were checked.

    Raises:
        AssertionError: Laws do not hold; the message names them, each with the numbers.
        ValueError: `skip` names an unknown law.
    """
    unknown = sorted(set(skip) - set(LAWS))
    if unknown:
        raise ValueError(
            f"skip names {unknown}, expected some of {list(LAWS)}. Write "
            "check_adapter(make_optimizer, skip=['bare'])."
        )
    setting = Setting.of(make_optimizer, adapter, averaging)
    checked = {n: law for n, law in laws.applicable(setting).items() if n not in skip}
    failures: dict[str, Exception] = {}
    for name, law in checked.items():
        try:
            law(setting)
        except Exception as failure:  # noqa: PERF203  all laws are checked
            failures[name] = failure
    if failures:
        lines = [f"{type(setting.adapter).__name__} fails {len(failures)} of its laws:"]
        for name, found in failures.items():
            kind = "" if isinstance(found, AssertionError) else f"{type(found).__name__}: "
            lines.append(f"{name}: {kind}{found}")
        raise AssertionError("\n  ".join(lines)) from next(iter(failures.values()))
    return list(checked)

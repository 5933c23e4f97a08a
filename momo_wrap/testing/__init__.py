"""Checks for authors of adapters: the laws that any adapter satisfies, as one call in a test.

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

    Trains a small regression with the bare optimizer, with the wrapped one, and with the
    `ProposingAdapter`, which knows nothing of preconditioners and averages gradients itself. The
    laws, `LAWS`, are

    - bare: without a bound, the wrapped optimizer takes the bare one's steps, in float64 and, more
      coarsely, in float32;
    - weight decay: the same with a weight decay of 0.1 (where groups have the setting);
    - proposing: with θ = h/(h + N), it takes those of the proposing adapter (equation (8));
    - stop: with the bound at the loss it does not move;
    - resume: from a saved state dict it goes on bit for bit;
    - missing gradients: parameters without a gradient stay, the others follow the bare optimizer;
    - groups, late group: the first two laws, with two learning rates and with a group that is added
      in mid-training;
    - permuted: neither the order of the parameters nor that of their memory matters;
    - blocks: the bare law with blocks of a few elements, so that no block holds a whole group;
    - bfloat16: the bare law to the precision of bfloat16, and parameters keep their dtype;
    - maximize: maximising -f is minimising f (where the optimizer has the setting, in its groups or
      as an attribute);
    - compiled: where the wrapper can update the state in the base's stead, the steps are the same;
    - settings: the settings of the groups are the very objects that they were, also after a step in
      which the base raised, and parameters have not moved then;
    - results: the effective learning rates are θα, and the sums agree without weight decay.

    Args:
        make_optimizer: Makes the base from parameters or groups of parameters, all of them matrices
            (2-dim), with a learning rate at which it lowers the loss within 100 steps. Weight decay
            is set to 0 where the adapter applies it in its own form.
        adapter: The adapter; None: the one of `adapter_for`.
        averaging: How the base averages, for the proposing adapter to compare with; None: as the
            adapter says.
        skip: Names of laws that the bare optimizer itself does not satisfy.

    Returns:
        The names of the laws that were checked.

    Raises:
        AssertionError: Laws do not hold; the message names them, each with the numbers.
        ValueError: `skip` names an unknown law.
    """
    unknown = sorted(set(skip) - set(LAWS))
    if unknown:
        raise ValueError(f"skip names {unknown}, expected some of {list(LAWS)}.")
    setting = Setting.of(make_optimizer, adapter, averaging)
    checked = {n: law for n, law in laws.applicable(setting).items() if n not in skip}
    failures: dict[str, Exception] = {}
    for name, law in checked.items():
        try:
            law(setting)
        except Exception as failure:  # noqa: PERF203  all laws are wanted
            failures[name] = failure
    if failures:
        lines = [f"{type(setting.adapter).__name__} fails {len(failures)} of its laws:"]
        for name, found in failures.items():
            kind = "" if isinstance(found, AssertionError) else f"{type(found).__name__}: "
            lines.append(f"{name}: {kind}{found}")
        raise AssertionError("\n  ".join(lines)) from next(iter(failures.values()))
    return list(checked)

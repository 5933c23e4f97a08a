"""Which adapter reads which optimizer."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from momo_wrap.adapters.adam import AdamAdapter
from momo_wrap.adapters.base import Adapter
from momo_wrap.adapters.sgd import SGDAdapter

_adapters: dict[type[Optimizer], Adapter] = {
    torch.optim.SGD: SGDAdapter(),
    torch.optim.Adam: AdamAdapter(),
    torch.optim.AdamW: AdamAdapter(),
}

# Optimizers that no adapter can help, with the reason.
_impossible: dict[type[Optimizer], str] = {
    torch.optim.LBFGS: (
        "it evaluates its closure several times per step, so there is no single loss and gradient "
        "to build the model from. Use it bare"
    ),
    torch.optim.SparseAdam: (
        "it needs sparse gradients, and the momentum model needs dense ones. Use an embedding "
        "with sparse=False and torch.optim.Adam"
    ),
}


def register_adapter(optimizer_type: type[Optimizer], adapter: Adapter) -> None:
    """Make the one-line wrap work for a further optimizer class.

    Args:
        optimizer_type: The class. Subclasses of it are not included, since a subclass may update
            differently (AdamW is a subclass of Adam).
        adapter: The adapter for it, which replaces any that was registered before.

    Raises:
        TypeError: The first argument is not an optimizer class, or the second not an adapter.
    """
    _check_registration(optimizer_type, adapter)
    _adapters[optimizer_type] = adapter


def _check_registration(optimizer_type: object, adapter: object) -> None:
    if not (isinstance(optimizer_type, type) and issubclass(optimizer_type, Optimizer)):
        raise TypeError(
            f"register_adapter expects a class of optimizers first, got {optimizer_type!r}. Write "
            "register_adapter(MyOptimizer, MyAdapter())."
        )
    if not isinstance(adapter, Adapter):
        raise TypeError(
            f"register_adapter expects an instance of Adapter second, got {adapter!r}. Write "
            f"register_adapter({optimizer_type.__name__}, MyAdapter())."
        )


def adapter_for(optimizer: Optimizer) -> Adapter:
    """Return the adapter that is registered for the exact type of an optimizer.

    Args:
        optimizer: The base optimizer.

    Raises:
        TypeError: There is none, or none is possible.
    """
    found = type(optimizer)
    if found in _impossible:
        raise TypeError(f"MoMoWrapper can't wrap {found.__name__}: {_impossible[found]}.")
    if found not in _adapters:
        known = ", ".join(sorted(known.__name__ for known in _adapters))
        raise TypeError(
            f"No adapter is registered for {found.__module__}.{found.__qualname__}; known are "
            f"{known} (by exact type, not their subclasses). Pass one with MoMoWrapper(optimizer, "
            "adapter=...), or register it once with momo_wrap.register_adapter."
        )
    return _adapters[found]

"""The two passes over the blocks of a step: sum up, then move; and the plan that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from momo_wrap.engine.blocks import Block
from momo_wrap.engine.plan import Plan
from momo_wrap.engine.scalars import Scalar

T = TypeVar("T")


class Formula(Protocol):
    """What the passes have to know of a base optimizer."""

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return values per parameter that `preconditioned` asks for."""

    def preconditioned(self, block: Block) -> Tensor:
        """Return the direction u of a block."""

    def moved(self, block: Block, direction: Tensor, keep: Scalar, pull: Tensor) -> Tensor:
        """Return x <- keep x - pull u of a block."""


class Engine:
    """Computes the steps of one base optimizer, uncompiled.

    Attributes:
        whole: Whether large tensors are left in one piece, for passes without temporaries.
        weight_sums: From how each group averages at this step to R_k of each, of shape [groups].
    """

    whole = False

    def __init__(self, weight_sums: Callable[[Sequence[Any]], Tensor]) -> None:
        self.weight_sums = weight_sums
        self._plan: Plan | None = None
        self._kept: dict[str, tuple[object, Any]] = {}

    @property
    def plan(self) -> Plan:
        """The plan of this step."""
        if self._plan is None:
            raise RuntimeError("There is no plan before prepare() was called.")
        return self._plan

    def prepare(self, groups: Sequence[Mapping[str, Any]]) -> Plan:
        """Plan a step for parameter groups as they are now, with their gradients.

        Args:
            groups: The base's parameter groups.

        Raises:
            TypeError: A gradient is not dense.
        """
        if self._plan is None or not self._plan.holds(groups):
            self._plan = Plan(groups)
        self._plan.take_gradients()
        return self._plan

    def kept(self, name: str, key: object, make: Callable[[], T]) -> T:
        """Return what was made in an earlier step, or make it anew.

        Args:
            name: What it is called.
            key: What it depends on.
            make: Makes it.
        """
        known = self._kept.get(name)
        if known is None or known[0] != key:
            known = self._kept[name] = (key, make())
        made: T = known[1]
        return made

    def replaces_step(self, base: Optimizer, formula: Formula, plan: Plan) -> bool:
        """Return whether the first pass updates the optimizer state in place of `base.step()`.

        Args:
            base: The base optimizer.
            formula: What reads it.
            plan: Its parameters.
        """
        return False

    def scalars(self, formula: Formula, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return all values per parameter that a step needs.

        Args:
            formula: The formula.
            read: What was found in the base.
        """
        return {**read, **formula.scalars(read)}

    def sum_up(
        self, formula: Formula, block: Block, *, keep: bool, gradient: bool, params: bool
    ) -> Tensor:
        """Return inner products with the averaged gradient d = p B + q g, over a block.

        Args:
            formula: What makes a direction u of it.
            block: With columns "param", "buffer" and "grad", scalars "buffer_scale" and
                "grad_scale", and what the formula asks for.
            keep: Whether to remember the direction for the move.
            gradient: Whether ⟨q g, ·⟩ is wanted.
            params: Whether products with the parameters are wanted.

        Returns:
            ⟨p B, u⟩, then where they are wanted ⟨q g, u⟩, ⟨p B, x⟩, ⟨q g, x⟩: shape [products], or
            [products, runs] where the block has several runs of groups.
        """
        direction = formula.preconditioned(block)
        products = _products(block, direction, gradient=gradient)
        if params:
            products += _products(block, block.flat("param"), gradient=gradient)
        block.forget()
        if keep:
            block.direction = direction
        return torch.stack(products)

    def move(self, formula: Formula, block: Block, keep: Scalar, pull: Tensor) -> None:
        """Move the parameters of a block, x <- keep x - pull u.

        Args:
            formula: What makes a direction u of the block.
            block: As for `sum_up`.
            keep: What weight decay leaves of the parameters, a number or a tensor of shape [] or
                [elements of the block].
            pull: θ times the learning rate, of the same shape.
        """
        direction = block.direction
        if direction is None:
            direction = formula.preconditioned(block)
        block.direction = None
        block.write_back("param", formula.moved(block, direction, keep, pull))
        block.forget()


def _products(block: Block, vector: Tensor, *, gradient: bool) -> list[Tensor]:
    """Return ⟨p B, v⟩, and ⟨q g, v⟩ where it is wanted."""
    products = [_product(block, "buffer", "buffer_scale", vector)]
    if gradient:
        products.append(_product(block, "grad", "grad_scale", vector))
    return products


def _product(block: Block, column: str, scale: str, vector: Tensor) -> Tensor:
    """Return the inner product of a scaled column with a vector, for each run of groups."""
    factor = block.scalar(scale)
    if not isinstance(factor, Tensor) and factor == 0.0:
        return vector.new_zeros(() if block.lengths is None else len(block.groups))
    inner = partial(inner_product, lengths=block.lengths, full=block.is_stored_in_full)
    if isinstance(factor, Tensor) and factor.dim():
        product = inner(block.flat(column) * factor, vector)
    elif isinstance(factor, Tensor) or factor != 1.0:
        product = inner(block.flat(column), vector) * factor
    else:
        product = inner(block.flat(column), vector)
    return product if block.shards == 1 else product * block.shards


def inner_product(
    left: Tensor, right: Tensor, *, lengths: Tensor | None = None, full: bool = True
) -> Tensor:
    """Return the sum of the products of two flat real tensors.

    Args:
        left: Shape [elements], float32 or float64.
        right: The same shape and dtype.
        lengths: The lengths of runs that are summed separately; None: there is one.
        full: Whether what they are computed from is stored in that dtype, not in a lower precision;
            it makes a difference to how fast the compiled sum is.

    Returns:
        A tensor on their device, of shape [] or [runs].
    """
    if lengths is not None:
        wide = torch.float32 if left.device.type == "mps" else torch.float64
        product = (left * right).to(wide)
        return torch.segment_reduce(product, "sum", lengths=lengths, unsafe=True).to(left.dtype)
    if not torch.compiler.is_dynamo_compiling():
        return torch.dot(left, right)
    # A sum can be fused, a call of BLAS can't. On the CPU torch's compiler spends more on a careful
    # float32 sum than on a float64 one, unless there are values of 16 bits in the same loop.
    wide = torch.float64 if left.device.type == "cpu" and full else left.dtype
    return (left * right).sum(dtype=wide).to(left.dtype)

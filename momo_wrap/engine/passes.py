"""The two passes over the blocks of a step: sum up, then move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from operator import attrgetter, is_
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from momo_wrap.engine.ahead import Foreseen
from momo_wrap.engine.blocks import Block
from momo_wrap.engine.kind import Kind
from momo_wrap.engine.plan import Plan
from momo_wrap.engine.scalars import Scalar, wide_dtype

_grad = attrgetter("grad")
# The properties of a parameter that a plan depends on.
_ASKED: tuple[Callable[[Tensor], object], ...] = (
    id,
    attrgetter("requires_grad"),
    attrgetter("dtype"),
    attrgetter("device"),
)


# Scalars that are used as read.
_KEPT = ("buffer_scale", "grad_scale", "coupled_decay")
# An inner product: the names of a scalar and of two columns, where "u" is the direction.
Product: TypeAlias = tuple[str, str, str]
# A block, the factor `keep` of its parameters, and the factor `pull` of the direction.
Move: TypeAlias = tuple[Block, Scalar, Tensor]


class Formula(Protocol):
    """The part of an adapter that the passes use."""

    def scalars(self, read: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return the values per parameter that `preconditioned` needs."""

    def preconditioned(self, block: Block) -> Tensor:
        """Return the direction u of a block."""

    def moved(self, block: Block, direction: Tensor, keep: Scalar, pull: Tensor) -> Tensor:
        """Return the column "param" of a block, changed in place: x <- keep x - pull u."""


class Engine:
    """Computes the steps of one base optimizer, uncompiled.

    Attributes:
        plan: The plan of this step.
        whole: Whether large tensors stay in one piece, for passes without temporaries.
        kept: A cache that is valid until a setting of the groups changes.
        weight_sums: A function from how each group averages at this step to R_k of each, of shape
            [groups].
        settings: The number of changes of the groups' settings so far.
        foreseen: The expectation for this step; None: none.
        foresees: Whether the engine or the base can move parameters ahead, see
            `momo_wrap.engine.ahead`.
        moves_ahead: Whether the first pass of this step can move parameters ahead.
        bounds_moves: Whether the learning rate bounds the base's moves for gradients of any size.
        corrects: Whether a kernel on the device finds out which moves ahead were wrong, so the host
            need not know.
        has_stepped: Whether the base has already taken the step, with θ° times the learning rates.
    """

    plan: Plan
    foresees = False
    moves_ahead = False
    has_stepped = False
    bounds_moves = False
    corrects = False

    def __init__(self, weight_sums: Callable[[Sequence[Any]], Tensor]) -> None:
        self.weight_sums = weight_sums
        self.whole = False
        self.settings = 0
        self.foreseen: Foreseen | None = None
        self.kept: dict[object, Any] = {}
        self._key: object = None
        self._values: list[Any] = []
        self._has_tensors = False

    def prepare(self, groups: Sequence[Mapping[str, Any]]) -> Plan:
        """Plan a step for the current parameter groups; raise if a gradient is not dense."""
        params = [param for group in groups for param in group["params"]]
        grads = list(map(_grad, params))
        key = [list(map(ask, params)) for ask in _ASKED]
        key += [list(map(is_, grads, repeat(None))), [len(group["params"]) for group in groups]]
        try:
            key.append(list(map(Tensor.size, params)))
        except (ValueError, RuntimeError):  # a lazy one has no size yet
            key.append([None if is_lazy(param) else param.size() for param in params])
        if key != self._key:
            like = self.plan.like if self._key is not None else None
            self.plan, self._key, self.kept = Plan(groups, like), key, {}
        for position, grad in enumerate(grads):
            if grad is not None and (
                type(grad) is not Tensor or grad.layout is not torch.strided or grad.is_neg()
            ):
                grads[position] = self.plan.dense(position, grad)
        self.plan.grads = grads
        # Compared by identity; tensors may change in place, which this does not detect.
        values = [value for group in groups for value in group.values()]
        is_same = len(values) == len(self._values) and all(map(is_, values, self._values))
        if self._has_tensors or not is_same:
            self.settings += 1
            self.kept = {}
            self._values = values
            self._has_tensors = any(isinstance(value, Tensor) for value in values)
        return self.plan

    def replaces_step(self, base: Optimizer, formula: Formula, plan: Plan) -> bool:
        """Return whether the first pass updates the optimizer state instead of `base.step()`."""
        return False

    def lrs_ahead(self, base: Optimizer) -> list[float] | None:
        """Return the learning rates for a step of the base before the sums; None: no such step.

        Called if θ is expected and the form of weight decay is "base".
        """
        return None

    def scalars(
        self, formula: Formula, read: Mapping[str, Scalar], kind: Kind
    ) -> Mapping[str, Scalar]:
        """Return all values per parameter that a step needs, of the parameters of a kind."""
        kept = {name: read[name] for name in _KEPT if name in read}
        return {**kept, **formula.scalars(read)}

    def sum_up(
        self, formula: Formula, blocks: Sequence[Block], products: Sequence[Product], room: int
    ) -> list[Tensor]:
        """Return inner products over blocks.

        Args:
            formula: Computes the direction u of a block.
            blocks: The blocks, with the columns and scalars that formula and products need. If
                `ahead` is set, the parameters are moved too, after the sums; it is unset if they
                were not.
            products: The inner products to compute.
            room: The number of elements of directions that may be kept for the move.

        Returns:
            For each block a tensor of shape [products], or [products, runs] if the block has
            several runs of groups.
        """
        found = []
        for block in blocks:
            room -= block.numel
            direction = formula.preconditioned(block)
            found.append(inner_products(block, direction, products))
            block.forget(keep_param=room >= 0)
            if room >= 0:
                block.direction = direction
        return found

    def move(self, formula: Formula, moves: Iterable[Move]) -> None:
        """Move the parameters of blocks, x <- keep x - pull u, after undoing moves ahead."""
        for block, keep, pull in moves:
            direction = block.direction
            if direction is None:
                direction = formula.preconditioned(block)
            block.direction = None
            if block.ahead is not None:
                block.hold("param", block.ahead.put_back(block.flat("param"), direction))
                block.ahead = None
            block.write_back("param", formula.moved(block, direction, keep, pull))
            block.forget()


def inner_products(block: Block, direction: Tensor, products: Sequence[Product]) -> Tensor:
    """Return inner products over a block; see `Engine.sum_up`."""
    scales = [block.scalar(scale) for scale, _, _ in products]
    common = scales[0]
    is_common = isinstance(common, Tensor) and not common.dim()
    if is_common and all(scale is common for scale in scales):
        scales = [1.0] * len(scales)  # multiplied with once, afterwards
    else:
        common = 1.0
    found = torch.stack(
        [
            _product(block, scale, column, direction if other == "u" else block.flat(other))
            for scale, (_, column, other) in zip(scales, products, strict=True)
        ]
    )
    found = found * common if isinstance(common, Tensor) else found
    return found if block.shards == 1 else found * block.shards


def _product(block: Block, factor: Scalar, column: str, vector: Tensor) -> Tensor:
    """Return the inner product of a scaled column with a vector, for each run of groups."""
    several = len(block.groups) > 1
    if not isinstance(factor, Tensor) and factor == 0.0:
        return vector.new_zeros(len(block.groups) if several else ())
    values = block.flat(column)
    if isinstance(factor, Tensor) and factor.dim():
        values, factor = values * factor, 1.0
    if several or block.in_rows or torch.compiler.is_dynamo_compiling():
        product = _careful_product(values, vector, block)
    else:
        product = torch.dot(values, vector)
    return product * factor if isinstance(factor, Tensor) or factor != 1.0 else product


def _careful_product(left: Tensor, right: Tensor, block: Block) -> Tensor:
    """Return the inner product of two flat tensors without a call of BLAS."""
    if block.packing is not None and block.packing.lengths is not None:
        wide = (left * right).to(wide_dtype(left.device))
        sums = torch.segment_reduce(wide, "sum", lengths=block.packing.lengths, unsafe=True)
        return sums.to(left.dtype)
    # A sum can be fused, a call of BLAS can't. Inductor's float32 sum on the CPU is slower than a
    # float64 one, unless there are 16-bit values in the same loop.
    is_wide = left.device.type == "cpu" and block.is_stored_in_full
    if block.in_rows:
        return (left * right).sum(-1).sum()
    return (left * right).sum(dtype=torch.float64 if is_wide else left.dtype).to(left.dtype)

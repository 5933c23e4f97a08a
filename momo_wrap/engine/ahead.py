"""Moving ahead: where θ is known before the sums, one pass over memory does all.

The pass that updates the state and sums up then also moves the parameters, by the θ° that the rule
foresees, and no element by more than a limit l. Where θ turns out to be another, or where l held
something back, a second pass puts the parameters back and moves them:

    s = clip(θ° α u, -l, l) ,    x <- keep° x - s
    x <- (x + s)/keep° ,         x <- keep x - θ α u

Where θ° is right and l holds nothing back, this is bit for bit what two passes do. Else it differs
by a few units in the last place of max(|x|, l), so that l, a small multiple of what the last step
has moved, keeps a spike of the gradient from costing digits.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# How much farther than in the last step an element may be moved ahead.
_FARTHER = 16.0


class Foreseen(NamedTuple):
    """What is expected of a step before its sums are known.

    Attributes:
        theta: θ°, 0-dim or of shape [groups].
        reach: How far the last step has moved that element which it moved farthest, 0-dim; None:
            nothing is moved ahead, as where the last expectation did not come true.
    """

    theta: Tensor
    reach: Tensor | None

    @property
    def limit(self) -> Tensor | None:
        """l; None where nothing is moved ahead."""
        return None if self.reach is None else _FARTHER * self.reach


class Ahead(NamedTuple):
    """By what the parameters of a block are moved ahead, each 0-dim.

    Attributes:
        pull: θ° α.
        keep: keep°, what weight decay leaves; None: all.
        limit: l; None: u is bounded anyway.
    """

    pull: Tensor
    keep: Tensor | None = None
    limit: Tensor | None = None

    def step(self, direction: Tensor) -> Tensor:
        """Return s of a direction u."""
        step = direction * self.pull
        return step if self.limit is None else step.clamp(-self.limit, self.limit)

    def move(self, x: Tensor, direction: Tensor) -> Tensor:
        """Return parameters moved ahead, in place."""
        if self.keep is not None:
            x.mul_(self.keep)
        return x.sub_(self.step(direction))

    def put_back(self, x: Tensor, direction: Tensor) -> Tensor:
        """Return parameters as they were, in place."""
        x.add_(self.step(direction))
        return x if self.keep is None else x.div_(self.keep)

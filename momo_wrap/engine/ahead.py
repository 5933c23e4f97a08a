"""Moving ahead: if θ is known before the sums, one pass over memory is enough.

The pass that updates the state and sums up then also moves the parameters, with the θ° that the
rule expects (`StepRule.foresee`), and no element by more than a limit l. If the decision has
another θ, or if a move exceeded l, a second pass puts the parameters back and moves them:

    s = clip(θ° α u, -l, l) ,    x <- keep° x - s
    x <- (x + s)/keep° ,         x <- keep x - θ α u

If θ° is right and no move exceeds l, the result is that of two passes, on the CPU bit for bit.
Otherwise it differs by a few units in the last place of max(|x|, l). So l, a small multiple of the
largest move in the last step, protects digits from a spike of the gradient.

On the CPU the host decides whether a second pass is needed, and a base whose learning rate bounds
its moves needs no l. On accelerators the host would have to wait for that, so a kernel decides (see
`momo_wrap.fast.correction`), and such a base moves ahead only if θ° α is at most l, with l a
multiple of θ α in the last step.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# l as a multiple of the largest move in the last step.
_FARTHER = 16.0


class Foreseen(NamedTuple):
    """The expectations for a step before its sums are known.

    Attributes:
        theta: θ°, 0-dim or of shape [groups].
        reach: The largest move of an element in the last step, or θ α if that bounds it, 0-dim;
            None: nothing is moved ahead, for example because the last expectation was wrong.
    """

    theta: Tensor
    reach: Tensor | None

    @property
    def limit(self) -> Tensor | None:
        """l; None if nothing is moved ahead."""
        return None if self.reach is None else _FARTHER * self.reach


class Ahead(NamedTuple):
    """The coefficients for moving the parameters of a block ahead, each 0-dim.

    Attributes:
        pull: θ° α.
        keep: keep°, the factor by weight decay; None: 1.
        limit: l; None: u is bounded.
    """

    pull: Tensor
    keep: Tensor | None = None
    limit: Tensor | None = None

    def step(self, direction: Tensor) -> Tensor:
        """Return s for a direction u."""
        step = direction * self.pull
        return step if self.limit is None else step.clamp(-self.limit, self.limit)

    def move(self, x: Tensor, direction: Tensor) -> Tensor:
        """Move parameters ahead, in place."""
        if self.keep is not None:
            x.mul_(self.keep)
        return x.sub_(self.step(direction))

    def put_back(self, x: Tensor, direction: Tensor) -> Tensor:
        """Undo `move`, in place."""
        x.add_(self.step(direction))
        return x if self.keep is None else x.div_(self.keep)

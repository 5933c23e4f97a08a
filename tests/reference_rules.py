"""The rules for research in plain floats, each in another form than in the library.

They branch where the library chooses by `torch.where`, and see a model that is built from its
definition, a weighted sum over all past steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.reference import Array, ReferenceGroup


@dataclass
class Seen:
    """What a rule sees of a step: values of the model, with N/ρ as `decrease`."""

    loss: float
    value: float
    height: float
    decrease: float


Rule = Callable[[Seen], float]


def clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def momo(bound: float) -> Rule:
    return lambda seen: clip((seen.height - bound) / seen.decrease)


def sps_max(bound: float, c: float) -> Rule:
    """As a step size relative to that of the base."""

    def theta(seen: Seen) -> float:
        polyak = max(seen.loss + (seen.height - seen.value) - bound, 0.0) / (c * seen.decrease)
        return min(1.0, polyak)

    return theta


def ngn(bound: float) -> Rule:
    """From r = sqrt(f): the Gauss-Newton step minimises (r + r' s)² + s²/α along the direction."""

    def theta(seen: Seen) -> float:
        gap = seen.height - bound
        if gap <= 0:
            return 0.0
        root = math.sqrt(gap)
        slope = seen.decrease / (2 * root)  # of r along the whole step, as f = r²
        # minimise (r - θ slope)² + θ² N/2 over θ
        return root * slope / (slope**2 + seen.decrease / 2)

    return theta


def scheduled(bound: float, schedule: Callable[[int], float]) -> Rule:
    count = 0

    def theta(seen: Seen) -> float:
        nonlocal count
        count += 1
        return clip((seen.height - max(schedule(count), bound)) / seen.decrease)

    return theta


def warm_target(bound: float, steps: int) -> Rule:
    count = 0

    def theta(seen: Seen) -> float:
        nonlocal count
        count += 1
        eta = count / steps if count < steps else 1.0
        target = eta * bound + (1 - eta) * max(seen.value, bound)
        return clip((seen.height - target) / seen.decrease)

    return theta


def moving_target(bound: float, speed: float, pull: float) -> Rule:
    """The joint projection of parameters and target, with a weight σ on moves of the target."""
    target = bound
    sigma = speed / (1 - speed)

    def theta(seen: Seen) -> float:
        nonlocal target
        scale = sigma * seen.decrease
        multiplier = (seen.height - target) / (seen.decrease + scale)
        met = target + scale * multiplier
        target = max(pull * bound + (1 - pull) * met, bound)
        return clip(multiplier)

    return theta


def limited_growth(bound: float, factor: float, floor: float) -> Rule:
    last = 1.0

    def theta(seen: Seen) -> float:
        nonlocal last
        found = clip((seen.height - bound) / seen.decrease)
        if found > factor * max(last, floor):
            found = factor * max(last, floor)
        last = found
        return found

    return theta


@dataclass
class TrustRegion:
    """Nocedal and Wright, Algorithm 4.1, with their ratio."""

    bound: float
    floor: float
    radius: float = 1.0
    last: tuple[float, float, float] | None = None
    judged: list[str] = field(default_factory=list)

    def __call__(self, seen: Seen) -> float:
        if self.last is not None:
            value, predicted, theta = self.last
            ratio = (value - seen.value) / predicted if predicted > 0 else 0.5
            if ratio < 0.25:
                self.radius = max(self.radius / 4, self.floor)
                self.judged.append("bad")
            elif ratio > 0.75 and theta >= self.radius:
                self.radius = min(2 * self.radius, 1.0)
                self.judged.append("good")
        theta = min(clip((seen.height - self.bound) / seen.decrease), self.radius)
        after = seen.height - theta * seen.decrease
        self.last = seen.value, seen.value - after, theta
        return theta


@dataclass
class ReferenceRun:
    """A rule over one group, with proximal weight decay and the model's definition."""

    group: ReferenceGroup
    rule: Rule
    past: list[tuple[float, float, Array, Array]] = field(default_factory=list)
    theta: float = math.nan

    def step(self, loss: float, g: Array) -> None:
        """Take a step from a loss and its gradient."""
        group = self.group
        group.base.step += 1
        a, b, p, q = group.base.weights()
        self.past = [(a * w, f, grad, x) for w, f, grad, x in self.past]
        self.past.append((b, loss, g, group.x.copy()))
        weights = [p * w for w, *_ in self.past]
        weights[-1] += q
        total = sum(weights)
        c = 1 / (1 + group.lr * group.weight_decay)

        def model(x: Array) -> float:
            terms = zip(weights, self.past, strict=True)
            return sum(w * (f + float(grad @ (x - at))) for w, (_, f, grad, at) in terms) / total

        d = sum(w * grad for w, (_, _, grad, _) in zip(weights, self.past, strict=True))
        move = group.lr * d / group.base.preconditioner(g)
        decrease = c * float(d @ move) / total
        self.theta = self.rule(Seen(loss, model(group.x), model(c * group.x), decrease))
        group.x = c * (group.x - self.theta * move)

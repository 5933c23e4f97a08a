"""TrustedMoMo and the rules for research in plain floats, each in another form than in the library.

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
    """The statistics of a step: values of the model, with N/ρ as `decrease`.

    Of the last move, `slope` is that of the new gradient along it, and `predicted` what the model
    made of it.
    """

    loss: float
    mean_loss: float
    value: float
    height: float
    decrease: float
    lr: float
    slope: float = math.nan
    predicted: float = math.nan


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


def sps_safe(bound: float, safeguard: float) -> Rule:
    """The paper's step size, of a slope by the step of the base."""

    def theta(seen: Seen) -> float:
        squared_norm = seen.decrease / seen.lr
        gap = max(seen.loss + (seen.height - seen.value) - bound, 0.0)
        return min(gap / max(squared_norm, safeguard) / seen.lr, 1.0)

    return theta


def dec_sps(bound: float, c: float) -> Rule:
    """The shortest of all Polyak steps so far, over c √k."""
    steps: list[float] = []

    def theta(seen: Seen) -> float:
        gap = max(seen.loss + (seen.height - seen.value) - bound, 0.0)
        steps.append(gap / (seen.decrease / seen.lr))
        return min(*steps, c * seen.lr) / (c * math.sqrt(len(steps))) / seen.lr

    return theta


def ngn(bound: float) -> Rule:
    """Of the loss of the batch: γ = α/(1 + α ‖d‖²/(2 f)), relative to α."""

    def theta(seen: Seen) -> float:
        gap = seen.loss + (seen.height - seen.value) - bound
        return 2 * gap / (2 * gap + seen.decrease) if gap > 0 else 0.0

    return theta


def model_ngn(bound: float) -> Rule:
    """From r = sqrt(f): the Gauss-Newton step minimises (r + r' s)² + s²/α along the direction."""

    def theta(seen: Seen) -> float:
        gap = seen.height - bound
        if gap <= 0:
            return 0.0
        root = math.sqrt(gap)
        slope = seen.decrease / (2 * root)  # of r along the full step, because f = r²
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


@dataclass
class Trusted:
    """TrustedMoMo from the lists of all measurements and steps so far, in logarithms."""

    bound: float
    required: float = 0.2
    rate: float = 0.05
    window: float = 20.0
    confidence: float = 3.0
    start: float = 0.01
    every: float = 3.0
    measurements: float = 10.0
    descends: float = 0.1
    is_scheduled: bool = False
    step: int = 0
    log_radius: float | None = None
    peak: float = 0.0
    ratios: list[float] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)
    last: tuple[float, float, float, float] = (math.nan,) * 4
    judged: list[str] = field(default_factory=list)

    def __call__(self, seen: Seen) -> float:
        self.step += 1
        if self.log_radius is None:
            step_size = (seen.height - self.bound) / seen.decrease * seen.lr
            start = 5 * self.start if self.is_scheduled else self.start
            self.log_radius = math.log(start) + math.log(step_size)
        else:
            mean_loss, prediction, taken, lr = self.last
            before, falls = self.log_radius, seen.lr < lr
            self.steps.append((mean_loss - seen.loss, mean_loss - prediction))
            self.is_scheduled |= seen.lr != lr
            if self.is_scheduled:
                self.by_losses_alone(taken)
                if seen.lr < self.peak / 2:
                    self.log_radius = min(self.log_radius, before + 4 / self.step)
            elif self.step - 1 <= 100 or (self.step - 1) % self.every == 0:
                self.measure(self.step - 1, seen.slope, seen.predicted, taken, falls)
            if not self.is_scheduled:
                self.by_losses(taken)
        self.peak = max(self.peak, seen.lr)
        theta = clip((seen.height - self.bound) / seen.decrease)
        theta = min(theta, math.exp(self.log_radius) / self.peak)
        after = seen.height - theta * seen.decrease
        self.last = seen.mean_loss, after, theta * self.peak, seen.lr
        return theta

    def slope(self) -> tuple[float, float]:
        """Return Z and its standard error."""
        weights: list[float] = []
        for j in range(1, len(self.ratios) + 1):
            share = 1 / min(j, self.measurements)
            weights = [*(weight * (1 - share) for weight in weights), share]
        mean = sum(w * z for w, z in zip(weights, self.ratios, strict=True))
        if len(weights) < 2:
            return mean, math.inf
        variance = sum(w * (z - mean) ** 2 for w, z in zip(weights, self.ratios, strict=True))
        return mean, math.sqrt(variance / (min(len(weights), 2 * self.measurements - 1) - 1))

    def measure(self, k: int, sigma: float, pi: float, taken: float, lowered: bool) -> None:
        """Judge step k."""
        assert self.log_radius is not None
        if not (pi > 0 and taken > 0 and math.isfinite(sigma)):
            return
        self.ratios.append(min(max(sigma / pi, -1.0), 1.0))
        mean, error = self.slope()
        n = 1.0 if k <= 100 else self.every
        change, log_taken = self.rate * math.sqrt(n), math.log(taken)
        sure = math.sqrt(2 * math.log(k / 100)) if k > 165 else 1.0
        is_early = len(self.ratios) < 3 and self.ratios[-1] > 0
        if is_early or mean > self.descends + sure * error:
            self.log_radius = max(self.log_radius, log_taken + change)
            self.judged.append("good")
        elif mean + error < -0.5:
            least = max(min(self.log_radius, log_taken), self.log_radius - math.log(2))
            self.log_radius = least - change
            self.judged.append("bad")
        elif mean < error < math.inf and k > 100 and not lowered:
            self.log_radius -= min(change, n / k)
            self.judged.append("annealed")

    def losses(self) -> tuple[float, float, float]:
        """Return the observed and the predicted decrease, and the standard error of the former."""
        weights = [(1 - 1 / self.window) ** age for age in reversed(range(len(self.steps)))]
        total = sum(weights)
        weights = [weight / total for weight in weights]
        mean = sum(w * seen for w, (seen, _) in zip(weights, self.steps, strict=True))
        predicted = sum(w * decrease for w, (_, decrease) in zip(weights, self.steps, strict=True))
        count = 1 / sum(w**2 for w in weights)  # of values of equal weight
        if count < 1.5:
            return mean, predicted, math.inf
        variance = sum(w * (x - mean) ** 2 for w, (x, _) in zip(weights, self.steps, strict=True))
        return mean, predicted, math.sqrt(variance / (count - 1))

    def by_losses_alone(self, taken: float) -> None:
        """Judge a step under a schedule, which anneals."""
        assert self.log_radius is not None
        mean, predicted, error = self.losses()
        log_taken = math.log(taken) if taken > 0 else -math.inf
        missing, margin = self.required * predicted - mean, 2 * error
        if missing < 0:
            growth = 2 * self.rate * min(-missing / abs(predicted), 1.0)
            self.log_radius = max(self.log_radius, log_taken + growth)
            self.judged.append("longer")
        elif missing > margin:
            least = max(min(self.log_radius, log_taken), self.log_radius - math.log(2))
            fall = min((missing - margin) / (abs(predicted) + margin), 1.0)
            self.log_radius = least - 2 * self.rate * fall
            self.judged.append("shorter")

    def by_losses(self, taken: float) -> None:
        """Let steps grow where the losses fall beyond doubt."""
        assert self.log_radius is not None
        mean, predicted, error = self.losses()
        if predicted <= 0 or taken <= 0 or self.slope()[0] < -0.1:
            return
        if mean - self.required * predicted > self.confidence * error:
            self.log_radius = max(self.log_radius, math.log(taken) + 0.03)
            self.judged.append("falls")


@dataclass
class ReferenceRun:
    """A rule over one group, with the model's definition; weight decay proximal or scaled."""

    group: ReferenceGroup
    rule: Rule
    scaled: bool = False
    past: list[tuple[float, float, Array, Array]] = field(default_factory=list)
    theta: float = math.nan
    last: tuple[Array, float] | None = None

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
        c = 1.0 if self.scaled else 1 / (1 + group.lr * group.weight_decay)

        def model(x: Array) -> float:
            terms = zip(weights, self.past, strict=True)
            return sum(w * (f + float(grad @ (x - at))) for w, (_, f, grad, at) in terms) / total

        d = sum(w * grad for w, (_, _, grad, _) in zip(weights, self.past, strict=True))
        move = group.lr * d / group.base.preconditioner(g)
        if self.scaled:
            move = move + group.lr * group.weight_decay * group.x
        mean_loss = sum(w * f for w, (_, f, _, _) in zip(weights, self.past, strict=True)) / total
        decrease = c * float(d @ move) / total
        values = model(group.x), model(c * group.x)
        seen = Seen(loss, mean_loss, *values, decrease, group.lr)
        if self.last is not None:
            seen.slope, seen.predicted = float(g @ (self.last[0] - group.x)), self.last[1]
        self.theta = self.rule(seen)
        after = c * (group.x - self.theta * move)
        self.last = group.x, model(group.x) - model(after)
        group.x = after

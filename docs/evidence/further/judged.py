"""Further development tasks of a rule, by name."""

from __future__ import annotations

from collections.abc import Callable

from docs.evidence.further.judged_classes import (
    clipped_waves,
    documents_dropout,
    random_labels,
    separable,
)
from docs.evidence.further.judged_moving import attacked, blobs_variational, bootstrap, steering
from docs.evidence.further.judged_regression import (
    adapter,
    outliers,
    rotating_weights,
    screened_poisson,
)
from docs.evidence.further.judged_sequences import memory, sorting
from docs.evidence.further.situations import Situation

JUDGED: dict[str, Callable[[], Situation]] = {
    "outliers, Friedman": outliers,
    "screened Poisson equation": screened_poisson,
    "adapter, batches of four": adapter,
    "rotating weights": rotating_weights,
    "clipped, waves": clipped_waves,
    "random labels, clusters": random_labels,
    "documents, dropout": documents_dropout,
    "separable, logistic": separable,
    "memory, plain RNN": memory,
    "sorting, transformer": sorting,
    "bootstrap, gratings": bootstrap,
    "steering, policy gradient": steering,
    "attacked classifier": attacked,
    "blobs, variational": blobs_variational,
}

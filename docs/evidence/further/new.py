"""More situations to judge a rule on, by name: nothing was chosen on them."""

from __future__ import annotations

from collections.abc import Callable

from docs.evidence.further.new_classes import communities, focal
from docs.evidence.further.new_features import masked_digits, sparse_codes, triplets
from docs.evidence.further.new_moving import renamed, stopping
from docs.evidence.further.new_regression import (
    mixture_density,
    multiplicative_noise,
    quantiles,
    survival,
    wave,
)
from docs.evidence.further.new_sequences import adding, smoothed_text
from docs.evidence.further.situations import Situation

# Behind each, what bare Adam reaches at its best of 7 learning rates, with seeds 0 and 1: a score
# where nothing else is said.
NEW: dict[str, Callable[[], Situation]] = {
    "multiplicative noise": multiplicative_noise,  # 0.70 and 0.72 at 0.01
    "quantiles, pinball": quantiles,  # 0.72 at 0.03 and 0.71 at 0.003
    "survival, Cox": survival,  # 0.75 at 0.001; by chance 0.5
    "mixture density": mixture_density,  # 0.59 and 0.68 at 0.003
    "wave equation": wave,  # 0.96 and 0.95 at 0.03
    "invented text, smoothed labels": smoothed_text,  # 0.73 at 0.01
    "adding, clipped GRU": adding,  # 0.94 at 0.03 and 0.96 at 0.01
    "masked digits": masked_digits,  # a loss of 0.053 and 0.052 at 0.01; a constant: 0.074
    "triplets, margin": triplets,  # 0.97 at 0.003
    "sparse codes": sparse_codes,  # 0.99 at 0.03
    "communities, graph network": communities,  # 0.85 at 0.001 and 0.83 at 0.003
    "rare classes, focal": focal,  # 0.82 and 0.83 at 0.003
    "stopping, policy gradient": stopping,  # 1.00 at 0.001
    "renamed classes": renamed,  # 0.92 at 0.01
}

"""Development tasks of a rule, by name."""

from __future__ import annotations

from collections.abc import Callable

from docs.evidence.further.moving import (
    actor_critic,
    bandit,
    changing_weights,
    correlated,
    curriculum,
    ring,
)
from docs.evidence.further.regression import (
    coordinates,
    deep_linear,
    heat,
    heavy_tails_linear,
    heavy_tails_perceptron,
    poisson,
)
from docs.evidence.further.situations import Situation
from docs.evidence.further.text import clipped_lstm, gru, tied_gpt
from docs.evidence.further.vision import (
    clipped_convolutions,
    clipped_perceptron,
    contrastive,
    distillation,
    dropout,
    noisy_labels_convolutions,
    noisy_labels_perceptron,
    normalised,
    single_examples,
    slow_distillation,
    variational,
)

# The constants of the rule were chosen on these; it is judged on those of judged.py.
CHOSEN_ON: dict[str, Callable[[], Situation]] = {
    "heavy tails, perceptron": heavy_tails_perceptron,
    "Poisson equation": poisson,
    "coordinate network": coordinates,
    "clipped, perceptron": clipped_perceptron,
    "noisy labels, perceptron": noisy_labels_perceptron,
    "dropout": dropout,
    "variational autoencoder": variational,
    "self-distillation": distillation,
    "text, GRU": gru,
    "curriculum": curriculum,
    "bandit": bandit,
    "adversarial, ring": ring,
    "heavy tails, linear": heavy_tails_linear,
    "heat equation": heat,
    "deep linear": deep_linear,
    "clipped, conv net": clipped_convolutions,
    "noisy labels, conv net": noisy_labels_convolutions,
    "batches of one": single_examples,
    "batch normalisation": normalised,
    "contrastive": contrastive,
    "self-distillation, slow": slow_distillation,
    "text, clipped LSTM": clipped_lstm,
    "text, tied GPT": tied_gpt,
    "changing weights": changing_weights,
    "actor-critic": actor_critic,
    "adversarial, correlated": correlated,
}

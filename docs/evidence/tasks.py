"""The tasks, by name."""

from __future__ import annotations

from collections.abc import Callable

from docs.evidence.classical import logistic_regression, matrix_completion
from docs.evidence.generation import diffusion
from docs.evidence.images import convolutional, perceptron, residual, vision_transformer
from docs.evidence.problems import Problem
from docs.evidence.recommender import recommender
from docs.evidence.sequences import language_model, sequence_to_sequence

# Step rules were chosen on these, and judged on the others.
DESIGN: dict[str, Callable[[], Problem]] = {
    "digits, perceptron": perceptron,
    "digits, conv net": convolutional,
    "text, transformer": language_model,
    "digits, diffusion": diffusion,
    "matrix completion": matrix_completion,
}
HELD_OUT: dict[str, Callable[[], Problem]] = {
    "digits, ResNet": residual,
    "digits, ViT": vision_transformer,
    "transduction, seq2seq": sequence_to_sequence,
    "clicks, DLRM": recommender,
    "tumours, logistic": logistic_regression,
}
TASKS = {**DESIGN, **HELD_OUT}

# Tasks without a score are measured by the loss on the held-out data.
SCORED = [name for name in TASKS if name.startswith(("digits", "matrix", "transd", "tumours"))]
SCORED.remove("digits, diffusion")

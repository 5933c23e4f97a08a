"""Trainers that call the optimizer by themselves, and how the loss reaches it there.

`momo_wrap.integrations.lightning`, `.accelerate` and `.transformers` need the package of that name
and are imported only where they are named. What is here needs none of them.
"""

from momo_wrap.integrations.common import step_metrics, wrapper_of

__all__ = ["step_metrics", "wrapper_of"]

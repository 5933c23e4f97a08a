"""Settings for all tests."""

import torch
from hypothesis import settings

# The problems are tiny: a second thread costs more than it brings.
torch.set_num_threads(1)

# The same examples in every run, and no limit on the time of one: machines are noisy.
settings.register_profile("momo_wrap", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("momo_wrap")

"""Settings for the tests that start several processes."""

import torch.distributed as dist

# Builds of torch without it, and systems that can't fork.
if not (dist.is_available() and dist.is_gloo_available()):
    collect_ignore_glob = ["test_*.py"]

"""Settings for the tests with trainers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from unittest import mock

import pytest
import torch.distributed as dist


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """All later users of accelerate in the process share its settings."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.fixture
def alone_in_ddp() -> Iterator[None]:
    """The variables that a launcher sets for a single process; a trainer makes the group."""
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    more = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "OMP_NUM_THREADS": "1"}
    with mock.patch.dict(os.environ, rank | more):
        yield
        if dist.is_initialized():
            dist.destroy_process_group()

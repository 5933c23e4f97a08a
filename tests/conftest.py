"""Settings for all tests."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The problems are tiny: a second thread costs more than it brings.
torch.set_num_threads(int(os.environ.get("MOMO_TEST_THREADS", "1")))

# The same examples in every run, and no limit on the time of one: machines are noisy.
settings.register_profile("momo_wrap", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("momo_wrap")

TESTS = Path(__file__).parent
# Folders and files whose tests share what takes long once in a process: kernels that are compiled,
# imports of trainers, processes that are forked from a server, pages that are generated.
TOGETHER = (
    "distributed",
    "fast",
    "integrations",
    "sweep",
    "test_compile.py",
    "test_docs.py",
    "test_evidence.py",
    "test_evidence_tasks.py",
    "test_step_cost.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share something expensive in one process; others go to whichever is free."""
    for item in items:
        first = item.path.relative_to(TESTS).parts[0]
        if first in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(first))


def pytest_runtest_setup() -> None:
    """Undo what kernels that torch 2.4 compiles do to a thread: it rounds tiny numbers to 0."""
    torch.set_flush_denormal(False)
    # Collections, which some tests ask for, look only at objects that the test has made.
    gc.freeze()


def pytest_runtest_teardown() -> None:
    gc.unfreeze()

"""Shared by every test: the project on the path, one thread to each of the two processes, and memory given back."""

import gc
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
# The tests' own process keeps its signals, which the processes that it starts would inherit.
sys.modules["rpg_ms.interrupts"] = ModuleType("rpg_ms.interrupts")


@pytest.fixture(scope="module", autouse=True)
def forget_graphs():
    """MindSpore keeps every compiled graph, some 50 MB each, for as long as the process lives: after a file of tests,
    throw them away.
    """
    yield
    if "mindspore" in sys.modules:
        gc.collect()
        sys.modules["mindspore"].ms_memory_recycle()

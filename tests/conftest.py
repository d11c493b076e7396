"""Shared by every test: the project on the path, one thread to each of the two processes."""

import os
import sys
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_NUM_THREADS", "1")
PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
# The tests' own process keeps its signals, which the processes that it starts would inherit.
sys.modules["rpg_ms.interrupts"] = ModuleType("rpg_ms.interrupts")

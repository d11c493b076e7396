"""Rank-based pruning on MindSpore.

"Towards Higher Ranks via Adversarial Weight Pruning" (NeurIPS 2023, arXiv 2311.17493).
"""

from __future__ import annotations

import atexit
import os
import sys

# On AVX-512 processors oneDNN falls back to a reference convolution, tens of times slower, inside MindSpore.
# It reads the variable when MindSpore is imported, so it is set here; a user's own value wins.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

# MindSpore's log from errors upwards: at its default it warns about every device that is not there.
os.environ.setdefault("GLOG_v", "3")

__version__ = "0.1.0"


@atexit.register
def _leave_cells_alone() -> None:
    """When the interpreter exits, MindSpore's Cell.__del__ fails for every cell that is left, with a traceback each."""
    if "mindspore.nn" in sys.modules:
        sys.modules["mindspore.nn"].Cell.__del__ = lambda cell: None

"""Rank-based pruning on MindSpore.

"Towards Higher Ranks via Adversarial Weight Pruning" (NeurIPS 2023, arXiv 2311.17493).
"""
import os

# On AVX-512 processors oneDNN falls back to a reference convolution, tens of times slower, inside MindSpore.
# It reads the variable when MindSpore is imported, so it is set here; a user's own value wins.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

# MindSpore's log from errors upwards: at its default it warns about every device that is not there.
os.environ.setdefault("GLOG_v", "3")

__version__ = "0.1.0"

"""Weights in and out: files of MindSpore and of PyTorch, safetensors, and the names on both sides."""

from __future__ import annotations

from rpg_ms.weights.convert import load_weights, to_pytorch, write_weights
from rpg_ms.weights.files import read_weights
from rpg_ms.weights.names import pytorch_names

__all__ = ["load_weights", "pytorch_names", "read_weights", "to_pytorch", "write_weights"]

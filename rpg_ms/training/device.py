"""Where and how MindSpore runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import mindspore as ms

from rpg_ms.errors import UserError

if TYPE_CHECKING:
    from rpg_ms.config import Config

TARGETS = ("Ascend", "GPU", "CPU")  # in the order of preference


def set_up(config: Config) -> str:
    """Choose device and execution mode and seed MindSpore; returns the device's name.

    Raises:
        UserError: the device asked for is not there, or MindSpore's compile cache is on.
    """
    if os.environ.get("MS_COMPILER_CACHE_ENABLE") == "1":
        # Seen with MindSpore 2.10: its cache knows a graph by its number, so a run with label smoothing took the graph
        # of one without.
        raise UserError(
            "MS_COMPILER_CACHE_ENABLE: 1 lets a run take graphs compiled with another configuration's numbers; unset it"
        )
    available = [target for target in TARGETS if ms.hal.is_available(target)]
    target = available[0] if config.device_target == "auto" else config.device_target
    if target not in available:
        raise UserError(f"device_target: {target} is not available here; available: {', '.join(available)}")
    ms.set_device(target)
    ms.set_context(mode=ms.GRAPH_MODE if config.mode == "graph" else ms.PYNATIVE_MODE)
    ms.set_deterministic(True)
    ms.set_seed(config.seed)
    ms.manual_seed(config.seed)  # of the generator that checkpoints carry; MindSpore 2.7 starts it at random
    return target

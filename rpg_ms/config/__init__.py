"""The typed configuration: its keys, how it is loaded and explained, and the command lines that name one."""

from __future__ import annotations

from rpg_ms.config.command_line import (
    OneLineParser,
    add_checkpoint_arguments,
    add_config_and_device,
    add_shared_arguments,
    config_of,
)
from rpg_ms.config.explaining import reference_table
from rpg_ms.config.keys import (
    METHOD_KEYS,
    SCHEMAS,
    CheckpointConfig,
    Config,
    DataConfig,
    DetectionConfig,
    ModelConfig,
    OptimizerConfig,
    PruningConfig,
    RankConfig,
    ScheduleConfig,
    TrainConfig,
)
from rpg_ms.config.loading import changed_keys, dump_config, find_recipe, load_config, recipes

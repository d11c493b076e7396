"""What a network is trained for. To add a task, write a module with a `Task` and add its row to `TASKS`.

Importing this needs no MindSpore: reports and comparisons only ask which figures a task has.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from rpg_ms.config import Config
    from rpg_ms.tasks.task import Task
    from rpg_ms.training.distributed import World


@dataclass(frozen=True)
class Figure:
    """A figure that a task measures; the higher, the better.

    Args:
        name: its name in summary.json and metrics.jsonl.
        unit: such as "%".
        label: what tables and axes call it.
    """

    name: str
    unit: str
    label: str

    @property
    def axis(self) -> str:
        """The label of an axis."""
        return f"{self.label} ({self.unit})"


@dataclass(frozen=True)
class TaskRow:
    """A task by what is known before it is imported.

    Args:
        implementation: `module:class` of the Task.
        figures: what it measures; the first chooses the best checkpoint and is what tables compare.
    """

    implementation: str
    figures: tuple[Figure, ...]

    @property
    def figure(self) -> Figure:
        """The figure that chooses the best checkpoint."""
        return self.figures[0]


TASKS: dict[str, TaskRow] = {
    "classification": TaskRow("rpg_ms.tasks.classification:Classification", (Figure("top1", "%", "top-1 accuracy"),))
}


def create_task(config: Config, world: World, weights: Optional[str] = None) -> Task:
    """The task of a configuration.

    Args:
        config: `rpg_ms.config.Config`.
        world: `rpg_ms.training.distributed.World`, whose processes share the data.
        weights: None reads the dataset. A checkpoint: the dataset is not read, and what only it would tell, such as how
            many classes there are, is taken from the file. Such a task has a network, but no batches.

    Raises:
        UserError: the dataset cannot be read, or does not fit the configuration.
    """
    module, _, name = TASKS[config.task].implementation.partition(":")
    return getattr(importlib.import_module(module), name)(config, world, weights)

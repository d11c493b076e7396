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
        of_masks: whether only a network with masks has it (`model.masks`).
    """

    name: str
    unit: str
    label: str
    of_masks: bool = False

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
        keys: keys and groups of the configuration that no other task takes.
        exclude: patterns of the layers that pruning leaves out unless `pruning.exclude` says otherwise.
    """

    implementation: str
    figures: tuple[Figure, ...]
    keys: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


TASKS: dict[str, TaskRow] = {
    "classification": TaskRow(
        "rpg_ms.tasks.classification:Classification",
        (Figure("top1", "%", "top-1 accuracy"),),
        keys=("model.pool_padding", "train.label_smoothing", "train.mixup", "train.cutmix", "distill"),
    ),
    "detection": TaskRow(
        "rpg_ms.tasks.detection:Detection",
        (
            Figure("mask_ap", "%", "mask AP", of_masks=True),
            Figure("mask_ap50", "%", "mask AP50", of_masks=True),
            Figure("box_ap", "%", "box AP"),
            Figure("box_ap50", "%", "box AP50"),
        ),
        keys=("model.masks", "detection"),
        # The predictors: classes and boxes of anchors and of objects, and masks. Their weights are small, so that one
        # cut through all layers would leave them next to none.
        exclude=("*_logits", "*.bbox_pred", "*.cls_score"),
    ),
}


def figures_of(config: Config) -> tuple[Figure, ...]:
    """What a configuration's task measures; the first chooses the best checkpoint and is what tables compare."""
    return tuple(figure for figure in TASKS[config.task].figures if config.model.masks or not figure.of_masks)


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

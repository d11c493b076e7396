"""Runs as plain numbers: what was logged, and what the newest checkpoint looks like layer by layer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np

from rpg_ms.config import Config, load_config
from rpg_ms.errors import UserError
from rpg_ms.json_files import NUMBER, check, parse_json
from rpg_ms.pruning.allocation import at_floor
from rpg_ms.pruning.structure import structural_rank
from rpg_ms.rank import full_rank, numeric_rank
from rpg_ms.rank.numeric import with_bar
from rpg_ms.tasks import Figure, create_task, figures_of
from rpg_ms.training.run_folder import read_summary

if TYPE_CHECKING:
    from mindspore import nn

    from rpg_ms.cells import MaskedLayer

# What the lines of metrics.jsonl must have to be drawn.
RECORDS = {
    "start": {"density": NUMBER},
    "train": {"step": int, "loss": NUMBER, "lr": NUMBER},
    "topology": {"step": int, "density": NUMBER, "ranks": list},
    "evaluation": {"step": int},  # and the task's figure
}


@dataclass(frozen=True)
class Layer:
    """One prunable layer; ranks are those of the weight viewed as `shape[0] x rest`."""

    name: str
    shape: tuple[int, ...]
    in_rank_term: bool
    weights: int
    nonzero: int  # positions that the mask keeps
    full_rank: int
    structural_rank: int  # of the mask
    numeric_rank: int  # of the weight
    filters: int
    dead_filters: int
    dense_flops: int  # multiply-adds for one image
    flops: int  # of the non-zeros

    @property
    def density(self) -> float:
        """Share of the weights that are kept."""
        return self.nonzero / self.weights

    @property
    def numeric_share(self) -> float:
        """Numeric rank / full rank."""
        return self.numeric_rank / self.full_rank

    @property
    def structural_share(self) -> float:
        """Structural rank / full rank."""
        return self.structural_rank / self.full_rank


@dataclass(frozen=True)
class Run:
    """One training run; `step` and `layers` are those of its newest checkpoint.

    `start`, `train`, `topology` and `evaluation` are the lines of metrics.jsonl, dicts; those of an unfinished
    run, whose `summary` is None, may go beyond that step.
    """

    label: str
    folder: Path
    config: Config
    summary: Optional[dict]
    step: int
    total_steps: int
    seconds: float
    start: list[dict]
    train: list[dict]
    topology: list[dict]
    evaluation: list[dict]
    layers: list[Layer]
    other_parameters: int  # never pruned: biases, norms, embeddings, excluded layers ...
    other_flops: int  # multiply-adds for one image of the layers that are not pruned

    def total(self, figure: str) -> Union[int, float]:
        """Sum over the layers of one of their figures, such as "weights"."""
        return sum(getattr(layer, figure) for layer in self.layers)

    def mean(self, figure: str) -> float:
        """Mean over the layers of one of their figures, such as "numeric_share"."""
        return self.total(figure) / len(self.layers)

    def is_at_floor(self, layer: Layer) -> bool:
        """Whether pruning has left a layer no more weights than it must."""
        return at_floor(layer.nonzero, layer.weights, self.config.pruning.min_per_layer)

    @property
    def density(self) -> float:
        """Share of the prunable weights that are kept."""
        return self.total("nonzero") / self.total("weights")

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that are gone, percent, to two decimals."""
        return round(100 * (1 - self.density), 2)

    @property
    def figure(self) -> Figure:
        """The `rpg_ms.tasks.Figure` that the run is measured by."""
        return figures_of(self.config)[0]

    @property
    def measured(self) -> Optional[float]:
        """That figure in the newest evaluation, or None before the first."""
        if self.summary is not None:
            return self.summary[self.figure.name]
        return self.evaluation[-1][self.figure.name] if self.evaluation else None

    @property
    def state(self) -> str:
        """What the run has come to, for a reader."""
        if self.summary is not None:
            return f"finished, {self.step} steps"
        return f"unfinished at step {self.step} of {self.total_steps}"

    @property
    def rank_updates(self) -> list[dict[str, Any]]:
        """The lines of the topology updates that computed the rank term."""
        return [line for line in self.topology if line["ranks"]]


def load_run(folder: Union[str, os.PathLike], label: Optional[str] = None) -> Run:
    """Read the folder of a run, finished or not; the dataset is not needed.

    Args:
        label: what the run is called, and which runs are seeds of one another; None for its pruning method.

    Raises:
        UserError: not a run's folder, a run without checkpoint yet, or files that are damaged.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        why = "it has no config.yaml" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: not the folder of a run: {why}")
    config = load_config(folder / "config.yaml")
    if not (folder / "last.ckpt").exists():
        why = "has no checkpoint yet" if (folder / "metrics.jsonl").exists() else "was not started"
        raise UserError(f"{folder}: the run {why}: no last.ckpt")
    records = _read_metrics(folder / "metrics.jsonl", figures_of(config)[0].name)
    summary = read_summary(folder, config)
    found = _read_checkpoint(folder / "last.ckpt", config)
    in_rank_term = sum(layer.in_rank_term for layer in found["layers"])
    for line in records["topology"]:
        if len(line["ranks"]) not in (0, in_rank_term) or not all(type(k) is int for k in line["ranks"]):
            raise UserError(
                f"{folder / 'metrics.jsonl'}: step {line['step']}: ranks is not a list of "
                f"{in_rank_term} integers, one a layer of the rank term"
            )
    return Run(config.pruning.method if label is None else label, folder, config, summary, **records, **found)


def _read_metrics(path: Path, figure: str) -> dict[str, list[dict[str, Any]]]:
    """`{event: [line, ...]}`; a last line that a killed run left half written is passed over."""
    wanted = {**RECORDS, "evaluation": {**RECORDS["evaluation"], figure: NUMBER}}
    records = {event: [] for event in RECORDS}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = parse_json(text, {"event": str})
            check(line, wanted.get(line["event"], {}))
        except ValueError as error:
            if number == len(lines):  # it does not end with a line break
                continue
            raise UserError(f"{path}: line {number}: {error}") from None
        if line["event"] in records:
            records[line["event"]].append(line)
    return records


def _read_checkpoint(path: Path, config: Config) -> dict[str, Any]:
    """The fields of a `Run` that its checkpoint tells."""
    from rpg_ms.models.flops import layer_flops, parameter_count
    from rpg_ms.training import build, checkpoint
    from rpg_ms.training.distributed import ALONE

    task = create_task(config, ALONE, weights=path)
    network, sparsified = build.build_network(config, task, mixed_precision=False)
    state = checkpoint.load_network(path, network, sparsified)
    if state["step"] is None:
        raise UserError(f"{path}: not a checkpoint of a training run")
    cells = {id(cell.weight): cell for _, cell in network.cells_and_names() if hasattr(cell, "weight")}
    flops, other_flops = layer_flops(network, sparsified, task.input_shape)
    return {
        **{name: state[name] for name in ("step", "total_steps", "seconds")},
        "layers": [
            _layer(layer, cells[id(layer.weight)], config.rank.include_dense, *costs)
            for layer, costs in with_bar(list(zip(sparsified.layers, flops)))
        ],
        "other_parameters": parameter_count(network) - sparsified.prunable,
        "other_flops": other_flops,
    }


def _layer(layer: MaskedLayer, cell: nn.Cell, rank_takes_dense: bool, dense_flops: int, flops: int) -> Layer:
    from rpg_ms.cells.masked import TRANSPOSED

    weight, mask = layer.weight.asnumpy(), layer.mask.asnumpy()
    groups = getattr(cell, "group", getattr(cell, "groups", 1))  # as nn's and as mint's layers call it
    dead, filters = dead_filters(weight, isinstance(cell, TRANSPOSED), groups)
    return Layer(
        name=layer.name,
        shape=weight.shape,
        in_rank_term=rank_takes_dense or layer.kind == "conv",
        weights=weight.size,
        nonzero=int(mask.sum()),
        full_rank=full_rank(weight),
        structural_rank=structural_rank(mask),
        numeric_rank=numeric_rank(weight),
        filters=filters,
        dead_filters=dead,
        dense_flops=dense_flops,
        flops=flops,
    )


def dead_filters(weight: np.ndarray, transposed: bool = False, groups: int = 1) -> tuple[int, int]:
    """How many output channels of a layer have no weight but zeros, and how many there are.

    Args:
        weight: array `[outputs, inputs / groups, ...]`; of a transposed convolution `[inputs, outputs / groups, ...]`.
        transposed: whether it is one; only then `groups` matter, which other weights tell by their shape.
    """
    if transposed:
        alive = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).any(axis=(1, 3))
    else:
        alive = weight.reshape(len(weight), -1).any(axis=1)
    return int(np.count_nonzero(~alive)), alive.size


def by_label_and_sparsity(runs: Iterable[Run]) -> dict[tuple[str, float], list[Run]]:
    """`{(label, sparsity): [Run, ...]}` of the finished runs, in the order given."""
    groups = {}
    for run in runs:
        if run.summary is not None:
            groups.setdefault((run.label, run.sparsity), []).append(run)
    return groups

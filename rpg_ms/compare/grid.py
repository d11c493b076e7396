"""The grid of a comparison: a training run for every method, density and seed, each in its own folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, Optional

from rpg_ms.config import Config, load_config
from rpg_ms.errors import UserError
from rpg_ms.pruning.methods import METHODS, Method
from rpg_ms.training.run_folder import lost_configuration, other_configuration, read_summary

# Keys that the command line gives to every run, and those that must be the same in all rows of a table.
RUN_KEYS = {
    "pruning.method": "--methods",
    "pruning.density": "--densities",
    "seed": "--seeds",
    "output_dir": "--output_dir",
}
SHARED_KEYS = {
    key: "--set, for all methods alike"
    for key in ("task", "data.name", "data.root", "data.limit", "data.validation", "device_target")
}
# What a method is: a file's values hold for the file's own method, the others have those of their rows.
METHOD_SETTINGS = [
    *(f"pruning.{key}=null" for key in ("schedule", "allocation", "start", "drop", "grow", "alpha")),
    "rank.lambda=null",
    "rank.delta=null",
]


@dataclass(frozen=True)
class Entry:
    """One row of the table: a method under a label, with settings (`a.b=value`) of its own."""

    label: str
    method: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class GridRun:
    """One training run of a comparison; `entry` is its row in the table."""

    entry: Entry
    density: float
    seed: int
    config: Config  # resolved; its `output_dir` is the run's folder
    arguments: tuple[str, ...]  # of `rpg-ms train`, which start the run or let it go on

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def name(self) -> str:
        """The run in words, for messages."""
        return f"{self.entry.label} at {percent(1 - self.density)} sparsity, seed {self.seed}"

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run, finished or not."""
        return (self.folder / "config.yaml").is_file()

    def summary(self) -> Optional[dict[str, Any]]:
        """The figures of the finished run, or None."""
        return read_summary(self.folder, self.config)


def percent(fraction: float) -> str:
    """A fraction in percent, such as "99.5 %"."""
    return f"{round(100 * fraction, 4):g} %"


def parse_entry(text: str) -> Entry:
    """An entry of --methods: `METHOD`, `LABEL=METHOD` or `LABEL=METHOD,key=value,key=value`.

    Raises:
        UserError: not of that form, settings without a label, an unknown method, or a key not a row's to set.
    """

    def refuse(why: str) -> NoReturn:
        raise UserError(f"--methods: {text!r}: {why}")

    # A comma divides settings only before the next key: values may be lists, such as [0.5,0.75].
    head, *settings = re.split(r",(?=\s*[\w.]+\s*=)", text)
    label, equals, method = head.partition("=")
    if not equals:
        method = label
        if settings:
            refuse(f"settings need a label of their own: LABEL={text}")
    if not label.strip() or not text.isprintable():
        refuse("not of the form METHOD or LABEL=METHOD,key=value")
    if method not in METHODS:
        refuse(f"{method!r} is not one of {', '.join(METHODS)}")
    _refuse_keys(settings, {**RUN_KEYS, **SHARED_KEYS}, f"--methods: {text!r}")
    return Entry(label.strip(), method, tuple(settings))


def plan(
    config_file: str,
    entries: Sequence[Entry],
    densities: Sequence[float],
    seeds: Sequence[int],
    output_dir: str,
    settings: Sequence[str] = (),
    device_target: Optional[str] = None,
) -> list[GridRun]:
    """The runs of a comparison, seed by seed: a table of one seed is complete before the next seed begins.

    A method that does not prune has one run a seed, at density 1. An entry's settings win over `settings`, and
    these over the file. What the file says of its own method (its α, λ, density schedule ...) is not taken over by
    other methods, whose published values are in `rpg_ms.pruning.methods`. Its calendar is, except by methods with one
    of their own.

    Raises:
        UserError: a run whose configuration is refused, two runs that would share a folder, a key in
            `settings` that is the comparison's own, or a folder that holds a run with another configuration.
    """
    for flag, values in (("--densities", densities), ("--seeds", seeds)):
        _refuse_repeats(values, flag)
    for density in densities:
        if not 0 < density <= 1:
            raise UserError(f"--densities: {density!r} is not in (0, 1]")
    _refuse_repeats([entry.label for entry in entries], "--methods: label")
    _refuse_keys(settings, RUN_KEYS, "--set")
    # What is wrong here is no entry's fault.
    file_method = load_config(config_file, settings, device_target=device_target).pruning.method
    runs = []
    for seed in seeds:
        for entry in entries:
            for density in densities if METHODS[entry.method].prunes else [1.0]:
                own = () if entry.method == file_method else _own_values(METHODS[entry.method], METHODS[file_method])
                runs.append(_run(config_file, entry, density, seed, output_dir, (*own, *settings), device_target))
    _refuse_repeats([run.folder.name for run in runs], "--methods: the labels lead to the same folder")
    for run in runs:
        _check_folder(run)
    return runs


def _own_values(row: Method, of_file: Method) -> list[str]:
    """Settings that put a method's own values in place of a file's, which are of the method `of_file`."""
    plain = {field.name: field.default for field in fields(Method)}
    settings = METHOD_SETTINGS.copy()
    if row.update_every != plain["update_every"]:
        settings.append("pruning.update_every=null")
    if row.update_every != plain["update_every"] or row.start != plain["start"]:
        settings.append("pruning.warmup_updates=0")  # it counts the file's updates
    if (row.prune_until, row.freeze_after) != (plain["prune_until"], plain["freeze_after"]):
        settings += ["pruning.prune_until=null", "pruning.freeze_after=null"]
    if row.clip_norm != of_file.clip_norm:
        settings.append("train.clip_norm=null")
    return settings


def _run(
    config_file: str,
    entry: Entry,
    density: float,
    seed: int,
    output_dir: str,
    settings: Sequence[str],
    device_target: Optional[str],
) -> GridRun:
    label = re.sub(r"[^\w.+-]+", "_", entry.label)
    folder = os.path.join(output_dir, f"{label}_d{density:.10g}_s{seed}")
    overrides = (*settings, *entry.settings, f"pruning.method={entry.method}", f"pruning.density={density!r}")
    try:
        config = load_config(config_file, overrides, seed=seed, device_target=device_target, output_dir=folder)
    except UserError as error:
        raise UserError(f"{entry.label}: {error}") from None
    arguments = ("--config", config_file, "--resume", "auto", "--set", *overrides, "--seed", str(seed))
    if device_target is not None:
        arguments += ("--device_target", device_target)
    return GridRun(entry, density, seed, config, (*arguments, "--output_dir", folder))


def _check_folder(run: GridRun) -> None:
    path = run.folder / "config.yaml"
    if run.begun and (changes := other_configuration(path, run.config)):
        raise UserError(
            f"{path}: the run began with another configuration: {changes}; give the method "
            "another label, or the comparison another --output_dir"
        )
    if lost_configuration(run.folder):
        raise UserError(f"{run.folder}: a run without config.yaml: with which settings is unknown")
    run.summary()  # refused here if it is damaged, before anything runs


def _refuse_keys(settings: Iterable[str], taken: dict, source: str) -> None:
    """Refuse settings of keys, or of groups with keys, that are given in another way."""
    for setting in settings:
        dotted = ".".join(part.strip() for part in setting.partition("=")[0].split("."))
        for key, given_by in taken.items():
            if key == dotted or key.startswith(f"{dotted}."):
                raise UserError(f"{source}: {setting}: {key} is given by {given_by}")


def _refuse_repeats(values: Sequence, what: str) -> None:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise UserError(f"{what}: {value} is given twice")

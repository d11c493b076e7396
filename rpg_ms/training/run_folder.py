"""A run's folder: `config.yaml`, `metrics.jsonl`, checkpoints and, when finished, `summary.json`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

from rpg_ms.config import Config, changed_keys, dump_config, load_config
from rpg_ms.errors import UserError
from rpg_ms.files import UNFINISHED, atomic_path
from rpg_ms.json_files import NUMBER, read_json
from rpg_ms.tasks import figures_of

# Keys that do not change what a run computes; all others stand fast when it is resumed.
FREE_ON_RESUME = (
    "checkpoint.every_steps",
    "checkpoint.keep",
    "data.root",
    "data.workers",
    "train.sink_size",
    "output_dir",
)

# What is there once a run has begun, besides config.yaml.
TRACES = ("summary.json", "checkpoints", "last.ckpt", "best.ckpt", "metrics.jsonl")


def other_configuration(config_path: Union[str, os.PathLike], config: Config) -> str:
    """What in `config` changes the result of the run with this config.yaml: "key (was old, now new), ...", or ""."""
    changes = changed_keys(load_config(config_path), config)
    return ", ".join(
        f"{key} (was {old}, now {new})" for key, (old, new) in changes.items() if key not in FREE_ON_RESUME
    )


def read_summary(folder: Union[str, os.PathLike], config: Config) -> Optional[dict[str, Any]]:
    """The summary of a finished run, or None.

    Args:
        folder: the run's.
        config: the run's, whose task's figures the summary must have.

    Raises:
        UserError: the file is damaged.
    """
    figures = {figure.name: NUMBER for figure in figures_of(config)}
    return read_json(Path(folder) / "summary.json", {**figures, "steps": int, "seconds": NUMBER})


def traces(folder: Union[str, os.PathLike]) -> list[str]:
    """The names of what an earlier run left in its folder; [] if it left nothing, or there is no folder.

    Raises:
        UserError: the folder cannot be looked into.
    """
    try:
        there = set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        there = set()
    except OSError as error:
        raise UserError(f"output_dir: {folder} cannot be read: {error.strerror}") from None
    return [name for name in TRACES if name in there]


def lost_configuration(folder: Union[str, os.PathLike]) -> bool:
    """Whether a run left results in the folder, but no config.yaml to say how they were made.

    A run that was killed while it began leaves an empty metrics.jsonl alone, and may begin again.
    """
    return bool(set(traces(folder)) - {"metrics.jsonl"}) and not (Path(folder) / "config.yaml").exists()


def may_train(config: Config, resume: bool, allow_changes: bool, overwrite: bool) -> bool:
    """Whether training in the folder is neither finished nor refused, as far as can be seen without touching it."""
    if resume:
        return NoFolder(config, resume, allow_changes).summary() is None
    return overwrite or not traces(config.output_dir)


class NoFolder:
    """The run's folder to the ranks that only read it; arguments as of `RunFolder`."""

    def __init__(self, config: Config, resume: bool = False, allow_changes: bool = False) -> None:
        self.config = config
        self.path = Path(config.output_dir)
        self.allow_changes = allow_changes
        config_path = str(self.path / "config.yaml")
        self.changes = other_configuration(config_path, config) if resume and os.path.exists(config_path) else ""

    def summary(self) -> Optional[dict[str, Any]]:
        """The summary of a finished run, or None; with a changed configuration it may have become longer."""
        return None if self.changes else read_summary(self.path, self.config)

    def begin(self) -> None:
        """Nothing."""

    def log(self, event: str, **figures: Any) -> None:
        """Nothing."""

    def metrics_length(self) -> int:
        """Nothing: 0."""
        return 0

    def cut_metrics(self, length: int) -> None:
        """Nothing."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing."""


class RunFolder(NoFolder):
    """The files of one training run. One that goes on is left as it is until `begin`.

    Args:
        config: the resolved configuration; `config.output_dir` is the folder, made if it is missing.
        resume: whether an earlier run in the folder goes on.
        allow_changes: whether a resumed run may go on with a configuration that changes its result.
        overwrite: whether an earlier run in the folder may be replaced.

    Raises:
        UserError: the folder cannot be written, holds an earlier run that is neither to be replaced nor to go on, or
            one that began with another configuration, or another process is at work in it.
    """

    def __init__(
        self, config: Config, resume: bool = False, allow_changes: bool = False, overwrite: bool = False
    ) -> None:
        super().__init__(config, resume, allow_changes)
        try:
            self._make_ready(overwrite, resume)
        except OSError as error:
            raise UserError(f"output_dir: {self.path} cannot be written: {error.strerror}") from None

    def _make_ready(self, overwrite: bool, resume: bool) -> None:
        metrics_path = self.path / "metrics.jsonl"
        earlier = traces(self.path)
        if earlier and not (overwrite or resume):
            raise UserError(
                f"output_dir: {self.path} already holds a run ({', '.join(earlier)}); "
                "choose another folder, let it go on with --resume auto, or replace it with --overwrite"
            )
        if resume and lost_configuration(self.path) and not self.allow_changes:
            raise UserError(
                f"output_dir: {self.path} holds a run without config.yaml: with which configuration it began "
                "is unknown; --allow_changes goes on all the same"
            )
        if self.changes and not self.allow_changes:
            raise UserError(
                f"{self.path / 'config.yaml'}: the run began with another configuration: {self.changes}; "
                "--allow_changes goes on all the same"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._metrics = open(metrics_path, "ab")
        self._keep_others_out()
        if not resume:
            self._metrics.truncate(0)
            for path in (self.path / name for name in earlier):
                if path != metrics_path:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            (self.path / "config.yaml").unlink(missing_ok=True)  # the earlier run's; `begin` writes this one's
        for folder in (self.path, self.path / "checkpoints"):
            for left_behind in folder.glob(f"{UNFINISHED}*"):  # by a run that was killed
                shutil.rmtree(left_behind)

    def _keep_others_out(self) -> None:
        """Hold the lock of metrics.jsonl for as long as the process lives."""
        try:  # a lock that worker processes do not inherit: those of a killed run keep nobody out
            fcntl.lockf(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"output_dir: another process is at work in {self.path}") from None
        except OSError:
            pass  # a file system without locks

    def begin(self) -> None:
        """From here on the folder is this configuration's."""
        if self.changes:
            (self.path / "summary.json").unlink(missing_ok=True)
        self._write_text("config.yaml", dump_config(self.config))

    def log(self, event: str, **figures: Any) -> None:
        """Append one line to metrics.jsonl."""
        self._metrics.write((json.dumps({"event": event, **figures}) + "\n").encode())
        self._metrics.flush()

    def metrics_length(self) -> int:
        """Bytes of metrics.jsonl, all of them on disk."""
        os.fsync(self._metrics.fileno())
        return self._metrics.tell()

    def cut_metrics(self, length: int) -> None:
        """Drop the lines that were logged after a checkpoint; a file that lost lines keeps what it has."""
        self._metrics.truncate(min(length, os.fstat(self._metrics.fileno()).st_size))
        self._metrics.seek(0, os.SEEK_END)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json: the run is complete."""
        self._write_text("summary.json", json.dumps(summary, indent=2) + "\n")

    def _write_text(self, name: str, text: str) -> None:
        with atomic_path(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

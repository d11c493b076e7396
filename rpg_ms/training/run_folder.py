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
    changes = changed_keys(load_config(config_path), config).items()
    return ", ".join(f"{key} (was {old}, now {new})" for key, (old, new) in changes if key not in FREE_ON_RESUME)


def read_summary(folder: Union[str, os.PathLike], config: Config) -> Optional[dict[str, Any]]:
    """The summary of the finished run in a folder, or None; UserError if it is damaged.

    `config` is the run's, whose task's figures it must have.
    """
    figures = {figure.name: NUMBER for figure in figures_of(config)}
    return read_json(Path(folder) / "summary.json", {**figures, "steps": int, "seconds": NUMBER})


def traces(folder: Union[str, os.PathLike]) -> list[str]:
    """The names of what an earlier run left in its folder; UserError if that cannot be looked into."""
    try:
        there = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"output_dir: {folder} cannot be read: {error.strerror}") from None
    return [name for name in TRACES if name in there]


def lost_configuration(folder: Union[str, os.PathLike]) -> bool:
    """Whether a run left results in the folder, but no config.yaml to say how they were made.

    A run that was killed while it began leaves an empty metrics.jsonl alone, and may begin again.
    """
    return bool(set(traces(folder)) - {"metrics.jsonl"}) and not (Path(folder) / "config.yaml").exists()


class RunFolder:
    """The files of one training run. What an earlier one left is as it was until `begin`, or `open` to overwrite it.

    Args:
        config: the resolved configuration; `config.output_dir` is the folder.
        resume, overwrite: whether an earlier run in the folder goes on, or may be replaced.
        allow_changes: whether a resumed run may go on with a configuration that changes its result.
        writes: whether this is the process that checks and writes the files; to the others they are read-only.

    Raises:
        UserError: the folder holds an earlier run that is neither to be replaced nor to go on, or one that began with
            another configuration.
    """

    def __init__(self, config: Config, resume: bool, allow_changes: bool, overwrite: bool, writes: bool) -> None:
        self.config, self.path = config, Path(config.output_dir)
        self.resume, self.allow_changes, self.writes = resume, allow_changes, writes
        config_path = self.path / "config.yaml"
        self.changes = other_configuration(config_path, config) if resume and os.path.exists(config_path) else ""
        earlier = traces(self.path) if writes else []
        if earlier and not (overwrite or resume):
            raise UserError(
                f"output_dir: {self.path} already holds a run ({', '.join(earlier)}); "
                "choose another folder, let it go on with --resume auto, or replace it with --overwrite"
            )
        if allow_changes or not resume or not writes:
            return
        if lost_configuration(self.path):
            raise UserError(
                f"output_dir: {self.path} holds a run without config.yaml: with which configuration it began "
                "is unknown; --allow_changes goes on all the same"
            )
        if self.changes:
            raise UserError(
                f"{config_path}: the run began with another configuration: {self.changes}; "
                "--allow_changes goes on all the same"
            )

    def summary(self) -> Optional[dict[str, Any]]:
        """The summary of a finished run that goes on, or None; a changed configuration may have made it longer."""
        return read_summary(self.path, self.config) if self.resume and not self.changes else None

    def open(self) -> None:
        """Make the folder, keep other processes out of it, and clear what does not go on.

        Raises:
            UserError: the folder cannot be written, or another process is at work in it.
        """
        if not self.writes:
            return
        metrics_path = self.path / "metrics.jsonl"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            earlier = traces(self.path)
            self._metrics = open(metrics_path, "ab")
            self._keep_others_out()
            if not self.resume:
                self._metrics.truncate(0)
                for path in (self.path / name for name in earlier):
                    if path != metrics_path:
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                (self.path / "config.yaml").unlink(missing_ok=True)  # the earlier run's; `begin` writes this one's
            for folder in (self.path, self.path / "checkpoints"):
                for left_behind in folder.glob(f"{UNFINISHED}*"):  # by a run that was killed
                    shutil.rmtree(left_behind)
        except OSError as error:
            raise UserError(f"output_dir: {self.path} cannot be written: {error.strerror}") from None

    def _keep_others_out(self) -> None:
        """Hold the lock of metrics.jsonl for as long as the process lives."""
        try:  # a lock that worker processes do not inherit: those of a killed run keep nobody out
            fcntl.lockf(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"output_dir: another process is at work in {self.path}") from None
        except OSError:
            pass  # a file system without locks

    def begin(self, metrics_length: int) -> None:
        """From here on the folder is this configuration's, and metrics.jsonl ends where the last checkpoint has it.

        A metrics.jsonl that lost lines keeps what it has.
        """
        if self.writes:
            if self.changes:
                (self.path / "summary.json").unlink(missing_ok=True)
            self._write_text("config.yaml", dump_config(self.config))
            self._metrics.truncate(min(metrics_length, os.fstat(self._metrics.fileno()).st_size))
            self._metrics.seek(0, os.SEEK_END)

    def log(self, event: str, **figures: Any) -> None:
        """Append one line to metrics.jsonl."""
        if self.writes:
            self._metrics.write((json.dumps({"event": event, **figures}) + "\n").encode())
            self._metrics.flush()

    def metrics_length(self) -> int:
        """Bytes of metrics.jsonl, all of them on disk."""
        if not self.writes:
            return 0
        os.fsync(self._metrics.fileno())
        return self._metrics.tell()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json: the run is complete."""
        if self.writes:
            self._write_text("summary.json", json.dumps(summary, indent=2) + "\n")

    def _write_text(self, name: str, text: str) -> None:
        with atomic_path(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

"""A run's folder: `config.yaml`, `metrics.jsonl`, `last.ckpt` and, when finished, `summary.json`."""
from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path

from rpg_ms.config import dump_config
from rpg_ms.errors import UserError


@contextmanager
def atomic_path(path):
    """A temporary path beside `path` to write to; renamed to it, safely on disk, when the block ends without error."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the rename itself survives a power cut
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


class NoFolder:
    """Stands in for the folder on the ranks that write nothing."""

    def __init__(self, config):
        self.checkpoint = Path(config.output_dir) / "last.ckpt"

    def log(self, event, **figures):
        """Nothing."""

    def finish(self, summary):
        """Nothing."""


class RunFolder:
    """The files of one training run.

    Args:
        config: the resolved configuration; `config.output_dir` is the folder, made if it is missing.
        overwrite: whether an earlier run in the folder may be replaced.

    Raises:
        UserError: the folder cannot be written, or holds an earlier run.
    """

    def __init__(self, config, overwrite=False):
        self.path = Path(config.output_dir)
        self.checkpoint = self.path / "last.ckpt"
        metrics = self.path / "metrics.jsonl"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            earlier = [file.name for file in (self.path / "summary.json", self.checkpoint, metrics) if file.exists()]
            if earlier and not overwrite:
                raise UserError(f"output_dir: {self.path} already holds a run ({', '.join(earlier)}); choose another "
                                "folder, or replace it with --overwrite")
            for name in earlier:
                (self.path / name).unlink()
            self._write_text("config.yaml", dump_config(config))
            self._metrics = open(metrics, "a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"output_dir: {self.path} cannot be written: {error.strerror}") from None

    def log(self, event, **figures):
        """Append one line to metrics.jsonl."""
        self._metrics.write(json.dumps({"event": event, **figures}) + "\n")
        self._metrics.flush()

    def finish(self, summary):
        """Write summary.json: the run is complete."""
        self._write_text("summary.json", json.dumps(summary, indent=2) + "\n")

    def _write_text(self, name, text):
        with atomic_path(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

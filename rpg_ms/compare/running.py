"""Running what a comparison asks for, one after the other, each in a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Optional, Union

from rpg_ms.compare.grid import GridRun
from rpg_ms.compare.results import environment
from rpg_ms.errors import UserError
from rpg_ms.files import atomic_path
from rpg_ms.tasks import figures_of


@contextmanager
def _only_one_at_work(folder: Union[str, os.PathLike]) -> Iterator[int]:
    """Hold the folder's lock, made with it, during the block; gives the lock's file descriptor.

    Runs inherit the lock: one that goes on by itself, because compare was killed, keeps others out as well.

    Raises:
        UserError: the folder cannot be written, or another comparison is at work in it.
    """
    path = Path(folder) / "compare.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")
    except OSError as error:
        raise UserError(f"--output_dir: {folder} cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--output_dir: another comparison, or a run that it started, is at work in {folder}"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield file.fileno()


class Interruption:
    """Within the block Ctrl-C and SIGTERM end the child, not this process; a second one ends it at once.

    Attributes:
        signal: the signal that came first, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal = None
        self._child = None

    def __enter__(self) -> Interruption:
        self._before = [signal.signal(number, self._received) for number in self.SIGNALS]
        self._wakeup = signal.set_wakeup_fd(-1)  # `rpg_ms.interrupts` would end this process at the second one
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self.SIGNALS, self._before):
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)

    def _received(self, number: int, _frame: Optional[FrameType]) -> None:
        again = self.signal is not None
        self.signal = self.signal or signal.Signals(number)
        if self._child is not None:
            self._child.kill() if again else self._child.terminate()

    def call(self, command: Sequence[str], **options: Any) -> int:
        """As `subprocess.call`, for a child that ignores Ctrl-C: it would end without a checkpoint."""
        with subprocess.Popen(command, preexec_fn=_ignore_ctrl_c, **options) as self._child:
            if self.signal is not None:  # it came before there was a child
                self._child.terminate()
            status = self._child.wait()
        self._child = None
        return status


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_missing(
    runs: Sequence[GridRun], output_dir: Union[str, os.PathLike], write: Callable[[Mapping[Path, str]], None]
) -> tuple[dict[Path, str], Optional[signal.Signals]]:
    """Run what is not finished, one after the other, with a line on stdout each; a failure ends no other.

    Returns `(failures, signal)`: why runs failed, by the run's folder; and the signal that stopped it, or None. `write`
    is called with the failures so far before the first run and after every run.
    """
    failures = {}
    with _only_one_at_work(output_dir) as lock, Interruption() as interruption:
        write(failures)
        for number, run in enumerate(runs, 1):
            print(f"[{number}/{len(runs)}] {run.name}: ", end="", flush=True)
            if run.summary() is not None:
                print(f"{_in_words(run)}, there already", flush=True)
                continue
            failure = None if interruption.signal else _train(run, interruption, lock)
            if interruption.signal and run.summary() is None:
                print("stopped", flush=True)
                break
            if failure is not None:
                failures[run.folder] = failure
            print(f"failed: {failure}" if failure is not None else _in_words(run), flush=True)
            write(failures)
        write(failures)
    return failures, interruption.signal


def _in_words(run: GridRun) -> str:
    summary, figure = run.summary(), figures_of(run.config)[0]
    return f"{figure.label} {summary[figure.name]:.2f} {figure.unit}, {summary['seconds'] / 60:.1f} min"


def _train(run: GridRun, interruption: Interruption, lock: int) -> Optional[str]:
    """Train a run to its end, from its last checkpoint if there is one; what it prints goes to train.log.

    Returns None, or in one line why the run failed.
    """
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(run.folder / "environment.json") as path:
            path.write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")
        with open(run.folder / "train.log", "a+b") as log:
            start = log.seek(0, os.SEEK_END)
            status = interruption.call(
                [sys.executable, "-m", "rpg_ms", "train", *run.arguments],
                pass_fds=[lock],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            log.seek(start)
            printed = log.read().decode(errors="replace")
    except OSError as error:
        return f"{run.folder} cannot be written: {error.strerror}"
    try:
        return None if run.summary() is not None else reason(printed, status)
    except UserError as error:
        return str(error)


def reason(printed: str, status: int) -> str:
    """One line on why a run failed, from what it printed and its exit status."""
    lines = [line for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(rpg-ms train: error: |[\w.]+(Error|Exception)\b)", line)]
    said = (errors or lines or ["it printed nothing"])[-1].strip().replace("rpg-ms train: error: ", "")[:300]
    ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"{said} ({ended})"

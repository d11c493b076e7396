"""Errors meant for the user, and the door that turns them into one line and an exit status."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, Callable, NoReturn, TextIO


class UserError(Exception):
    """Something the user can put right; one line: what was given, what is allowed, where it came from."""


class RunStopped(UserError):
    """A run that was under way had to stop; `status` is the program's exit status, 1 unless a signal stopped it."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class CutShort(RunStopped):
    """What ends a run from outside: an image that cannot be read, a dead worker of the loader, a broken stdout.

    The training loop says in its place how far the run had come.
    """


class NotFinite(FloatingPointError):
    """A loss, gradient or weight that is NaN or infinite; `step` is the training step of it."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def one_line(text: str) -> str:
    """`text` with its lines joined by '; ', so that a log or a terminal shows it as a single line."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


class _Output:
    """A stream that raises CutShort in the place of OSError, so that its failure is told from that of a file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._try(self._stream.write, text)

    def flush(self) -> None:
        return self._try(self._stream.flush)

    def _try(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())  # what is still in the buffer would fail again at the exit
            os.close(null)
            raise CutShort(f"standard output cannot be written: {error.strerror}") from None


def front_door(main: Callable[[], None]) -> None:
    """Run a command line's `main()`.

    A `UserError` is printed as `PROG: error: LINE` on stderr and ends the program with status 2 (a `RunStopped` with
    its own), as does a file or folder that the system refuses; Ctrl-C ends it with status 130, a stdout that cannot be
    written with status 1. Any other exception is a defect and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character
    stdout = sys.stdout
    if stdout is not None:
        sys.stdout = _Output(stdout)
    try:
        try:
            main()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except UserError as error:
        _refuse(str(error), getattr(error, "status", 2))
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror}", 2)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        sys.stdout = stdout


def _refuse(message: str, status: int) -> NoReturn:
    with suppress(OSError):  # stderr may be gone as well
        print(f"{os.path.basename(sys.argv[0])}: error: {one_line(message)}", file=sys.stderr)
    raise SystemExit(status) from None

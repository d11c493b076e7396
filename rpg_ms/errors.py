"""Errors meant for the user, and the door that turns them into one line and an exit status."""
from __future__ import annotations

import os
import sys
from typing import Callable


class UserError(Exception):
    """Something the user can put right; one line: what was given, what is allowed, where it came from."""


class RunStopped(UserError):
    """A run that was under way had to stop; `status` is the program's exit status, 1 unless a signal stopped it."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


def one_line(text: str) -> str:
    """`text` with its lines joined by '; ', so that a log or a terminal shows it as a single line."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def front_door(main: Callable[[], None]) -> None:
    """Run a command line's `main()`.

    A `UserError` is printed as `PROG: error: LINE` on stderr and ends the program with status 2 (a
    `RunStopped` with its own), as does a file or folder that the system refuses; Ctrl-C ends it with status 130.
    None shows a traceback. Any other exception is a defect and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character
    try:
        main()
    except UserError as error:
        _refuse(str(error), getattr(error, "status", 2))
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror}", 2)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _refuse(message, status):
    print(f"{os.path.basename(sys.argv[0])}: error: {one_line(message)}", file=sys.stderr)
    raise SystemExit(status) from None

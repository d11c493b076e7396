"""What MindSpore's exporters need of those who call them, and what their errors say."""
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rpg_ms.errors import one_line
from rpg_ms.files import working_folder


@contextmanager
def plain_name(path: Path) -> Iterator[str]:
    """A name to let MindSpore write `path` by: it takes neither blanks nor letters beyond ASCII in a path."""
    folder, name = os.path.split(path)
    with working_folder(folder):
        plain = f"network{os.path.splitext(name)[1]}"
        yield plain
        os.replace(plain, name)


def reason(error: Exception) -> str:
    """What MindSpore's error says, in one line, without the C++ call stack below it."""
    return one_line(re.split(r"\n-{10,}", str(error))[0])

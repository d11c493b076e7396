"""What MindSpore's exporters need of those who call them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rpg_ms.files import working_folder


@contextmanager
def plain_name(path: Path) -> Iterator[str]:
    """A name to let MindSpore write `path` by: it takes neither blanks nor letters beyond ASCII in a path."""
    folder, name = os.path.split(path)
    with working_folder(folder):
        plain = f"network{os.path.splitext(name)[1]}"
        yield plain
        os.replace(plain, name)

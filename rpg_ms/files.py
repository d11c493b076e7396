"""Files that are whole or absent, and the folder to work in."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Union

UNFINISHED = ".unfinished-"  # how the folders begin in which files are written before they get their names


def user_path(name: str) -> str:
    """`name` with a leading `~` or `~user` as that home folder; as in a shell, an unknown user stays as written.

    A shell does not do it in `--flag=~/x`, in `--set data.root=~/x` or in a configuration.
    """
    try:
        return os.path.expanduser(name)
    except ValueError:  # no user's name: it has a NUL, or a character that the system cannot encode
        return name


@contextmanager
def working_folder(path: Union[str, os.PathLike]) -> Iterator[None]:
    """Within the block `path` is the current folder."""
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def atomic_path(path: Union[str, os.PathLike]) -> Iterator[Path]:
    """A path to write to; what was written becomes `path`, safely on disk, when the block ends without error."""
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        parent = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(parent)  # so that the rename itself survives a power cut
        finally:
            os.close(parent)

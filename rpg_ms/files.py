"""Files that are whole or absent, and the folder to work in."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Union

from rpg_ms.errors import UserError

UNFINISHED = ".unfinished-"  # how the folders begin in which files are written before they get their names


def user_path(name: str) -> str:
    """`name` with a leading `~` or `~user` as that home folder; as in a shell, an unknown user stays as written.

    A shell does not do it in `--flag=~/x`, in `--set data.root=~/x` or in a configuration.
    """
    try:
        return os.path.expanduser(name)
    except ValueError:  # no user's name: it has a NUL, or a character that the system cannot encode
        return name


def sha256(path: Union[str, os.PathLike]) -> str:
    """The SHA-256 of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


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
        _flush_folder(path.parent)  # so that the rename itself survives a power cut


@contextmanager
def atomic_folder(path: Union[str, os.PathLike], own: Container[str]) -> Iterator[Path]:
    """A path to write a folder to; what was written becomes `path`, safely on disk, when the block ends without error.

    A folder that is there is replaced.

    Args:
        path: the folder.
        own: the names of files that may be in a folder that is replaced.

    Raises:
        UserError: there is a file of that name, or a folder with other files.
    """
    path = Path(path)
    foreign = [] if not path.is_dir() else sorted(name for name in os.listdir(path) if name not in own)
    if foreign or (path.exists() and not path.is_dir()):
        there = f"holds {foreign[0]}, which no export wrote" if foreign else "is a file"
        raise UserError(f"--file_name: {path} {there}; choose another name")
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        _flush_folder(temporary)
        if path.exists():
            os.replace(path, Path(folder) / f"{path.name} before")
        os.replace(temporary, path)
        _flush_folder(path.parent)


def _flush_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

"""JSON files that something else wrote: read and checked, refused in one line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

from rpg_ms.errors import UserError

NUMBER = (int, float)
Kind = Union[type, tuple[type, ...]]  # of a value, as isinstance takes it
_NAMES = {NUMBER: "a finite number", int: "an integer", list: "a list", str: "text", dict: "a mapping"}


def read_json(path: Union[str, os.PathLike], wanted: Mapping[str, Kind]) -> Optional[dict[str, Any]]:
    """The mapping in a JSON file, with at least the names in `wanted` ({name: kind}); None if there is no file.

    Raises:
        UserError: the file cannot be read, is not JSON, or lacks a name; names the file.
    """
    try:
        return parse_json(Path(path).read_bytes(), wanted)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def parse_json(text: bytes, wanted: Mapping[str, Kind]) -> dict[str, Any]:
    """As `read_json`, from bytes; raises ValueError."""
    try:
        values = json.loads(text)
    except ValueError:  # bytes that are not UTF-8 as well
        raise ValueError("not JSON") from None
    check(values, wanted)
    return values


def check(values: Any, wanted: Mapping[str, Kind]) -> None:
    """Raise ValueError unless `values` is a dict with a value of its kind for every name in `wanted`."""
    if not isinstance(values, dict):
        raise ValueError("not a mapping of names to values")
    for name, kind in wanted.items():
        if name not in values:
            raise ValueError(f"{name} is missing")
        value = values[name]
        wrong = not isinstance(value, kind) or isinstance(value, bool)
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{name}: {value!r} is not {_NAMES[kind]}")

"""What a configuration does not take, in one line, and the table of what it takes: all from the keys' JSON schema."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from rpg_ms.config.keys import SCHEMAS

Path = tuple[str, ...]


def explain(error: ValidationError, sources: dict[Path, str], file_name: str) -> str:
    """One line on the first of pydantic's errors for a Config, and how many more there are.

    `sources` says where each key was set, `file_name` what to name for one that was not set at all.
    """
    first, *others = error.errors(include_url=False)
    kind = first["type"]
    path = tuple(part for part in first["loc"] if isinstance(part, str))
    index = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
    source = sources.get(path, file_name)
    if kind == "extra_forbidden":
        text = _unknown_key(path, also=["base"] if len(path) == 1 and source != "--set" else [])
    elif kind == "rule":
        text = f"{dotted(path)}: {first['msg']}"
    else:
        schema = _without_null(SCHEMAS[path])[0]["items"] if index else SCHEMAS[path]
        wanted = "a finite number" if kind == "finite_number" else _wanted(schema)
        text = f"{dotted(path)}{index}: {show(first['input'])} is not {wanted}"
    if source == f"--{dotted(path)}":
        text = text.partition(": ")[2]
    more = f" (and {len(others)} more wrong key{'s' * (len(others) > 1)})" if others else ""
    return f"{source}: {text}{more}"


def _unknown_key(path: Path, also: Iterable[str]) -> str:
    """That a key does not exist, what was perhaps meant, and what does exist in its group."""
    group, key = path[:-1], path[-1]
    allowed = [other[-1] for other in SCHEMAS if other[:-1] == group] + list(also)
    near = difflib.get_close_matches(key, allowed)
    if not near:  # the right key in the wrong group
        names = difflib.get_close_matches(key, {other[-1] for other in SCHEMAS})
        near = [dotted(other) for other in SCHEMAS if other[-1] in names]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{dotted(path)}: unknown key; {hint}allowed: {', '.join(allowed)}"


def reference_table() -> str:
    """A Markdown table of every key: type, default, legal range and meaning."""
    lines = ["| Key | Type | Default | Range | Meaning |", "|---|---|---|---|---|"]
    for path, schema in SCHEMAS.items():
        if "properties" in schema:
            continue
        inner, nullable = _without_null(schema)
        default = schema["default"]
        cells = [
            f"`{dotted(path)}`",
            _type(inner) + (" or null" if nullable else ""),
            f"`{default if isinstance(default, str) else show(default)}`",
            _range(schema),
            schema["description"],
        ]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _wanted(schema: dict) -> str:
    """What a key takes, such as 'a number in (0, 1] or null'."""
    schema, nullable = _without_null(schema)
    kind, limits = _type(schema), _range(schema)
    if "properties" in schema:
        return f"a group of keys: {', '.join(schema['properties'])}"
    if kind == "choice":
        text = f"one of {limits}"
    elif kind == "boolean":
        text = "true or false"
    else:
        text = f"{'an' if kind == 'integer' else 'a'} {kind} {limits}".rstrip()
    return text + (" or null" if nullable else "")


def _type(schema: dict) -> str:
    if "enum" in schema or "const" in schema:
        return "choice"
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}s"
    return schema["type"]


def _range(schema: dict) -> str:
    """The legal values: an interval, one bound, the choices; empty where the type says it all."""
    schema, _ = _without_null(schema)
    if "enum" in schema or "const" in schema:
        return ", ".join(schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return _range(schema["items"])
    if schema.get("minLength"):
        return "of at least one character"
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is None and above is None:
        return ""
    if high is None and below is None:
        return f">= {_bound(low)}" if low is not None else f"> {_bound(above)}"
    left = f"({_bound(above)}" if low is None else f"[{_bound(low)}"
    return f"in {left}, " + (f"{_bound(below)})" if high is None else f"{_bound(high)}]")


def _bound(number: float) -> str:
    power = int(number + 1).bit_length() - 1
    return f"2^{power} - 1" if power > 30 and number + 1 == 2**power else f"{number:g}"


def _without_null(schema: dict) -> tuple[dict, bool]:
    """The schema of an Optional key without its null, and whether it had one."""
    variants = schema.get("anyOf", [schema])
    return next(variant for variant in variants if variant.get("type") != "null"), len(variants) > 1


def show(value: Any) -> str:
    """A value as an error message shows it: as YAML has it, printable, on one line, at most 80 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        text = "[" + ", ".join(show(item) for item in value[:20]) + "]"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{show(key)}: {show(item)}" for key, item in list(value.items())[:20]) + "}"
    else:
        text = repr(value)
    return shorten(text)


def shorten(text: str) -> str:
    """`text`, its end left out beyond 80 characters."""
    return text if len(text) <= 80 else text[:77] + "..."


def printable(text: str) -> str:
    """`text` with unprintable characters, line breaks among them, as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text) or "''"


def dotted(path: Path) -> str:
    """A key's path as a user writes it."""
    return ".".join(shorten(printable(part)) for part in path)

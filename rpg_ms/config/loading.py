"""From YAML files, `--set` and flags to one frozen Config, or to one clear line that says what is wrong and where."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional, Union

import yaml
from pydantic import ValidationError

import rpg_ms
from rpg_ms.config.explaining import dotted, explain, printable, shorten, show
from rpg_ms.config.keys import METHOD_KEYS, Config
from rpg_ms.errors import UserError, one_line
from rpg_ms.files import user_path
from rpg_ms.tasks import TASKS

Sources = dict[tuple[str, ...], str]  # where each key was set last, in the order of setting


def load_config(
    path: Union[str, os.PathLike],
    overrides: Iterable[str] = (),
    *,
    seed: Optional[int] = None,
    device_target: Optional[str] = None,
    output_dir: Optional[str] = None,
) -> Config:
    """The resolved configuration of a YAML file or recipe; a key that is nowhere set keeps its default.

    Later ones win: the file named by the top-level key `base` (relative to the folder of the naming file, where that is
    a link to the link's; it may have a base too), the file, `overrides` (each `a.b=value`, the value in YAML), the
    flags that are not None. Groups are merged, lists are replaced. Keys left null take the values of the pruning
    method's row, or the task's. `~` in a path is the user's home.

    Args:
        path: a file, or the name of a recipe (`recipes`).

    Raises:
        UserError: one line that names the source and, where one is at fault, the key.
    """
    values: dict[str, Any] = {}
    sources: Sources = {}
    path = find_recipe(user_path(os.fspath(path)))
    for name, layer in _read_with_bases(path):
        _merge(values, sources, layer, printable(name))
    for override in overrides:
        _merge(values, sources, _parse_override(override), "--set")
    for key, value in (("seed", seed), ("device_target", device_target), ("output_dir", output_dir)):
        if value is not None:
            _merge(values, sources, {key: value}, f"--{key}")
    try:
        config = Config.model_validate(values).resolved()
    except ValidationError as error:
        raise UserError(explain(error, sources, printable(path))) from None
    _check_method(config, sources, printable(path))
    _check_task(config, sources, printable(path))
    return config


def dump_config(config: Config) -> str:
    """YAML that `load_config` reads back to an equal object."""
    return yaml.dump(config.model_dump(by_alias=True), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def changed_keys(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """`{"group.key": (old value, new value)}` of the keys in which two configurations differ."""
    flat = [{dotted(path): value for path, value in _leaves(config.model_dump(by_alias=True))} for config in (old, new)]
    return {key: (flat[0][key], flat[1][key]) for key in flat[0] if flat[0][key] != flat[1][key]}


def _leaves(values: dict, path: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, path + (key,))
        else:
            yield path + (key,), value


# ------------------------------------------------------------------------------------------------- recipes


def recipes_folder() -> Path:
    """Where the recipes are: config/ beside the package in a checkout, inside it where it was installed."""
    package = Path(rpg_ms.__file__).parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "config"


def recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(file.stem for file in recipes_folder().glob("*.yaml"))


def find_recipe(path: str) -> str:
    """A path as it is, or the file of the recipe that it names, such as `quickstart` or `config/quickstart.yaml`."""
    name = re.fullmatch(r"(?:config/)?([\w-]+)(?:\.yaml)?", path)
    if name and not os.path.exists(path) and name[1] in recipes():
        return str(recipes_folder() / f"{name[1]}.yaml")
    return path


# ------------------------------------------------------------------------------------------------- layers


def _merge(values: dict, sources: Sources, layer: dict, source: str, path: tuple[str, ...] = ()) -> None:
    """Lay `layer` over `values` in place, group by group, noting in `sources` where each key came from."""
    for key, value in layer.items():
        if not isinstance(key, str):
            where = f" in {dotted(path)}" if path else ""
            raise UserError(f"{source}: the key {show(key)}{where} is not a string")
        here = path + (key,)
        sources.pop(here, None)
        sources[here] = source
        if isinstance(value, dict):
            if not isinstance(values.get(key), dict):
                values[key] = {}
            _merge(values[key], sources, value, source, here)
        else:
            values[key] = value


def _parse_override(override: str) -> dict:
    """`a.b=value` as the mapping {a: {b: value}}."""
    name, equals, text = override.partition("=")
    path = tuple(part.strip() for part in name.split("."))
    if not equals or not all(path):
        raise UserError(f"--set: {show(override)} is not of the form a.b=value")
    value = _parse_yaml(text, f"--set: {dotted(path)}")
    for key in reversed(path):
        value = {key: value}
    return value


def _check_method(config: Config, sources: Sources, file_name: str) -> None:
    """Refuse what the method does not allow together, such as drop and grow with nothing to grow by."""
    pruning = config.pruning

    def source(*keys: str) -> str:  # of whichever of them was given last
        paths = [("pruning", key) for key in keys]
        return ([sources[path] for path in sources if path in paths] or [file_name])[-1]

    try:
        config.method  # noqa: B018 (a method that contradicts itself raises)
    except ValueError as error:
        keys = (key for group, key in METHOD_KEYS.values() if group == "pruning")
        raise UserError(
            f"{source('method', *keys)}: pruning.method: {pruning.method}: {one_line(str(error))}"
        ) from None
    if pruning.warmup_updates > 0 and pruning.start != "dense":
        raise UserError(
            f"{source('method', 'warmup_updates', 'start')}: pruning.warmup_updates: "
            f"{pruning.warmup_updates} must be 0 for {pruning.method}, whose masks have the target density "
            f"from the first step (pruning.start: {pruning.start})"
        )
    if config.rank.share is not None and config.rank.every == "step":
        place = sources.get(("rank", "share"), sources.get(("rank", "every"), file_name))
        raise UserError(
            f"{place}: rank.share: {config.rank.share:g} mixes gradients for regrowth, which is at updates; rank.every "
            "must be update, not step"
        )
    if pruning.prune_until > pruning.freeze_after:
        raise UserError(
            f"{source('method', 'prune_until', 'freeze_after')}: pruning.prune_until: {pruning.prune_until} "
            f"is greater than pruning.freeze_after, {pruning.freeze_after}"
        )


def _check_task(config: Config, sources: Sources, file_name: str) -> None:
    """Refuse what another task alone takes, unless it has its default value, as in the file of a run."""
    changed = changed_keys(Config(), config)
    for task, row in TASKS.items():
        for key in row.keys:
            found = [name for name in changed if name == key or name.startswith(f"{key}.")]
            if task != config.task and found and key not in TASKS[config.task].keys:
                source = sources.get(tuple(found[0].split(".")), file_name)
                raise UserError(
                    f"{source}: {found[0]}: {show(changed[found[0]][1])} is for task: {task}, not for {config.task}"
                )


# --------------------------------------------------------------------------------------------------- YAML


def _read_with_bases(name: str) -> list[tuple[str, dict]]:
    """`(file name, content)` of a file and of the bases below it, the lowest first."""
    layers: list[tuple[str, dict]] = []
    seen: list[str] = []
    label, where = printable(name), ""
    while True:
        text = _read_text(name, label, where)
        if os.path.realpath(name) in seen:
            raise UserError(f"{label}: a cycle, the file is already among those that lead to it")
        seen.append(os.path.realpath(name))
        values = _parse_yaml(text, printable(name))
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise UserError(f"{printable(name)}: {show(values)} is not a mapping of keys to values")
        layers.insert(0, (name, values))
        if "base" not in values:
            return layers
        base = values.pop("base")
        if not isinstance(base, str) or not base:
            raise UserError(f"{printable(name)}: base: {show(base)} is not the name of a file")
        label = f"{printable(name)}: base: {shorten(printable(base))}"
        by, name = name, os.path.join(os.path.dirname(name), user_path(base))
        where = "" if name == base else f": {printable(name)}"
        if os.path.islink(by):
            where += f"; a base is looked for beside the link {printable(by)}, not beside its target"


def _read_text(name: str, label: str, where: str) -> str:
    try:
        with open(name, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise UserError(f"{label}: no such file{where}") from None
    except IsADirectoryError:
        raise UserError(f"{label}: a directory, not a file") from None
    except OSError as error:
        raise UserError(f"{label}: cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL or a character the file system cannot encode
        raise UserError(f"{label}: not a file name") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{label}: line {line}: not UTF-8 text (byte 0x{content[error.start]:02x})") from None


class _Loader(yaml.SafeLoader):
    """Plain data with YAML 1.2's numbers and booleans: `1e-4` is a number, `no` and dates are text.

    Duplicate keys are refused.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As SafeLoader's, but whole at once: a list or mapping that holds itself is then an error."""
        return super().construct_object(node, deep=True)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """As SafeLoader's, but a key given twice is an error."""
        found = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in found:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            found.append(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes text in quotes where `_Loader` would take it for something else."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(  # line breaks of any kind as escapes
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)

_SCALARS = {  # YAML 1.2.2, section 10.3.2
    "null": ("~|null|Null|NULL|", "~nN"),
    "bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": ("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _name, (_pattern, _first) in _SCALARS.items():
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}",
            re.compile(f"^(?:{_pattern})$"),
            [*_first, ""] if _name == "null" else [*_first],
        )
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(node.value, 0 if node.value.startswith(("0o", "0x")) else 10)
)


def _parse_yaml(text: str, label: str) -> Any:
    """The data in a YAML document: None, bool, int, float, str, list and dict."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = printable(one_line(error.problem or error.context or "not valid YAML"))
        raise UserError(f"{label}: {place}{problem[:120]}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{label}: not valid YAML: {printable(one_line(str(error)))[:120]}") from None

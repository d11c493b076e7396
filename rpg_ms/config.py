"""The typed configuration: every key with its type, unit, default and legal range.

YAML, `--set` and flags become one frozen object, or one clear line: what is wrong and where it came from."""
from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import os
import sys
from typing import Any, Dict, Iterable, List, Optional, Tuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import DocumentStartEvent, MappingEndEvent, MappingStartEvent
from ruamel.yaml.events import SequenceEndEvent, SequenceStartEvent
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import SafeRepresenter
from typing_extensions import Annotated, Literal

from rpg_ms.errors import UserError, one_line
from rpg_ms.files import user_path
from rpg_ms.pruning.allocation import ALLOCATIONS
from rpg_ms.pruning.methods import METHODS
from rpg_ms.pruning.schedule import DENSITY_SCHEDULES
from rpg_ms.pruning.topology import STARTS

# ----------------------------------------------------------------------------------------------------
# The keys
# ----------------------------------------------------------------------------------------------------

INT32_MAX = 2**31 - 1
MethodName = Literal[tuple(METHODS)]
ScheduleName = Literal[tuple(DENSITY_SCHEDULES)]
AllocationName = Literal[tuple(ALLOCATIONS)]
StartName = Literal[STARTS]
DeviceTarget = Literal["auto", "CPU", "GPU", "Ascend"]
UserPath = Annotated[str, Field(min_length=1), AfterValidator(user_path)]


class Group(BaseModel):
    """A group of keys: immutable, no unknown keys, no conversion but integer to number, no inf or nan."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Group):
    name: str = Field(
        "resnet_small", min_length=1, description="Network: ours, any of mindcv's, or your own module:function."
    )
    pretrained: Optional[UserPath] = Field(
        None, description="Weights to start from, MindSpore's, PyTorch's or safetensors; null: none."
    )
    pretrained_allow: Tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), strict=False, description="Name patterns of what may differ between model.pretrained and the network."
    )
    pretrained_entry: Optional[str] = Field(
        None, min_length=1, description="Entry of a PyTorch checkpoint, a.b for one in another; null: averaged "
        "weights, else the weights."
    )
    pretrained_prefix: Optional[str] = Field(
        None, min_length=1, description="Only what has this prefix in model.pretrained; null: all, and the prefix is "
        "found."
    )
    width: float = Field(1.0, gt=0, le=64, description="Factor on the channels of a CIFAR ResNet.")
    pool_padding: Literal["pytorch", "mindcv"] = Field(
        "pytorch", description="Max pooling of mindcv's ResNets: as in PyTorch's weights, or as in mindcv's."
    )
    num_classes: Optional[int] = Field(
        None, ge=2, le=INT32_MAX, description="Width of the classifier, classes; null: the data's classes."
    )


class DataConfig(Group):
    name: str = Field("fashion_mnist", min_length=1, description="Dataset.")
    root: Optional[UserPath] = Field(None, description="Dataset's folder; null: its usual place.")
    validation: float = Field(
        0.0, ge=0, lt=1, description="Share of the training images evaluated in place of the test images."
    )
    workers: int = Field(1, ge=1, le=INT32_MAX, description="Loader's parallel workers.")
    limit: Optional[int] = Field(
        None, ge=1, le=INT32_MAX, description="Use only so many training and test images, the first ones, of photographs "
        "evenly spread ones; null: all."
    )
    augment: Literal["auto", "none", "crop_flip", "random_resized_crop", "randaugment"] = Field(
        "auto", description="Augmentation of training images; auto: the dataset's customary one."
    )
    image_size: Optional[int] = Field(
        None, ge=8, le=4096, description="Side of the network's images, pixels; null: the dataset's."
    )


class TrainConfig(Group):
    epochs: int = Field(300, ge=1, le=INT32_MAX, description="Length of training, epochs.")
    batch_size: int = Field(128, ge=1, le=INT32_MAX, description="Training batch on each device, images.")
    micro_batches: int = Field(
        1, ge=1, le=INT32_MAX, description="Pieces a device's batch is computed in, one after the other; divides it."
    )
    amp_level: Literal["O0", "O1", "O2", "O3"] = Field(
        "O0", description="MindSpore's mixed precision (float16) with dynamic loss scaling; O0: float32."
    )
    clip_norm: Optional[float] = Field(
        None, gt=0, description="Largest global norm of the gradient; null: the method's (st3: 3, others: any)."
    )
    ema_decay: Optional[float] = Field(
        None, gt=0, lt=1, description="Decay per step of a moving average of the weights; null: no average."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread over all classes, fraction."
    )
    mixup: float = Field(0.0, ge=0, description="Mixup: alpha of its Beta distribution; 0: off.")
    cutmix: float = Field(0.0, ge=0, description="CutMix: alpha of its Beta distribution; 0: off.")
    eval_every: int = Field(1, ge=1, le=INT32_MAX, description="Interval between evaluations, epochs.")
    eval_batch_size: int = Field(
        256, ge=1, le=INT32_MAX, description="Evaluation batch on each device, images."
    )
    log_every: int = Field(10, ge=1, le=INT32_MAX, description="Interval between logged lines, steps.")
    sink_size: Optional[int] = Field(
        None, ge=1, le=INT32_MAX, description="Steps that run in one graph, without the host, where nothing else is due; "
        "null: log_every on Ascend, else 1."
    )


class OptimizerConfig(Group):
    name: Literal["sgd", "adam", "adamw"] = Field("sgd", description="Optimizer.")
    lr: float = Field(0.1, gt=0, description="Peak learning rate, per step.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd, fraction kept per step.")
    nesterov: bool = Field(False, description="Nesterov momentum in sgd.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay, per step, before the learning rate.")
    decay_norm_and_bias: bool = Field(False, description="Whether norm scales, biases and embeddings decay as well.")


class ScheduleConfig(Group):
    name: Literal["cosine", "step", "linear", "constant"] = Field(
        "cosine", description="Learning rate after warm-up."
    )
    warmup_epochs: float = Field(0.0, ge=0, description="Linear warm-up from 0 to the peak rate, epochs.")
    end_lr: float = Field(0.0, ge=0, description="Learning rate at the end of cosine and linear, per step.")
    milestones: Tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.5, 0.75), strict=False, description="Where step multiplies by gamma, fractions of all steps."
    )
    gamma: float = Field(0.1, gt=0, le=1, description="Factor of step at each milestone, ratio.")

    @field_validator("milestones")
    @classmethod
    def _in_order(cls, milestones: Tuple[float, ...]) -> Tuple[float, ...]:
        if any(later <= earlier for earlier, later in zip(milestones, milestones[1:])):
            shown = _show(list(milestones))
            raise PydanticCustomError("rule", "{shown} is not in increasing order", {"shown": shown})
        return milestones


class PruningConfig(Group):
    method: MethodName = Field("rpg_erk", description="Pruning method; gives the defaults of keys left null.")
    density: float = Field(0.02, gt=0, le=1, description="Share of prunable weights that stay, fraction.")
    update_every: Optional[int] = Field(
        None, ge=0, le=INT32_MAX,
        description="Interval between topology updates (Δ), steps; 0: an epoch; null: the method's."
    )
    prune_until: Optional[float] = Field(
        None, gt=0, le=1,
        description="When the target density is reached (T_prune), fraction of all steps; null: the method's."
    )
    freeze_after: Optional[float] = Field(
        None, gt=0, le=1,
        description="When the topology freezes (T_end, >= T_prune), fraction of all steps; null: the method's."
    )
    start: Optional[StartName] = Field(
        None, description="Masks before the first step, all weights or as many as stay; null: the method's."
    )
    alpha: Optional[float] = Field(
        None, ge=0, le=1, description="Share of weights first dropped and grown (α); null: the method's."
    )
    schedule: Optional[ScheduleName] = Field(None, description="Density over time; null: the method's.")
    allocation: Optional[AllocationName] = Field(None, description="Density per layer; null: the method's.")
    raise_rank: bool = Field(
        False, description="Whether weights grow first where they raise the structural rank of a mask."
    )
    warmup_updates: int = Field(
        0, ge=0, le=INT32_MAX, description="Updates before pruning starts, updates; 0 where masks start sparse."
    )
    min_per_layer: int = Field(1, ge=0, le=INT32_MAX, description="Fewest weights left in a layer.")
    grad_accumulation: int = Field(
        1, ge=1, le=INT32_MAX, description="Steps whose dense gradients are averaged for regrowth; at most update_every."
    )
    exclude: Tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), strict=False, description="Name patterns of layers that stay dense."
    )


class RankConfig(Group):
    lambda_: Optional[float] = Field(
        None, alias="lambda", ge=0, description="Weight of the rank term in the loss (λ); null: the method's."
    )
    delta: Optional[float] = Field(
        None, gt=0, le=1, description="Error budget (δ), share of the squared norm; null: the method's."
    )
    every: Literal["update", "step"] = Field(
        "update", description="Steps with the rank term: topology updates only, or every step."
    )
    backend: Literal["auto", "svd", "gram", "matmul"] = Field(
        "auto", description="How the rank term is computed; auto: gram on CPU, matmul elsewhere."
    )
    include_dense: bool = Field(False, description="Whether the rank term takes dense layers as well.")


class CheckpointConfig(Group):
    every_steps: int = Field(
        0, ge=0, le=INT32_MAX, description="Interval between checkpoints besides those at each epoch's end, steps; 0: none."
    )
    keep: int = Field(2, ge=1, le=INT32_MAX, description="How many of the newest checkpoints are kept.")


class Config(Group):
    """A whole experiment. `load_config` resolves the keys that are left to the method."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    pruning: PruningConfig = PruningConfig()
    rank: RankConfig = RankConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of all random numbers.")
    device_target: DeviceTarget = Field("auto", description="Where to run; auto: the best device found.")
    mode: Literal["graph", "pynative"] = Field("graph", description="MindSpore's execution mode.")
    output_dir: UserPath = Field("runs/default", description="Folder of the run.")


# ----------------------------------------------------------------------------------------------------
# Loading and dumping
# ----------------------------------------------------------------------------------------------------

Path = Tuple[str, ...]


def load_config(
    path: Any,
    overrides: Iterable[str] = (),
    *,
    seed: Optional[int] = None,
    device_target: Optional[str] = None,
    output_dir: Optional[str] = None,
) -> Config:
    """The resolved configuration of a YAML file; a key that is nowhere set keeps its default.

    Later ones win: the file named by the top-level key `base` (relative to the naming file; if that is a link, to the
    link; it may have a base too), the file, `overrides` (each `a.b=value`, the value in YAML), the flags that are
    not None.
    Groups are merged, lists are replaced. Keys left null take the values of the pruning method's row. `~` in a path
    is the user's home.

    Raises UserError, one line long, that names the source and, where one is at fault, the key.
    """
    values: Dict[str, Any] = {}
    sources: Dict[Path, str] = {}  # where each key was set last, in the order of setting
    path = user_path(os.fspath(path))
    for name, layer in _read_with_bases(path):
        _merge(values, sources, layer, _printable(name))
    for override in overrides:
        _merge(values, sources, _parse_override(override), "--set")
    for key, value in (("seed", seed), ("device_target", device_target), ("output_dir", output_dir)):
        if value is not None:
            _merge(values, sources, {key: value}, f"--{key}")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, sources, _printable(path))) from None
    config = _fill_from_method(config)
    _check_choices(config, sources, _printable(path))
    return config


def dump_config(config: Config) -> str:
    """YAML that `load_config` reads back to an equal object."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _PlainRepresenter
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    stream = io.StringIO()
    yaml.dump(config.model_dump(by_alias=True), stream)
    return stream.getvalue()


def changed_keys(old: Config, new: Config) -> Dict[str, Tuple[Any, Any]]:
    """`{"group.key": (old value, new value)}` of the keys in which two configurations differ."""
    flat = [{_dotted(path): value for path, value in _leaves(config.model_dump(by_alias=True))} for config in (old, new)]
    return {key: (flat[0][key], flat[1][key]) for key in flat[0] if flat[0][key] != flat[1][key]}


def _leaves(values: dict, path: Path = ()) -> Iterable[Tuple[Path, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, path + (key,))
        else:
            yield path + (key,), value


def _fill_from_method(config: Config) -> Config:
    """`config` with the method's own values where the user gave none."""
    row = METHODS[config.pruning.method]
    return config.model_copy(update={
        "pruning": _fill(config.pruning, schedule=row.schedule, allocation=row.allocation, start=row.start,
                         alpha=row.alpha, update_every=row.update_every, prune_until=row.prune_until,
                         freeze_after=row.freeze_after),
        "rank": _fill(config.rank, lambda_=row.rank_lambda, delta=row.rank_delta),
        "train": _fill(config.train, clip_norm=row.clip_norm),
    })


def _fill(group: Group, **defaults: Any) -> Group:
    missing = {key: value for key, value in defaults.items() if getattr(group, key) is None}
    return group.model_copy(update=missing)


def _check_choices(config: Config, sources: Dict[Path, str], file_name: str) -> None:
    """Refuse what the method does not allow together, such as drop and grow with nothing to grow by."""
    pruning, rank = config.pruning, config.rank

    def source(*keys):  # of whichever of them was given last
        paths = [("pruning", key) for key in keys]
        return ([sources[path] for path in sources if path in paths] or [file_name])[-1]

    try:
        dataclasses.replace(METHODS[pruning.method], schedule=pruning.schedule, allocation=pruning.allocation,
                            start=pruning.start, alpha=pruning.alpha, rank_lambda=rank.lambda_, rank_delta=rank.delta)
    except ValueError as error:
        raise UserError(f"{source('method', 'schedule', 'allocation', 'start', 'alpha')}: "
                        f"pruning.method: {pruning.method}: {one_line(str(error))}") from None
    if pruning.warmup_updates > 0 and pruning.start != "dense":
        raise UserError(f"{source('method', 'warmup_updates', 'start')}: pruning.warmup_updates: "
                        f"{pruning.warmup_updates} must be 0 for {pruning.method}, whose masks have the target density "
                        f"from the first step (pruning.start: {pruning.start})")
    for key, other in (("prune_until", "freeze_after"), ("grad_accumulation", "update_every")):
        least, most = getattr(pruning, key), getattr(pruning, other)
        if least > most > 0:
            raise UserError(f"{source('method', key, other)}: pruning.{key}: {least} is greater than pruning.{other}, "
                            f"{most}")


def _merge(values: dict, sources: Dict[Path, str], layer: dict, source: str, path: Path = ()) -> None:
    """Lay `layer` over `values` in place, group by group, noting in `sources` where each key came from."""
    for key, value in layer.items():
        if not isinstance(key, str):
            where = f" in {_dotted(path)}" if path else ""
            raise UserError(f"{source}: the key {_show(key)}{where} is {_type_name(key)}, not a string")
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
    dotted, equals, text = override.partition("=")
    path = tuple(part.strip() for part in dotted.split("."))
    if not equals or not all(path):
        raise UserError(f"--set: {_show(override)} is not of the form a.b=value")
    for end in range(1, len(path) + 1):
        schema = SCHEMAS.get(path[:end])
        if schema is None:
            raise UserError(f"--set: {_unknown_key(path[:end])}")
        if end < len(path) and "properties" not in schema:
            raise UserError(f"--set: {_dotted(path)}: {_dotted(path[:end])} is a value, not a group of keys")
    value = _parse_yaml(text, f"--set: {_dotted(path)}")
    for key in reversed(path):
        value = {key: value}
    return value


# ----------------------------------------------------------------------------------------------------
# Plain YAML 1.2 data, in and out
# ----------------------------------------------------------------------------------------------------

MAX_BYTES = 100_000  # a configuration is small; a file beyond this is something else
MAX_DEPTH = 16


def _read_with_bases(name: str) -> List[Tuple[str, dict]]:
    """`(file name, content)` of a file and of the bases below it, the lowest first."""
    layers: List[Tuple[str, dict]] = []
    seen: List[str] = []
    label, where = _printable(name), ""
    while True:
        text = _read_text(name, label, where)
        if os.path.realpath(name) in seen:
            raise UserError(f"{label}: a cycle, the file is already among those that lead to it")
        seen.append(os.path.realpath(name))
        values = _parse_yaml(text, _printable(name))
        if values is None:
            values = {}
        if not isinstance(values, dict):
            kind = _type_name(values)
            raise UserError(f"{_printable(name)}: the top level is {kind}, not a mapping of keys to values")
        layers.insert(0, (name, values))
        if "base" not in values:
            return layers
        base = values.pop("base")
        if not isinstance(base, str) or not base:
            raise UserError(f"{_printable(name)}: base: {_show(base)} is not the name of a file")
        label = f"{_printable(name)}: base: {_abbreviate(_printable(base))}"
        by, name = name, os.path.join(os.path.dirname(name), user_path(base))
        where = "" if name == base else f": {_printable(name)}"
        if os.path.islink(by):
            where += f"; a base is looked for beside the link {_printable(by)}, not beside its target"


def _read_text(name: str, label: str, where: str) -> str:
    try:
        with open(name, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{label}: no such file{where}") from None
    except IsADirectoryError:
        raise UserError(f"{label}: a directory, not a file") from None
    except OSError as error:
        raise UserError(f"{label}: cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL or a character the file system cannot encode
        raise UserError(f"{label}: not a file name") from None
    if content.startswith(b"version https://git-lfs"):
        raise UserError(f"{label}: a pointer of Git LFS, not the file itself, which `git lfs pull` fetches")
    if content.lstrip()[:2] in (b"<!", b"<?") or content.lstrip()[:5].lower() == b"<html":
        raise UserError(f"{label}: a web page, not a configuration file")
    if len(content) > MAX_BYTES:
        raise UserError(f"{label}: longer than {MAX_BYTES} bytes, not a configuration file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{label}: line {line}: not UTF-8 text (byte 0x{content[error.start]:02x})") from None


class _PlainConstructor(SafeConstructor):
    """Dates stay strings; an integer too long for Python's parser is an error with a place."""

    def construct_integer(self, node: Any) -> int:
        try:
            return self.construct_yaml_int(node)
        except ValueError:
            raise ConstructorError(None, None, "an integer with too many digits", node.start_mark) from None


_PlainConstructor.add_constructor("tag:yaml.org,2002:int", _PlainConstructor.construct_integer)
_PlainConstructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)
_PlainConstructor.add_constructor("tag:yaml.org,2002:value", SafeConstructor.construct_yaml_str)


class _PlainRepresenter(SafeRepresenter):
    """Text with line breaks or unprintable characters is written with escapes, which keep them all."""

    def represent_text(self, text: str) -> Any:
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_PlainRepresenter.add_representer(str, _PlainRepresenter.represent_text)


def _parse_yaml(text: str, label: str) -> Any:
    """The data in a YAML document: None, bool, int, float, str, list and dict."""
    try:
        _refuse_what_is_not_plain(text, label)
        yaml = YAML(typ="safe", pure=True)
        yaml.Constructor = _PlainConstructor
        return yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = _printable(one_line(error.problem or error.context or "not valid YAML"))
        raise UserError(f"{label}: {place}{_abbreviate(problem, 120)}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{label}: line {line}: character {text[error.position]!r} is not allowed") from None
    except (YAMLError, ValueError) as error:
        problem = _printable(one_line(str(error)))
        raise UserError(f"{label}: not valid YAML: {_abbreviate(problem, 120)}") from None


def _refuse_what_is_not_plain(text: str, label: str) -> None:
    """Refuse anchors and aliases (a few can stand for gigabytes), tags, directives and very deep nesting."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        place = f"{label}: line {event.start_mark.line + 1}, column {event.start_mark.column + 1}"
        if getattr(event, "anchor", None) is not None:
            raise UserError(f"{place}: YAML anchors and aliases are not allowed")
        if isinstance(event, DocumentStartEvent):
            if event.version or event.tags:
                raise UserError(f"{place}: YAML directives are not allowed")
        elif getattr(event, "tag", None) is not None:
            raise UserError(f"{place}: YAML tags are not allowed")
        depth += isinstance(event, (MappingStartEvent, SequenceStartEvent))
        depth -= isinstance(event, (MappingEndEvent, SequenceEndEvent))
        if depth > MAX_DEPTH:
            raise UserError(f"{place}: nested more than {MAX_DEPTH} deep")


# ----------------------------------------------------------------------------------------------------
# Explaining: every text below comes from the models' own JSON schema
# ----------------------------------------------------------------------------------------------------


def _collect_schemas() -> Dict[Path, dict]:
    """JSON schema of every group and key by its path, in the order of declaration."""
    top = Config.model_json_schema()["properties"]
    schemas: Dict[Path, dict] = {}
    for name, field in Config.model_fields.items():
        if _is_group(field.annotation):
            schemas[(name,)] = field.annotation.model_json_schema()
            schemas.update({(name, key): schema for key, schema in schemas[(name,)]["properties"].items()})
        else:
            schemas[(name,)] = top[name]
    return schemas


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Group)


SCHEMAS = _collect_schemas()


def _explain(error: ValidationError, sources: Dict[Path, str], file_name: str) -> str:
    """One line on the first of the errors, and how many more there are."""
    first, *others = error.errors(include_url=False)
    kind, value, limits = first["type"], first["input"], first.get("ctx", {})
    path = tuple(part for part in first["loc"] if isinstance(part, str))
    index = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
    keys = [path]
    if kind == "extra_forbidden":
        text = _unknown_key(path, also=["base"] if len(path) == 1 else [])
    elif kind == "rule":
        keys = [path + (key,) for key in limits if path + (key,) in SCHEMAS] or keys
        text = f"{_dotted(keys[0])}: {first['msg']}"
    else:
        text = f"{_dotted(path)}{index}: {_show(value)} {_mismatch(kind, value, _schema_at(first['loc']))}"
    set_keys = [key for key in sources if key in keys]
    source = sources[set_keys[-1]] if set_keys else file_name
    if source == f"--{_dotted(path)}":
        text = text.partition(": ")[2]
    more = f" (and {len(others)} more wrong key{'s' * (len(others) > 1)})" if others else ""
    return f"{source}: {text}{more}"


def _mismatch(kind: str, value: Any, schema: dict) -> str:
    """'is not …' for an error of the given pydantic kind on a key with the given schema."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if kind == "finite_number":
        return "is not a finite number"
    if kind == "string_unicode":
        return "is not Unicode text"
    if kind == "float_type" and is_integer:
        return "is too large a number"
    if kind.endswith("_type") and value is not None:
        return f"is {_type_name(value)}, not {_wanted(schema)}"
    if kind.startswith(("greater_than", "less_than")):
        return f"is not {_range(schema)}"
    return f"is not {_wanted(schema)}"


def _unknown_key(path: Path, also: Iterable[str] = ()) -> str:
    group, key = path[:-1], path[-1]
    allowed = [other[-1] for other in SCHEMAS if other[:-1] == group] + list(also)
    near = difflib.get_close_matches(key, allowed)
    if not near:  # the right key in the wrong group
        names = difflib.get_close_matches(key, {other[-1] for other in SCHEMAS})
        near = [_dotted(other) for other in SCHEMAS if other[-1] in names]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{_dotted(path)}: unknown key; {hint}allowed: {', '.join(allowed)}"


def _schema_at(loc: Tuple[Any, ...]) -> dict:
    schema = SCHEMAS[tuple(part for part in loc if isinstance(part, str))]
    return schema["items"] if isinstance(loc[-1], int) else schema


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
    left = f"[{_bound(low)}" if low is not None else f"({_bound(above)}" if above is not None else ""
    right = f"{_bound(high)}]" if high is not None else f"{_bound(below)})" if below is not None else ""
    if left and right:
        return f"in {left}, {right}"
    if left:
        return f">= {_bound(low)}" if low is not None else f"> {_bound(above)}"
    if right:
        return f"<= {_bound(high)}" if high is not None else f"< {_bound(below)}"
    return ""


def _bound(number: float) -> str:
    power = int(number + 1).bit_length() - 1
    return f"2^{power} - 1" if power > 30 and number + 1 == 2**power else f"{number:g}"


def _without_null(schema: dict) -> Tuple[dict, bool]:
    """The schema of an Optional key without its null, and whether it had one."""
    variants = schema.get("anyOf", [schema])
    return next(variant for variant in variants if variant.get("type") != "null"), len(variants) > 1


def _type_name(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "an integer", float: "a number", str: "a string",
             dict: "a mapping", list: "a list"}
    return names.get(type(value), f"a {type(value).__name__}")


def _show(value: Any) -> str:
    """A value as an error message shows it: printable, on one line, at most 80 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 200:  # Python refuses to print very long integers
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (list, tuple)):
        return _abbreviate("[" + ", ".join(_show(item) for item in value[:20]) + "]")
    if isinstance(value, dict):
        items = list(value.items())[:20]
        return _abbreviate("{" + ", ".join(f"{_show(key)}: {_show(item)}" for key, item in items) + "}")
    return _abbreviate(repr(value))


def _abbreviate(text: str, width: int = 80) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _printable(text: str) -> str:
    """`text` with unprintable characters, line breaks among them, as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text) or "''"


def _dotted(path: Path) -> str:
    return ".".join(_abbreviate(_printable(part)) for part in path)


def reference_table() -> str:
    """A Markdown table of every key: type, default, legal range and meaning."""
    lines = ["| Key | Type | Default | Range | Meaning |", "|---|---|---|---|---|"]
    for path, schema in SCHEMAS.items():
        if "properties" in schema:
            continue
        inner, nullable = _without_null(schema)
        default = schema["default"]
        cells = [
            f"`{_dotted(path)}`",
            _type(inner) + (" or null" if nullable else ""),
            f"`{default if isinstance(default, str) else _show(default)}`",
            _range(schema),
            schema["description"],
        ]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


# ----------------------------------------------------------------------------------------------------
# Command lines
# ----------------------------------------------------------------------------------------------------


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on stderr and status 2, without the usage text."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {_abbreviate(one_line(message), 300)}\n")

    def parse_args(self, args=None, namespace=None):
        for argument in sys.argv[1:] if args is None else args:
            try:
                argument.encode()
            except UnicodeEncodeError:  # it could be neither logged nor written into a file
                self.error(f"{_printable(argument)}: not UTF-8 text")
        return super().parse_args(args, namespace)


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command line takes: the arguments of `load_config`."""
    parser.add_argument("--config", type=user_path, required=True, metavar="FILE", help="YAML file of the experiment")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="a.b=value",
                        help="set a key of the configuration, the value in YAML; may be repeated")
    parser.add_argument("--device_target", choices=SCHEMAS[("device_target",)]["enum"], help="where to run")
    parser.add_argument("--output_dir", type=user_path, metavar="DIR", help="folder of the run")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of all random numbers")

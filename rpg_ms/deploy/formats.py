"""The formats of exported files, one row each, and the options that they take.

A new format is a module with a `write(job, path)` and, where its files can be loaded back, a `load(job, path)`, and its
row in `FORMATS`: the choices of `export.py` and what it refuses follow from the row. Importing this needs no MindSpore,
so that a mistake on the command line is refused at once.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Optional, Union

from rpg_ms.errors import UserError

VALUE_TYPES = ("float32", "float16", "int8")


@dataclass(frozen=True)
class Options:
    """What may be asked of an exported file. A format takes the options that its row names.

    Args:
        batch_size: batch of the exported network.
        dynamic_batch: the file takes any batch size.
        normalize_input: the file takes pixels, 0 to 255, float32, and normalises them itself.
        softmax: the file returns probabilities in the place of logits.
        value_type: one of `VALUE_TYPES`, which the pruned layers' weights are kept as; None is float32, exact.
    """

    batch_size: int = 1
    dynamic_batch: bool = False
    normalize_input: bool = False
    softmax: bool = False
    value_type: Optional[str] = None


@dataclass(frozen=True)
class Format:
    """A format of exported files.

    Args:
        extension: how its files' names end.
        write: `module:function`, from a `rpg_ms.deploy.job.Job` and a path to a file there. What it returns, unless
            None, is a `{name: value}` of what is to be said of the file.
        load: `module:function`, from the same to a `rpg_ms.deploy.verify.Loaded`; None if files cannot be loaded here,
            so that they are not verified.
        options: the fields of `Options` that it takes.
        computes: whether a file computes outputs: it is then run on test images, and FILE.json says how to use it. The
            others hold a network's parameters.
        absolute_tolerance, relative_tolerance: by how much outputs may differ; the second of the largest output.
        packages: what has to be installed, beyond what this package needs itself.
        extra: the extra of this package that installs them.
        device: the only device that it can be written on; None is any.
        folder: the names of what may be in a folder that it writes in the place of a file; none for a file.
    """

    extension: str
    write: str
    load: Optional[str]
    options: tuple[str, ...]
    computes: bool = True
    absolute_tolerance: float = 0.0
    relative_tolerance: float = 0.0
    packages: tuple[str, ...] = ()
    extra: str = ""
    device: Optional[str] = None
    folder: tuple[str, ...] = ()


FORMATS: dict[str, Format] = {
    "MINDIR": Format(
        ".mindir",
        "rpg_ms.deploy.mindir:write",
        "rpg_ms.deploy.mindir:load",
        ("batch_size", "dynamic_batch", "normalize_input", "softmax"),
        absolute_tolerance=1e-5,
    ),
    # Another runtime sums in another order: over mindcv's families by 1e-6 of the largest output, at most by 7e-6.
    "ONNX": Format(
        ".onnx",
        "rpg_ms.deploy.onnx_file:write",
        "rpg_ms.deploy.onnx_file:load",
        ("batch_size", "dynamic_batch", "normalize_input", "softmax"),
        relative_tolerance=5e-5,
        packages=("onnx", "onnxruntime"),
        extra="onnx",
    ),
    "AIR": Format(
        ".air", "rpg_ms.deploy.mindir:write", None, ("batch_size", "normalize_input", "softmax"), device="Ascend"
    ),
    "C": Format(
        "",
        "rpg_ms.deploy.c.format:write",
        "rpg_ms.deploy.c.format:load",
        ("normalize_input", "softmax", "value_type"),
        relative_tolerance=1e-5,
        packages=("onnx",),
        extra="onnx",
        folder=("net.c", "net.h", "net.bin", "main.c", "Makefile", "README.md", "net", "net.o"),
    ),
    "PACKED": Format(
        ".packed", "rpg_ms.deploy.packed:write", "rpg_ms.deploy.packed:load", ("value_type",), computes=False
    ),
}


def takers(option: str) -> str:
    """The formats that take an option, as text: "MINDIR and ONNX"."""
    *names, last = [name for name, row in FORMATS.items() if option in row.options]
    return f"{', '.join(names)} and {last}" if names else last


def check_options(file_format: str, options: Options) -> None:
    """Raise a UserError for an option that the format does not take, or a value that it cannot have."""
    for option in fields(Options):
        if getattr(options, option.name) != option.default and option.name not in FORMATS[file_format].options:
            raise UserError(f"--{option.name}: for {takers(option.name)} only, not for {file_format}")
    if options.batch_size < 1:
        raise UserError(f"--batch_size: {options.batch_size} is not at least 1")
    if options.value_type not in (None, *VALUE_TYPES):
        raise UserError(f"--value_type: {options.value_type!r} is not one of {', '.join(VALUE_TYPES)}")


def check_machine(file_format: str, device: str) -> None:
    """Raise a UserError unless the format can be written here, where MindSpore's device target is `device`."""
    row = FORMATS[file_format]
    if row.device not in (None, device):
        raise UserError(f"--file_format: {file_format} is written on {row.device} only, not on {device}")
    missing = [name for name in row.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--file_format: {file_format} needs {' and '.join(missing)}, not installed here; "
            f"pip install -e '.[{row.extra}]' in the project's folder installs what it takes"
        )


def file_path(file_format: str, file_name: Union[str, os.PathLike]) -> Path:
    """Where to write: `file_name`, with the format's extension behind it if that is missing; it may be no folder's."""
    name, row = os.fspath(file_name), FORMATS[file_format]
    name, extension = name.rstrip(os.sep) if row.folder and name.strip(os.sep) else name, row.extension
    if not os.path.basename(name):
        raise UserError(f"--file_name: {name!r} names a folder, wanted a file in it")
    return Path(name if name.endswith(extension) else name + extension)

"""A network in C, compiled with this machine's compiler and run."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Optional

import numpy as np

from rpg_ms.errors import UserError

FLAGS = ("-O2", "-ffp-contract=fast")


def compiler() -> Optional[str]:
    """The machine's C compiler: `CC`, or the first of the usual ones; None without any."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next(filter(None, map(shutil.which, names)), None)


def build(folder: Path, library: Path, *flags: str) -> None:
    """Compile net.c to a shared library.

    Raises:
        UserError: the compiler does not take it.
    """
    command = [compiler(), *FLAGS, *flags, "-shared", "-fPIC", "-o", str(library), str(folder / "net.c"), "-lm"]
    found = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if found.returncode:
        lines = [line for line in found.stderr.splitlines() if "error" in line] or found.stderr.splitlines() or ["?"]
        raise UserError(f"--file_format: {command[0]} does not compile the network: {lines[0]}")


def macros(folder: Path) -> dict[str, int]:
    """The numbers that net.h defines, such as NET_INPUT_SIZE."""
    return {name: int(number) for name, number in re.findall(r"#define (\w+) (\d+)", (folder / "net.h").read_text())}


def run(folder: Path, library: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images, float32 with the batch first, to outputs, `[batch, NET_OUTPUT_SIZE]`."""
    numbers = macros(folder)
    function = ctypes.CDLL(str(library)).net_run
    function.restype = None
    weights = np.fromfile(folder / "net.bin", np.uint32) if numbers["NET_WEIGHTS_BYTES"] else None
    space = np.zeros(numbers["NET_ARENA_BYTES"] // 4 + 16, np.float32)
    arena = space[-space.ctypes.data % 64 // 4 :]

    def outputs(images: np.ndarray) -> np.ndarray:
        images = np.ascontiguousarray(images, np.float32).reshape(len(images), numbers["NET_INPUT_SIZE"])
        result = np.empty((len(images), numbers["NET_OUTPUT_SIZE"]), np.float32)
        for image, output in zip(images, result):
            pointers = (None if weights is None else weights, image, output, arena)
            function(*(p if p is None else ctypes.c_void_p(p.ctypes.data) for p in pointers))
        return result

    return outputs


def build_here(folder: Path, library: Path) -> None:
    """`build` for this machine's processor, or for any of its kind if the compiler cannot name it."""
    try:
        build(folder, library, "-march=native", "-s")
    except UserError:
        build(folder, library)

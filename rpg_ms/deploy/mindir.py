"""MindSpore's own files: MINDIR, and AIR for Ascend."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Union

import mindspore as ms
import numpy as np
from mindspore import nn

from rpg_ms.deploy.job import Job
from rpg_ms.deploy.verify import Loaded
from rpg_ms.files import working_folder


def write(job: Job, path: Path) -> None:
    """Write MINDIR or AIR; raises what MindSpore does for what it cannot export."""
    example = ms.Tensor(job.example)
    if job.options.dynamic_batch:
        example = ms.Tensor(shape=[None, *example.shape[1:]], dtype=example.dtype)
    with plain_name(path) as name:
        ms.export(job.deployed(), example, file_name=name, file_format=job.file_format)
    os.chmod(path, 0o644)  # MindSpore makes it read-only, and it is to be flushed to disk


def load(job: Job, path: Path) -> Loaded:
    """Load a MINDIR file."""
    cell = nn.GraphCell(ms.load(str(path)))
    weights = {parameter.name: parameter.asnumpy() for parameter in cell.get_parameters()}

    def run(inputs: np.ndarray) -> Union[np.ndarray, tuple[np.ndarray, ...]]:
        outputs = cell(ms.Tensor(inputs))
        return tuple(one.asnumpy() for one in outputs) if isinstance(outputs, tuple) else outputs.asnumpy()

    return Loaded(weights, run)


@contextmanager
def plain_name(path: Path) -> Iterator[str]:
    """A name to let MindSpore write `path` by: it takes neither blanks nor letters beyond ASCII in a path."""
    plain = f"network{path.suffix}"
    with working_folder(path.parent):
        yield plain
        os.replace(plain, path.name)

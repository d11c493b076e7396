"""A network in C as a format of exports."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, Optional

import mindspore as ms
import numpy as np

from rpg_ms.deploy import onnx_file
from rpg_ms.deploy.c import compiled
from rpg_ms.deploy.c.graph import read_graph
from rpg_ms.deploy.c.lowering import Unsupported
from rpg_ms.deploy.c.operators import lower
from rpg_ms.deploy.c.plan import plan
from rpg_ms.deploy.c.write import write_folder
from rpg_ms.deploy.job import Job
from rpg_ms.deploy.verify import Loaded
from rpg_ms.errors import UserError
from rpg_ms.weights.packed import round_weight

WORTH_IT = 3  # below this reduction of multiply-adds, a dense runtime is about as fast


def write(job: Job, path: Path) -> dict[str, Any]:
    """Write a folder, and compile it where there is a compiler.

    Returns:
        `value_type`, `executed_multiply_adds`, `multiply_adds_reduction`, `code_bytes` (None without a compiler),
        `weights_bytes` and `arena_bytes`.

    Raises:
        UserError: the network has an operator that there is no C for, or is too large.
    """
    value_type, model = job.options.value_type or "float32", job.task.config.model.name
    with tempfile.TemporaryDirectory() as folder:
        onnx_file.write(job, Path(folder) / "network.onnx")
        graph = read_graph(Path(folder) / "network.onnx")
    try:
        builder, output, dense = lower(graph, _rounded(job, value_type))
        told = write_folder(plan(builder, output), int(np.prod(graph.input_shape)), value_type, path)
    except Unsupported as error:
        raise UserError(
            f"--file_format: {model} cannot be exported to C: it lacks the operator {error}; ONNX takes it"
        ) from None
    except OverflowError as error:
        raise UserError(f"--file_format: {model} is too large for C: {error}") from None
    reduction = dense / max(told["executed_multiply_adds"], 1)
    if reduction < WORTH_IT:
        print(
            f"--file_format: the masks leave 1/{reduction:.1f} of {model}'s multiply-adds; below about 1/{WORTH_IT}, a "
            "dense runtime such as onnxruntime is faster than C",
            file=sys.stderr,
        )
    code = _compile(job, path)
    inside = 0 if (path / "net.bin").exists() else told["weights_bytes"]
    told["code_bytes"] = None if code is None else code - inside
    return {"value_type": value_type, "multiply_adds_reduction": round(reduction, 2), **told}


def _rounded(job: Job, value_type: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What `lower` takes: the pruned layers' weights, if they are to be rounded."""
    if value_type == "float32":
        return {}
    try:
        layers = job.sparsified.layers
        return {layer.weight.name: round_weight(layer.weight.asnumpy(), value_type) for layer in layers}
    except ValueError as error:
        raise UserError(f"{job.path}: {error}") from None


def _compile(job: Job, path: Path) -> Optional[int]:
    """The bytes of the library that `load` loads; None without a compiler."""
    if compiled.compiler() is None:
        print(
            f"--file_format: {job.path} was not verified, as there is no C compiler here (CC, cc, gcc, clang)",
            file=sys.stderr,
        )
        return None
    library = path.with_name(f"{path.name}.so")
    compiled.build_here(path, library)
    return library.stat().st_size


def load(job: Job, path: Path) -> Loaded:
    """Load what `write` compiled."""
    library = path.with_name(f"{path.name}.so")
    if not library.exists():
        return Loaded(None)
    run = compiled.run(path, library)
    shape = job.network(ms.Tensor(job.network_inputs[:1])).shape[1:]
    return Loaded(None, lambda images: run(images).reshape(-1, *shape))

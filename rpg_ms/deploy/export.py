"""Export for deployment, verified before success is reported."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Optional, Union

import mindspore as ms
from mindspore import nn

import rpg_ms
from rpg_ms.deploy.formats import Options, check_machine, check_options, file_path
from rpg_ms.deploy.job import Job
from rpg_ms.deploy.verify import verify
from rpg_ms.errors import UserError
from rpg_ms.files import atomic_folder, atomic_path, sha256
from rpg_ms.models.compiling import reason
from rpg_ms.models.flops import layer_flops, parameter_count

if TYPE_CHECKING:
    from rpg_ms.cells import MaskedLayer, Sparsified
    from rpg_ms.tasks.task import Task


def export(
    network: nn.Cell,
    sparsified: Sparsified,
    task: Task,
    file_format: str,
    file_name: Union[str, os.PathLike],
    *,
    trained: Optional[Mapping[str, Any]] = None,
    **options: Any,
) -> dict[str, Any]:
    """Write a network to a file, load it back and compare; only a file that agrees gets its name.

    Beside a FILE that computes comes FILE.json with what a program needs to know to use it.

    Args:
        network: the masked network with its weights.
        sparsified: its `Sparsified`.
        task: whose test inputs the file is verified and measured on.
        file_format: a name of `rpg_ms.deploy.formats.FORMATS`.
        file_name: where to; the format's extension is appended if it is missing.
        trained: `step` and `seconds` of the training run, for a file that keeps them.
        options: the fields of `rpg_ms.deploy.formats.Options`.

    Returns:
        "file", "format", "bytes", "density", "nonzero" and "prunable" (of the masks), and what `verify` returns, or
        `max_abs_difference` as None if the file could not be loaded back. Of a file that computes also what FILE.json
        holds but the classes' names, `parameters` and `multiply_adds` of one image in convolutions and dense layers, as
        a dense runtime holds and executes them, and what of them the masks keep: `nonzero_parameters` and
        `nonzero_multiply_adds`.

    Raises:
        UserError: the format is not to be had here, does not take an option or cannot hold the network, the file cannot
            be written, or what was written does not agree.
    """
    chosen = Options(**options)
    check_machine(file_format, ms.get_context("device_target"))
    check_options(file_format, chosen)
    network.set_train(False)
    path, untrained = file_path(file_format, file_name), {"step": None, "seconds": None}
    job = Job(network, sparsified, task, file_format, chosen, path, trained or untrained)
    costs, used = _costs(job) if job.row.computes else ({}, sparsified.layers)
    try:
        described, verified = _write(job, used)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        raise UserError(f"--file_name: {job.path} could not be written: {why}") from None
    return {**described, **verified, **costs}


def _write(job: Job, used: Sequence[MaskedLayer]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write and verify the file, and FILE.json: what that holds, and what the comparison told."""
    sidecar = job.path.with_name(f"{job.path.name}.json")
    job.path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(job.path, job.row.folder) if job.row.folder else atomic_path(job.path) as written:
        told = resolve_name(job.row.write)(job, written) or {}
        verified = {"max_abs_difference": None}
        if job.row.load is not None:
            verified = verify(job, resolve_name(job.row.load)(job, written), used)
        described = {**_described(job, written), **told}
        described.update((name, verified[name]) for name in described if name in verified)
        if job.row.computes:
            sidecar.unlink(missing_ok=True)  # never one beside a file that it does not describe
    if job.row.computes:
        with atomic_path(sidecar) as written:
            content = {**described, "file": job.path.name, **job.task.names()}
            written.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return described, verified


def _described(job: Job, written: Path) -> dict[str, Any]:
    """What `export` returns and FILE.json holds of the file `written`."""
    sparsified, options = job.sparsified, job.options
    files = sorted(written.iterdir()) if job.row.folder else [written]
    described = {
        "file": str(job.path),
        "format": job.file_format,
        "bytes": sum(file.stat().st_size for file in files),
        "density": sparsified.density,
        "nonzero": sparsified.nonzero,
        "prunable": sparsified.prunable,
    }
    if not job.row.computes:
        return described
    digests = {file.name: sha256(file) for file in files}
    return {
        **described,
        "sha256": digests if job.row.folder else digests[written.name],
        "input_shape": [None if options.dynamic_batch else options.batch_size, *job.task.input_shape],
        **job.task.usage(options.normalize_input),
        "normalize_input": options.normalize_input,
        "softmax": options.softmax,
        **job.task.evaluate(job.network),
        "rpg_ms": rpg_ms.__version__,
        "mindspore": ms.__version__,
    }


def _costs(job: Job) -> tuple[dict[str, int], list]:
    """What a file costs that computes, and the pruned layers that inference uses."""
    layers, other = layer_flops(job.network, job.sparsified, job.task.input_shape)
    count = parameter_count(job.network)
    costs = {
        "parameters": count,
        "nonzero_parameters": count - job.sparsified.prunable + job.sparsified.nonzero,
        "multiply_adds": sum(dense for dense, _ in layers) + other,
        "nonzero_multiply_adds": sum(kept for _, kept in layers) + other,
    }
    return costs, [layer for layer, (dense, _) in zip(job.sparsified.layers, layers) if dense]

"""The packed sparse checkpoint (`rpg_ms.weights.packed`) as a format of exports."""

from __future__ import annotations

from pathlib import Path

from rpg_ms.deploy.job import Job
from rpg_ms.deploy.verify import Loaded, parameters
from rpg_ms.errors import UserError
from rpg_ms.weights.packed import pack, read_packed


def write(job: Job, path: Path) -> None:
    """Write a packed network; a UserError refuses weights that are not finite, or too large for `value_type`."""
    value_type = job.options.value_type or "float32"
    try:
        path.write_bytes(pack(parameters(job.network), value_type, {**job.task.about(), **job.trained}))
    except ValueError as error:
        raise UserError(f"{job.path}: cannot be packed as {value_type}: {error}") from None


def load(job: Job, path: Path) -> Loaded:
    """Load a packed network."""
    return Loaded(read_packed(path, sum(parameter.size for parameter in job.network.get_parameters()))[1])

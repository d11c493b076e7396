"""What was written is compared with the network that it was written from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from rpg_ms.errors import UserError
from rpg_ms.models.compiling import reason
from rpg_ms.weights.packed import MASK, round_weight

if TYPE_CHECKING:
    from rpg_ms.cells import MaskedLayer
    from rpg_ms.deploy.job import Job


@dataclass(frozen=True)
class Loaded:
    """What a file was found to hold.

    Args:
        weights: `{name: array}`; of a file that computes, it may lack those that inference does not use. None where
            they cannot be told from what was folded into them.
        run: what the file computes, from an array to one, or to a tuple if there are several outputs; None if it only
            holds parameters, or cannot be run here.
    """

    weights: Optional[Mapping[str, np.ndarray]]
    run: Optional[Callable[[np.ndarray], Union[np.ndarray, Sequence[np.ndarray]]]] = None


def verify(job: Job, loaded: Loaded, used: Iterable[MaskedLayer]) -> dict[str, Any]:
    """Compare a file with the network; raises a UserError if they differ.

    `used` are the pruned layers that inference uses: MindSpore may leave out the weights of others.

    Returns:
        What the comparison tells. Of a file that computes it is `max_abs_difference`, the largest difference between
        its outputs and the network's (with rounded weights if it holds such); None if it cannot be run here. Of one
        that holds parameters it is `value_type`. Where weights are rounded it is also what that costs:
        `max_weight_difference`, the task's figures with the rounded weights, such as `top1`, and with the network's
        own, such as `checkpoint_top1`.
    """
    value_type = job.options.value_type or "float32"
    if job.row.computes:
        rounded = rounded_weights(job, value_type) if value_type != "float32" else {}
        told = _rounding(job, rounded) if rounded else {}
        with _holding(job.network, rounded):
            difference = _compare_outputs(job, loaded) if loaded.run is not None else None
        if loaded.weights is not None:
            _compare_weights(loaded, used, job.path)
        return {"max_abs_difference": difference, **told}
    _compare_parameters(parameters(job.network), loaded.weights, value_type, job.path)
    return {"value_type": value_type, **(_rounding(job, loaded.weights) if value_type != "float32" else {})}


# ----------------------------------------------------------------------------------------------------
# Files that compute
# ----------------------------------------------------------------------------------------------------


def _compare_outputs(job: Job, loaded: Loaded) -> float:
    """The largest difference between the file's outputs and the network's on test inputs.

    Raises:
        UserError: the file does not run, or the difference is more than the format's tolerance, or changes a decision.
    """
    run, task, row, path = loaded.run, job.task, job.row, job.path
    differences, largest = np.zeros(len(task.outputs)), np.zeros(len(task.outputs))
    count = other_decisions = 0
    for inputs, outputs in _cases(job):
        expected = task.expected_outputs(outputs, job.options.softmax)
        try:
            found = _arrays(run(inputs))
        except Exception as error:  # onnxruntime has a class of its own for every status
            if len(inputs) == job.options.batch_size:
                raise UserError(f"{path}: does not run: {reason(error)}") from None
            raise UserError(
                f"--dynamic_batch: the network computes with its batch size, so as {job.file_format} "
                "it runs with no other; choose one with --batch_size"
            ) from None
        shapes, wanted = ([one.shape for one in arrays] for arrays in (found, expected))
        if shapes != wanted:
            raise UserError(f"{path}: returns {shapes} where the network returns {wanted}")
        found = task.aligned(found, expected)
        differences = np.maximum(differences, [np.abs(a - np.float64(b)).max() for a, b in zip(found, expected)])
        largest = np.maximum(largest, [np.abs(one).max() for one in expected])
        count += len(inputs)
        other_decisions += int(np.count_nonzero(task.decisions(found) != task.decisions(outputs)))
    for name, difference, tolerance in zip(
        task.outputs, differences, row.absolute_tolerance + row.relative_tolerance * largest
    ):
        if not difference <= tolerance:
            raise UserError(
                f"{path}: its {name} differ from the network's by {difference:.3g}, more than {tolerance:.3g}"
            )
    if other_decisions:
        raise UserError(f"{path}: its {task.decision} is not the network's for {other_decisions} of {count} images")
    return float(differences.max())


def _cases(job: Job) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
    """Batches of the file's inputs, and the network's outputs for them; of two sizes if the file takes any."""
    batch_size, count = job.options.batch_size, len(job.network_inputs)
    batches = [slice(start, start + batch_size) for start in range(0, count, batch_size)]
    if job.options.dynamic_batch:
        batches.append(slice(batch_size - 1 or 2))
    for batch in batches:
        outputs = _arrays(job.network(ms.Tensor(job.network_inputs[batch])))
        yield job.file_inputs[batch], tuple(output.asnumpy() for output in outputs)


def _arrays(outputs: Any) -> tuple:
    """One output or several, as a tuple."""
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _compare_weights(loaded: Loaded, layers: Iterable[MaskedLayer], path: Path) -> None:
    """Raise a UserError unless the file has the layers' weights to the bit, zeros where their masks are."""
    for layer in layers:
        if layer.weight.name not in loaded.weights:
            raise UserError(f"{path}: does not hold {layer.weight.name}")
        weight = loaded.weights[layer.weight.name]
        if not np.array_equal(weight, layer.weight.asnumpy()):
            raise UserError(f"{path}: {layer.weight.name} is not the checkpoint's")
        if weight[~layer.mask.asnumpy()].any():
            raise UserError(f"{path}: {layer.weight.name} is not zero where its mask is")


# ----------------------------------------------------------------------------------------------------
# Files that hold parameters
# ----------------------------------------------------------------------------------------------------


def parameters(network: nn.Cell) -> dict[str, np.ndarray]:
    """All parameters of a network, masks included, as copies."""
    return {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}


def _compare_parameters(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], value_type: str, path: Path
) -> None:
    """Raise a UserError unless the network's parameters and those that were read back from the file at `path` are the
    same to the bit, and weights with masks, rounded to `value_type`, as near as can be.
    """
    differing = sorted(before.keys() ^ after.keys())
    for name in before.keys() & after.keys():
        one, other = before[name], after[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            differing.append(name)
            continue
        if name + MASK in before:
            one = np.where(before[name + MASK], one, one.dtype.type(0))  # a zero outside may be a negative one
            if value_type == "float16":
                one = one.astype(np.float16).astype(other.dtype)
            if value_type == "int8":  # half a step; a step is at most 1/63 of a channel's largest weight
                exact = one.astype(np.float32).reshape(len(one), -1)
                limit = np.abs(exact).max(1) / 126 + 2.0**-126
                error = np.abs(exact - other.reshape(exact.shape)).max(1)
                one = other if (error <= limit).all() else one
        if one.tobytes() != other.tobytes():
            differing.append(name)
    if differing:
        raise UserError(f"{path}: {differing[0]} is not what was written")


def _rounding(job: Job, rounded: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What it costs to round the weights to those in `rounded`; the network is left as it was."""
    weights = {layer.weight.name: layer.weight.asnumpy() for layer in job.sparsified.layers}
    difference = max(float(np.abs(rounded[name] - weight).max()) for name, weight in weights.items())
    figures = {f"checkpoint_{name}": figure for name, figure in job.task.evaluate(job.network).items()}
    with _holding(job.network, rounded):
        return {"max_weight_difference": difference, **job.task.evaluate(job.network), **figures}


def rounded_weights(job: Job, value_type: str) -> dict[str, np.ndarray]:
    """The pruned layers' weights as a file keeps them in fewer bits, back in float32.

    Raises:
        UserError: they are not finite, or too large.
    """
    weights = {}
    for layer in job.sparsified.layers:
        try:
            values, scale = round_weight(layer.weight.asnumpy(), value_type)
        except ValueError as error:
            raise UserError(f"{job.path}: {layer.weight.name} {error}") from None
        weights[layer.weight.name] = values * scale.reshape(-1, *[1] * (values.ndim - 1))
    return weights


@contextmanager
def _holding(network: nn.Cell, arrays: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Within the block the network's parameters of these names have these values."""
    held = [parameter for parameter in network.get_parameters() if parameter.name in arrays]
    before = [parameter.asnumpy().copy() for parameter in held]
    try:
        for parameter in held:
            ops.assign(parameter, ms.Tensor(arrays[parameter.name], parameter.dtype))
        yield
    finally:
        for parameter, value in zip(held, before):
            ops.assign(parameter, ms.Tensor(value, parameter.dtype))

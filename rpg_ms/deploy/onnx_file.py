"""ONNX, written by MindSpore and loaded back in onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms

from rpg_ms.deploy.job import Job
from rpg_ms.deploy.mindir import plain_name
from rpg_ms.deploy.onnx_operators import exportable, restore_operators
from rpg_ms.deploy.verify import Loaded
from rpg_ms.errors import UserError
from rpg_ms.models.compiling import reason

LARGEST = 2**31  # bytes of a protobuf file


def write(job: Job, path: Path) -> None:
    """Write ONNX, with the input "images" and the task's outputs by name.

    Raises:
        UserError: the network is too large for the format, or has an operator that MindSpore cannot export or
            onnxruntime does not take.
    """
    import onnx

    size = sum(parameter.nbytes for parameter in job.network.trainable_params())
    if size > LARGEST:
        raise UserError(
            f"--file_format: ONNX holds at most 2 GiB in one file; the network's weights take {size / 2**30:.1f} GiB"
        )
    axes = {"images": {0: "batch"}} if job.options.dynamic_batch else None
    example = ms.Tensor(job.example)  # read before the working folder changes
    try:
        with exportable(job.network), plain_name(path) as name:
            ms.onnx.export(
                job.deployed(),
                example,
                file_name=name,
                input_names=["images"],
                output_names=list(job.task.outputs),
                dynamic_axes=axes,
            )
    except RuntimeError as error:
        operator = re.search(r"(\w+) operator ", str(error))
        if operator is None:
            raise
        raise UserError(
            f"--file_format: {job.task.config.model.name} cannot be exported to ONNX: MindSpore {ms.__version__} "
            f"cannot export its operator {operator[1]}; MINDIR takes it"
        ) from None
    written = onnx.load(str(path))
    with _as_refusal():
        restore_operators(written)
        if job.options.dynamic_batch:  # MindSpore names the input's axis only
            for output in written.graph.output:
                output.type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.checker.check_model(written)
    onnx.save(written, str(path))


def load(job: Job, path: Path) -> Loaded:
    """Load an ONNX file in onnxruntime; a UserError says if that does not take it."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well
    with _as_refusal():
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    initializers = onnx.load(str(path)).graph.initializer
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in initializers}
    return Loaded(weights, lambda inputs: session.run(None, {"images": inputs}))


@contextmanager
def _as_refusal() -> Iterator[None]:
    """Raise a UserError, as MindSpore's file is no good, in the place of onnx's and onnxruntime's own exceptions."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"--file_format: the network cannot be exported to ONNX: {reason(error)}; MINDIR takes it"
        ) from None

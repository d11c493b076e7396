"""Export for deployment, verified before success is reported."""
from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn, ops

import rpg_ms
from rpg_ms.deploy.compact import compact
from rpg_ms.deploy.onnx_operators import exportable, restore_operators
from rpg_ms.errors import UserError
from rpg_ms.files import atomic_path, working_folder
from rpg_ms.models.compiling import reason
from rpg_ms.models.flops import layer_flops, parameter_count

IMAGES = 64  # real test images that a file is verified on, at least
MINDIR_TOLERANCE = 1e-5  # of an output
# Of the largest output, as another runtime sums in another order: over mindcv's families 1e-6, at most 7e-6.
ONNX_TOLERANCE = 5e-5
COMPACTION_TOLERANCE = 1e-5  # of an output, or of the largest where that is above 1
CHANNELS = 8  # a compacted network has multiples of it, as onnxruntime's layouts on AVX2 want
ONNX_LIMIT = 2 ** 31  # bytes of a protobuf file


def export(network, found, task, file_format, file_name, batch_size=1, dynamic_batch=False,
           normalize_input=False, softmax=False, compacted=False):
    """Write a network to a file, load it back and compare; only a file that agrees gets its name.

    Beside FILE comes FILE.json with what a program needs to know to use it.

    Args:
        network: the masked network with its weights.
        found: its `Sparsified`.
        task: `rpg_ms.tasks.Classification`, whose test images the file is verified and measured on.
        file_format: "MINDIR", "ONNX" (needs the packages onnx and onnxruntime) or "AIR" (on Ascend; it is not
            verified).
        file_name: where to; the format's extension is appended if it is missing.
        batch_size: batch of the exported network.
        dynamic_batch: export for any batch size (MINDIR, ONNX).
        normalize_input: the file takes pixels, 0 to 255, float32, and normalises them itself.
        softmax: the file returns probabilities in the place of logits.
        compacted: leave out the channels that the zeros made dead (ONNX; `rpg_ms.deploy.compact`).

    Returns:
        What FILE.json holds but the classes' names, and
        `max_abs_difference`: largest difference between the file's outputs and the network's; None for AIR.
        `parameters`, `multiply_adds`: parameters, and multiply-adds of one image in convolutions and dense layers, as
        a dense runtime holds and executes them.
        `nonzero_parameters`, `nonzero_multiply_adds`: what of them the masks keep; all of what is not pruned.
        `compacted_multiply_adds`, `compaction_difference`: what a dense runtime executes of the compacted file, and
        the largest change of an output by compaction; only with `compacted`.

    Raises:
        UserError: the format is not to be had here or cannot hold the network, the file cannot be written, or
            what was written does not agree.
    """
    _refuse(file_format, dynamic_batch, network)
    extension = f".{file_format.lower()}"
    path = Path(file_name if str(file_name).endswith(extension) else f"{file_name}{extension}")
    sidecar = path.with_name(f"{path.name}.json")
    model, dataset = task.config.model.name, task.dataset
    network.set_train(False)
    images = task.test_images(-(-IMAGES // batch_size) * batch_size)
    inputs = task.test_images(len(images), raw=True) if normalize_input else images
    flops, other_flops = layer_flops(network, found, task.input_shape)
    # A new cell compiles anew: the ONNX exporter changes the graph it reads, and fails on it a second time.
    deployed = Deployed(network, (dataset.mean, dataset.std) if normalize_input else None, softmax)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as written:
            deployed.set_train(False)
            _write(deployed, inputs[:batch_size], file_format, dynamic_batch, str(written), model)
            compaction = _compact(written, inputs[:batch_size]) if compacted else {}
            difference = None
            if file_format != "AIR":
                run, weights = _load_onnx(written) if file_format == "ONNX" else _load_mindir(written)
                batches = [slice(i, i + batch_size) for i in range(0, len(images), batch_size)]
                if dynamic_batch:
                    batches.append(slice(batch_size - 1 or 2))  # of another size
                cases = [(inputs[i], network(ms.Tensor(images[i])).asnumpy()) for i in batches]
                difference = _compare_outputs(run, cases, path, file_format, softmax)
                # MindSpore leaves out the weights that inference does not use.
                used = [layer for layer, (dense, _) in zip(found.layers, flops) if dense and not compacted]
                _compare_weights(weights, used, path)
            described = {
                "file": str(path), "format": file_format, "bytes": written.stat().st_size,
                "sha256": hashlib.sha256(written.read_bytes()).hexdigest(), "model": model,
                "input_shape": [None if dynamic_batch else batch_size, *task.input_shape],
                "input_layout": "NCHW", "input_dtype": "float32",
                "input_values": "pixels, 0 to 255" if normalize_input else "(pixels / 255 - mean) / std",
                "normalize_input": normalize_input, "mean": list(dataset.mean), "std": list(dataset.std),
                "softmax": softmax, "compacted": compacted, "classes": task.classes, "density": found.density,
                "nonzero": found.nonzero, "prunable": found.prunable, **task.evaluate(network),
                "rpg_ms": rpg_ms.__version__, "mindspore": ms.__version__,
            }
            sidecar.unlink(missing_ok=True)  # never one beside a file that it does not describe
        with atomic_path(sidecar) as written:
            content = {**described, "file": path.name, "class_names": dataset.class_names}
            written.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"--file_name: {path} could not be written: {reason(error)}") from None
    parameters = parameter_count(network)
    return {**described, "max_abs_difference": difference, "parameters": parameters,
            "nonzero_parameters": parameters - found.prunable + found.nonzero,
            "multiply_adds": sum(dense for dense, _ in flops) + other_flops,
            "nonzero_multiply_adds": sum(kept for _, kept in flops) + other_flops, **compaction}


class Deployed(nn.Cell):
    """A network as it is exported: images in, logits or probabilities out.

    Args:
        network: from normalised images to logits.
        normalisation: mean and std of each channel to normalise pixels with, or None.
        softmax: whether to return probabilities.
    """

    def __init__(self, network, normalisation, softmax):
        super().__init__(auto_prefix=False)  # the Parameters keep their names
        self.network = network
        self.normalize_input = normalisation is not None
        if self.normalize_input:
            mean, std = (np.float32(values).reshape(1, -1, 1, 1) for values in normalisation)
            self.mean, self.std = ms.Tensor(mean), ms.Tensor(std)
        self.softmax = softmax

    def construct(self, images):
        if self.normalize_input:
            images = (images / 255 - self.mean) / self.std
        outputs = self.network(images)
        return ops.softmax(outputs, 1) if self.softmax else outputs


def _refuse(file_format, dynamic_batch, network):
    """Raise a UserError for what cannot be exported here."""
    target = ms.get_context("device_target")
    if file_format == "AIR" and target != "Ascend":
        raise UserError(f"--file_format: AIR is written on Ascend only, not on {target}")
    if file_format == "AIR" and dynamic_batch:
        raise UserError("--dynamic_batch: for MINDIR and ONNX only, not for AIR")
    if file_format == "ONNX":
        missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"--file_format: ONNX needs {' and '.join(missing)}, not installed here; "
                            "pip install -e '.[onnx]' in the project's folder installs what it takes")
        size = sum(parameter.nbytes for parameter in network.trainable_params())
        if size > ONNX_LIMIT:
            raise UserError("--file_format: ONNX holds at most 2 GiB in one file; the network's weights take "
                            f"{size / 2 ** 30:.1f} GiB")


# ----------------------------------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------------------------------


def _write(deployed, example, file_format, dynamic_batch, path, model):
    if file_format == "ONNX":
        _write_onnx(deployed, example, dynamic_batch, path, model)
        return
    example = ms.Tensor(example)
    if dynamic_batch:
        example = ms.Tensor(shape=[None, *example.shape[1:]], dtype=example.dtype)
    with _plain_name(path) as name:
        ms.export(deployed, example, file_name=name, file_format=file_format)
    os.chmod(path, 0o644)  # MindSpore makes it read-only, and it is to be flushed to disk


def _write_onnx(deployed, example, dynamic_batch, path, model):
    import onnx

    axes = {"images": {0: "batch"}} if dynamic_batch else None
    try:
        with exportable(deployed.network), _plain_name(path) as name:
            ms.onnx.export(deployed, ms.Tensor(example), file_name=name, input_names=["images"],
                           output_names=["outputs"], dynamic_axes=axes)
    except RuntimeError as error:
        operator = re.search(r"(\w+) operator ", str(error))
        if operator is None:
            raise
        raise UserError(f"--file_format: {model} cannot be exported to ONNX: MindSpore {ms.__version__} "
                        f"cannot export its operator {operator[1]}; MINDIR takes it") from None
    written = onnx.load(path)
    with _as_refusal():
        restore_operators(written)
        if dynamic_batch:  # MindSpore names the input's axis only
            written.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.checker.check_model(written)
    onnx.save(written, path)


@contextmanager
def _plain_name(path):
    """A name to let MindSpore write `path` by: it takes neither blanks nor letters beyond ASCII in a path."""
    folder, name = os.path.split(path)
    with working_folder(folder):
        plain = f"network{os.path.splitext(name)[1]}"
        yield plain
        os.replace(plain, name)


@contextmanager
def _as_refusal():
    """What onnx and onnxruntime raise, exceptions of their own among it, as a UserError: MindSpore's file is no good."""
    try:
        yield
    except Exception as error:
        raise UserError(f"--file_format: the network cannot be exported to ONNX: {reason(error)}; MINDIR takes it") from None


def _compact(path, images):
    """Compact the ONNX file; what a dense runtime then executes, and by how much its outputs changed."""
    import onnx

    before = _load_onnx(path)[0](images)
    with _as_refusal():
        model, _, multiply_adds = compact(onnx.load(path), CHANNELS)
    onnx.save(model, path)
    difference = float(np.abs(_load_onnx(path)[0](images) - before).max())
    if not difference <= COMPACTION_TOLERANCE * max(1, np.abs(before).max()):
        raise UserError(f"--compact: the outputs would change by {difference:.3g}; export without it")
    return {"compacted_multiply_adds": multiply_adds, "compaction_difference": difference}


# ----------------------------------------------------------------------------------------------------
# Loading back and comparing
# ----------------------------------------------------------------------------------------------------


def _load_mindir(path):
    """What the file computes, from array to array, and its weights by name."""
    cell = nn.GraphCell(ms.load(str(path)))
    weights = {parameter.name: parameter.asnumpy() for parameter in cell.get_parameters()}
    return lambda images: cell(ms.Tensor(images)).asnumpy(), weights


def _load_onnx(path):
    """What `_load_mindir` returns."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well
    with _as_refusal():
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    initializers = onnx.load(str(path)).graph.initializer
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in initializers}
    return lambda images: session.run(None, {"images": images})[0], weights


def _compare_outputs(run, cases, path, file_format, softmax):
    """The largest difference between the file's outputs and the network's, once small enough.

    Args:
        run: what the file computes, from array to array.
        cases: batches of inputs, and the network's logits for them; of several sizes if the file takes any.
    """
    difference = largest = 0.0
    other_classes = 0
    for inputs, logits in cases:
        expected = _softmax(logits) if softmax else logits
        try:
            outputs = run(inputs)
        except Exception as error:  # onnxruntime has a class of its own for every status
            if len(inputs) == len(cases[0][0]):
                raise UserError(f"{path}: does not run: {reason(error)}") from None
            raise UserError(f"--dynamic_batch: the network computes with its batch size, so as {file_format} "
                            "it runs with no other; choose one with --batch_size") from None
        if outputs.shape != expected.shape:
            raise UserError(f"{path}: returns {outputs.shape} where the network returns {expected.shape}")
        difference = max(difference, float(np.abs(outputs - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
        other_classes += int(np.count_nonzero(outputs.argmax(1) != logits.argmax(1)))
    tolerance = ONNX_TOLERANCE * largest if file_format == "ONNX" else MINDIR_TOLERANCE
    if not difference <= tolerance:
        raise UserError(f"{path}: its outputs differ from the network's by {difference:.3g}, more than "
                        f"{tolerance:.3g}")
    if other_classes:
        raise UserError(f"{path}: its top-1 class is not the network's for {other_classes} of "
                        f"{sum(len(inputs) for inputs, _ in cases)} images")
    return difference


def _compare_weights(weights, layers, path):
    """Raise a UserError unless the file has the layers' weights to the bit, zeros where their masks are."""
    for layer in layers:
        if layer.weight.name not in weights:
            raise UserError(f"{path}: does not hold {layer.weight.name}")
        weight = weights[layer.weight.name]
        if not np.array_equal(weight, layer.weight.asnumpy()):
            raise UserError(f"{path}: {layer.weight.name} is not the checkpoint's")
        if weight[~layer.mask.asnumpy()].any():
            raise UserError(f"{path}: {layer.weight.name} is not zero where its mask is")


def _softmax(logits):
    powers = np.exp(np.float64(logits) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)

"""Export for deployment, verified before success is reported."""
from __future__ import annotations

import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from rpg_ms.errors import UserError, one_line

FORMATS = ("MINDIR", "ONNX", "AIR")
TOLERANCE = 1e-5


def export(network, found, images, file_format, file_name, batch_size=1, dynamic_batch=False):
    """Write a network to a file, load it back and compare; only a file that agrees gets its name.

    Args:
        network: the masked network with its weights.
        found: its `Sparsified`.
        images: float32 array `[n, channels, height, width]`, real images to compare on.
        file_format: "MINDIR", "ONNX" or "AIR" (on Ascend).
        file_name: where to; the format's extension is appended if it is missing.
        batch_size: batch of the exported network; at most `n`.
        dynamic_batch: export for any batch size (MINDIR).

    Returns:
        `{"file", "format", "bytes", "density", "nonzero_weights", "max_abs_difference"}`: density of the masks, which
        the file was found to keep; weights that are not zero; the largest difference between the logits of the file
        and of the network. The last two are None for a format that cannot be run here.

    Raises:
        UserError: the format is not to be had here, the file cannot be written, or what was written does not agree.
    """
    if file_format == "AIR" and ms.get_context("device_target") != "Ascend":
        raise UserError(f"--file_format: AIR is written on Ascend only, not on {ms.get_context('device_target')}")
    if dynamic_batch and file_format != "MINDIR":
        raise UserError(f"--dynamic_batch: for MINDIR only, not for {file_format}")
    extension = f".{file_format.lower()}"
    path = Path(file_name if str(file_name).endswith(extension) else f"{file_name}{extension}")
    network.set_train(False)
    example = ms.Tensor(images[:batch_size])
    if dynamic_batch:
        example = ms.Tensor(shape=[None, *images.shape[1:]], dtype=ms.float32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own, because MindSpore closes the folder it exports to for other users.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder) / path.name
            ms.export(network, example, file_name=str(written), file_format=file_format)
            written.chmod(0o644)
            report = {"file": str(path), "format": file_format, "bytes": written.stat().st_size,
                      "density": found.density, "nonzero_weights": None, "max_abs_difference": None}
            if file_format == "MINDIR":
                report.update(_verify_mindir(written, path, network, found, images, batch_size))
            written.replace(path)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"--file_name: {path} could not be written: {one_line(str(error))}") from None
    return report


def _verify_mindir(written, path, network, found, images, batch_size):
    loaded = nn.GraphCell(ms.load(str(written)))
    difference = 0.0
    for start in range(0, len(images) - batch_size + 1, batch_size):
        batch = ms.Tensor(images[start:start + batch_size])
        difference = max(difference, float(np.abs(loaded(batch).asnumpy() - network(batch).asnumpy()).max()))
    if not difference <= TOLERANCE:
        raise UserError(f"{path}: its logits differ from the network's by {difference:.3g}, more than {TOLERANCE:g}")
    weights = {parameter.name: parameter for parameter in loaded.get_parameters()}
    nonzero = 0
    for layer in found.layers:
        if layer.weight.name not in weights:
            raise UserError(f"{path}: does not hold {layer.weight.name}")
        weight = weights[layer.weight.name].asnumpy()
        if not np.array_equal(weight, layer.weight.asnumpy()):
            raise UserError(f"{path}: {layer.weight.name} is not the checkpoint's")
        if weight[~layer.mask.asnumpy()].any():
            raise UserError(f"{path}: {layer.weight.name} is not zero where its mask is")
        nonzero += int(np.count_nonzero(weight))
    return {"max_abs_difference": difference, "nonzero_weights": nonzero}

"""Weights from a file into a network, by MindSpore's or PyTorch's names, and out again under PyTorch's.

Nearly all names follow from the layers: a batch norm's `gamma` is PyTorch's `weight`. What differs beyond
that, because mindcv and torchvision chose other names, is in `FAMILIES`.
"""
from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import mindspore as ms
import numpy as np
from mindcv.models.mobilenetv2 import MobileNetV2
from mindcv.models.resnet import ResNet
from mindspore import nn
from safetensors import SafetensorError
from safetensors.numpy import save_file

from rpg_ms.cells.masked import set_topology
from rpg_ms.errors import UserError, one_line
from rpg_ms.files import atomic_path
from rpg_ms.weights.files import COUNTERS, read_weights, shorten

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm,
         nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
CONV_1D = (nn.Conv1d, nn.Conv1dTranspose)  # MindSpore keeps a height of 1 in their weights
OWN_NAMES = (
    (NORMS, {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
             "moving_variance": "running_var"}),
    ((nn.Embedding,), {"embedding_table": "weight"}),
    ((nn.PReLU,), {"w": "weight"}),
)
PRUNED_ELSEWHERE = 0.01  # share of zeros beyond which a file holds a pruned network
LARGER = 4  # times the network, and 2^24 weights: what a packed file may unpack to, with a wider classifier say
MASK = "weight_mask"
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, Lightning


def _torchvision_mobilenet_v2(name):
    """torchvision makes one module of convolution, norm and activation where mindcv makes three layers."""
    if not name.startswith("features."):
        return name
    _, index, rest = name.split(".", 2)
    if not rest.startswith("layers."):
        stem = int(index) < 2
        return f"features.{0 if stem else 18}.{int(index) - (0 if stem else 20)}.{rest}"
    block = int(index) - 2
    _, layer, attribute = rest.split(".")
    places = {0: "0.0", 1: "0.1", 3: "1", 4: "2"} if block == 1 else {
        0: "0.0", 1: "0.1", 3: "1.0", 4: "1.1", 6: "2", 7: "3"}
    return f"features.{block}.conv.{places[int(layer)]}.{attribute}"


FAMILIES = (
    (ResNet, lambda name: re.sub(r"^classifier\.", "fc.", name.replace(".down_sample.", ".downsample."))),
    (MobileNetV2, _torchvision_mobilenet_v2),
)


def pytorch_names(network):
    """`{name: PyTorch's name}` of every Parameter of a network but its masks: torchvision's for ResNet, VGG and
    MobileNet-v2, timm's for vision transformers, and otherwise what follows from the layers.
    """
    family = next((rename for kind, rename in FAMILIES if isinstance(network, kind)), lambda name: name)
    names = {}
    for _, cell in network.cells_and_names():
        own = next((table for kinds, table in OWN_NAMES if isinstance(cell, kinds)), {})
        for path, parameter in cell.parameters_and_names(expand=False):
            stem, dot, attribute = parameter.name.rpartition(".")
            if attribute != MASK and parameter.name not in names:
                names[parameter.name] = family(stem + dot + own.get(attribute, attribute))
    return names


def to_pytorch(network):
    """The network's weights as `{name: array}`, PyTorch's names and shapes; masks are left out."""
    names, squeezed, counters = pytorch_names(network), set(), {}
    for _, cell in network.cells_and_names():
        if isinstance(cell, CONV_1D):
            squeezed.add(cell.weight.name)
        elif isinstance(cell, BATCH_NORMS):
            counters[names[cell.gamma.name].replace("weight", "num_batches_tracked")] = np.zeros((), np.int64)
    weights = {}
    for parameter in network.get_parameters():
        if parameter.name in names:
            value = parameter.asnumpy().copy()
            weights[names[parameter.name]] = value.squeeze(2) if parameter.name in squeezed else value
    return {**weights, **counters}


def write_weights(path, network):
    """Write a network's weights without masks: a MindSpore checkpoint if `path` ends with .ckpt, and if it
    ends with .safetensors a file under PyTorch's names for `safetensors.torch.load_file`.

    Raises:
        UserError: another ending, or a file that cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".ckpt", ".safetensors"):
        raise UserError(f"{path}: weights are written to a .ckpt or a .safetensors file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            if path.suffix == ".safetensors":
                save_file(to_pytorch(network), str(temporary), {"format": "pt"})
            else:
                ms.save_checkpoint([{"name": parameter.name, "data": parameter}
                                    for parameter in network.get_parameters() if not parameter.name.endswith(MASK)],
                                   str(temporary))
                temporary.chmod(0o644)  # MindSpore makes it read-only, and it is to be flushed to disk
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written: {one_line(str(error))}") from None


def load_weights(path, network, found, allow=(), entry=None, allow_with=None):
    """Load a file into a network; every tensor of both is used, unless the difference is allowed.

    A file that carries masks (a checkpoint of this package) sets them. Otherwise the file tells by its zeros:
    if more than 1 % of its prunable weights are exactly 0, it holds a pruned network, and every zero is
    masked. A dense network has next to none.

    Args:
        path: file, as `read_weights` takes it; its names are MindSpore's or PyTorch's, whichever fit better,
            with or without a wrapper's prefix.
        network: the network, not compiled yet.
        found: its `Sparsified`.
        allow: patterns with shell wildcards for the names, on either side, of what may be unused, missing or
            of another shape; the network keeps its own values there.
        entry: see `read_weights`.
        allow_with: where the user states `allow`, for the message.

    Raises:
        UserError: the file cannot be read, does not fit, or holds what is not finite.
    """
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    tensors = read_weights(path, entry, LARGER * sum(parameter.size for parameter in parameters.values()) + 2 ** 24)
    if not tensors:
        raise UserError(f"{path}: holds no weights")
    pytorch = pytorch_names(network)
    namings = ({name: name for name in parameters}, {name: own for own, name in pytorch.items()},
               getattr(network, "former_names", {}))
    ours = _our_names(tensors, namings)
    values = {ours[name]: value for name, value in tensors.items() if name in ours}
    for _, cell in network.cells_and_names():
        if isinstance(cell, CONV_1D) and np.ndim(values.get(cell.weight.name)) == 3:
            values[cell.weight.name] = values[cell.weight.name][:, :, None]

    def refused(name, *aliases):
        return not any(fnmatchcase(alias, pattern) for pattern in allow for alias in (name, *aliases))

    optional = {layer.mask.name for layer in found.layers}
    fitting = {name: value for name, value in values.items() if value.shape == parameters[name].shape}
    problems = {
        "not found": [name for name in parameters if name not in values and name not in optional
                      and not name.endswith(COUNTERS) and refused(name, pytorch.get(name, name))],
        "not used": [name for name in tensors if name not in ours and refused(name)],
        "of another shape": [
            f"{name} ({values[ours[name]].shape} in the file, {parameters[ours[name]].shape} in the network)"
            for name in tensors if name in ours and ours[name] not in fitting and refused(name, ours[name])]}
    if any(problems.values()):
        listed = "; ".join(f"{problem}: {shorten(names)}" for problem, names in problems.items() if names)
        hint = f"; what may differ is named by {allow_with}" if allow_with else ""
        raise UserError(f"{path} does not fit the network: {listed}{hint}")

    for name, value in fitting.items():
        parameter = parameters[name]
        if (value.dtype.kind == "f") != parameter.is_floating_point():
            raise UserError(f"{path}: {name} is {value.dtype} in the file, {parameter.dtype} in the network")
        tensor = ms.Tensor(np.asarray(value, order="C"), parameter.dtype)
        if parameter.is_floating_point() and not np.isfinite(tensor.asnumpy()).all():
            raise UserError(f"{path}: {name} is not finite")
        parameter.set_data(tensor)
    _set_masks([layer for layer in found.layers if layer.weight.name in fitting], fitting)


def _our_names(names, namings):
    """`{name in the file: Parameter's name}` for names that have one, by the naming that knows the most."""
    short, best = {name: name for name in names}, {}
    while True:
        for naming in namings:
            matched = {name: naming[short[name]] for name in names if short[name] in naming}
            best = max(best, matched, key=len)
        prefix = next((prefix for prefix in PREFIXES
                       if all(name.startswith(prefix) for name in short.values())), None)
        if prefix is None:
            return best
        short = {name: rest[len(prefix):] for name, rest in short.items()}


def _set_masks(layers, values):
    """The masks of `layers` from the masks in a file, else from its zeros."""
    zeros = sum(int(np.count_nonzero(values[layer.weight.name] == 0)) for layer in layers)
    with_masks = any(layer.mask.name in values for layer in layers)
    if with_masks or zeros > PRUNED_ELSEWHERE * sum(layer.weight.size for layer in layers):
        for layer in layers:
            weight = layer.weight.asnumpy().copy()
            set_topology(layer, weight, layer.mask.asnumpy() if with_masks else weight != 0)

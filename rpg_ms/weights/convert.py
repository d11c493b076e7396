"""Weights from a file into a network, by MindSpore's or PyTorch's names, and out again under PyTorch's."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import nn
from safetensors import SafetensorError
from safetensors.numpy import save_file

from rpg_ms.cells.masked import set_topology
from rpg_ms.errors import UserError, one_line
from rpg_ms.files import atomic_path
from rpg_ms.weights.files import COUNTERS, Contents, read_file, shorten
from rpg_ms.weights.names import BATCH_NORMS, MASK, all_names, find_names, namings, pytorch_names, without_wrappers

if TYPE_CHECKING:
    from rpg_ms.cells import MaskedLayer, Sparsified

CONV_1D = (nn.Conv1d, nn.Conv1dTranspose)  # MindSpore keeps a height of 1 in their weights
PRUNED_ELSEWHERE = 0.01  # share of zeros beyond which a file holds a pruned network
LARGER = 4  # times the network, and 2^24 weights: what a packed file may unpack to, with a wider classifier say
_log = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]


def to_pytorch(network: nn.Cell) -> Arrays:
    """The network's weights as `{name: array}`, PyTorch's names and shapes, what has two names under both; masks are
    left out.
    """
    names, weights = all_names(network), {}
    squeezed = {cell.weight.name for _, cell in network.cells_and_names() if isinstance(cell, CONV_1D)}
    for parameter in network.get_parameters():
        value = parameter.asnumpy().copy()
        for _, name in names.get(parameter.name, ()):
            weights[name] = value.squeeze(2) if parameter.name in squeezed else value
    for _, cell in network.cells_and_names():
        if isinstance(cell, BATCH_NORMS):
            for _, name in names[cell.gamma.name]:
                weights[name.replace("weight", "num_batches_tracked")] = np.zeros((), np.int64)
    return weights


def write_weights(path: Union[str, os.PathLike], network: nn.Cell) -> None:
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
                entries = [{"name": p.name, "data": p} for p in network.get_parameters() if not p.name.endswith(MASK)]
                ms.save_checkpoint(entries, str(temporary))
                temporary.chmod(0o644)  # MindSpore makes it read-only, and it is to be flushed to disk
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written: {one_line(str(error))}") from None


def load_weights(
    path: Union[str, os.PathLike],
    network: nn.Cell,
    sparsified: Sparsified,
    allow: Sequence[str] = (),
    entry: Optional[str] = None,
    prefix: Optional[str] = None,
    keys: Optional[str] = None,
) -> None:
    """Load a file into a network; every tensor of both is used, unless the difference is allowed.

    A file that carries masks (a checkpoint of this package, or a network of torch.nn.utils.prune) sets them. Otherwise
    the file tells by its zeros: if more than 1 % of its prunable weights are exactly 0, it holds a pruned network, and
    every zero is masked. A dense network has next to none.

    What MindSpore's optimizers and callbacks write beside a network is passed over. A prunable weight that the file
    does not set, as `allow` lets it, is named in a warning.

    Args:
        path: file, as `read_file` takes it; its names are MindSpore's or PyTorch's, whichever fit better, with or
            without those of PyTorch's wrappers and a prefix, which is looked for.
        network: the network, not compiled yet.
        sparsified: its `Sparsified`.
        allow: patterns with shell wildcards for the names, on either side, of what may be unused, missing or
            of another shape; the network keeps its own values there.
        entry: see `read_file`.
        prefix: take only what has this prefix, "encoder_q" say, and without it; None to find it.
        keys: where the user states these, "model.pretrained_{}" say, for the messages.

    Raises:
        UserError: the file cannot be read, does not fit, or holds what is not finite.
    """
    path, parameters = Path(path), network.parameters_dict()
    largest = LARGER * sum(parameter.size for parameter in parameters.values()) + 2**24
    contents = read_file(path, entry, largest, _key(keys, "entry"))
    if not contents.weights:
        raise UserError(f"{path}: holds no weights")
    tensors, ours = _matched(path, contents, network, prefix, _key(keys, "prefix"))
    values = _values(path, network, sparsified, tensors, ours)
    problems = _misfits(network, sparsified, contents, tensors, ours, values, allow)
    if any(problems.values()):
        listed = "; ".join(f"{problem}: {shorten(names)}" for problem, names in problems.items() if names)
        hint = f"; what may differ is named by {_key(keys, 'allow')}" if keys else ""
        raise UserError(f"{path} does not fit the network: {listed}{hint}")
    fitting = {name: value for name, value in values.items() if value.shape == parameters[name].shape}
    for name, value in fitting.items():
        _set_parameter(path, parameters[name], value)
    _set_masks([layer for layer in sparsified.layers if layer.weight.name in fitting], fitting)
    random = [layer.weight.name for layer in sparsified.layers if layer.weight.name not in fitting]
    if random:
        _log.warning(
            f"{path}: as {_key(keys, 'allow')} has it, {len(random)} of the {len(sparsified.layers)} weights to prune "
            f"are not set and stay random: {shorten(random)}"
        )


def _key(keys: Optional[str], name: str) -> str:
    return (keys or "rpg-ms convert --{}").format(name)


def _matched(
    path: Path, contents: Contents, network: nn.Cell, prefix: Optional[str], prefix_key: str
) -> tuple[Arrays, dict[str, str]]:
    """The tensors in a file that have to find their place, and `{name: Parameter's name}` of those that do."""
    tensors, used = _unpruned(path, contents.weights)
    if prefix is not None:
        prefix = without_wrappers(f"{prefix.rstrip('.')}.")
        inside = {name: value for name, value in tensors.items() if without_wrappers(name).startswith(prefix)}
        if not inside:
            raise UserError(f"{path}: no name begins with {prefix!r}; there are {shorten(tensors)}")
        tensors = inside
    (start, ours), *rivals = find_names(tensors, namings(network), prefix).items()
    names = {own: name for name, own in ours.items()}
    for rival, matched in rivals:
        same = all(map(contents.beside, matched)) or all(
            np.array_equal(tensors[name], tensors[names[own]]) for name, own in matched.items() if own in names
        )
        if not same and 2 * len(names) >= len(pytorch_names(network)):
            raise UserError(
                f"{path}: names under {start!r} and under {rival!r} fit the network alike; name one of the two by "
                f"{prefix_key}"
            )
    used |= {name for name in tensors if contents.beside(name)}
    arrays = {id(tensors[name]) for name in ours}  # another name of what is loaded is an array that is loaded
    return {
        name: value for name, value in tensors.items() if name in ours or name not in used and id(value) not in arrays
    }, ours


def _unpruned(path: Path, tensors: Arrays) -> tuple[Arrays, set[str]]:
    """The tensors of a network of torch.nn.utils.prune as they count, and the masks that were multiplied in.

    It keeps `weight_orig` and `weight_mask` in the place of `weight`, and the same for other Parameters.
    """
    whole, masks = {}, set()
    for name, value in tensors.items():
        stem = name[: -len("_orig")]
        mask = tensors.get(f"{stem}_mask")
        if name.endswith("_orig") and mask is not None and stem not in tensors:
            if mask.shape != value.shape:
                raise UserError(f"{path}: {stem}_mask is {mask.shape}, {name} {value.shape}")
            name, value = stem, np.where(mask == 0, value.dtype.type(0), value * mask)
            masks.add(f"{stem}_mask")
        whole[name] = value
    return whole, masks


def _values(path: Path, network: nn.Cell, sparsified: Sparsified, tensors: Arrays, ours: Mapping[str, str]) -> Arrays:
    """`{Parameter's name: array}` as the network has them: masks bool, 1-D convolutions with a height of 1."""
    values, names = {}, {}
    for name, own in ours.items():
        if own in values and not np.array_equal(values[own], tensors[name]):
            raise UserError(f"{path}: {names[own]} and {name} differ, in the network they are one")
        values[own], names[own] = tensors[name], name
    for _, cell in network.cells_and_names():
        if isinstance(cell, CONV_1D):
            for name in (cell.weight.name, f"{cell.weight.name}_mask"):
                if np.ndim(values.get(name)) == 3:
                    values[name] = values[name][:, :, None]
    for mask in [layer.mask.name for layer in sparsified.layers if layer.mask.name in values]:
        if values[mask].dtype != np.bool_ and not np.isin(values[mask], (0, 1)).all():
            raise UserError(f"{path}: {names[mask]} holds more than zeros and ones")
        values[mask] = values[mask].astype(np.bool_, copy=False)
    return values


def _misfits(
    network: nn.Cell,
    sparsified: Sparsified,
    contents: Contents,
    tensors: Arrays,
    ours: Mapping[str, str],
    values: Arrays,
    allow: Sequence[str],
) -> dict[str, list[str]]:
    """What is missing, unused or of another shape, unless a pattern of `allow` matches one of its names."""
    pytorch, masks = pytorch_names(network), {layer.mask.name for layer in sparsified.layers}
    shapes = {parameter.name: parameter.shape for parameter in network.get_parameters()}

    def refused(*names: str) -> bool:
        return not any(fnmatchcase(name, pattern) for pattern in allow for name in names)

    wanted = [name for name in shapes if name not in values and name not in masks and not name.endswith(COUNTERS)]
    missing = [name for name in wanted if refused(name, pytorch.get(name, name))]
    return {
        "not found": missing,
        "not used": [name for name in tensors if name not in ours and refused(name, without_wrappers(name))],
        "of another shape": [
            f"{name} ({values[own].shape} in the file, {shapes[own]} in the network)"
            for name, own in ours.items()
            if values[own].shape != shapes[own] and refused(name, without_wrappers(name), own)
        ],
        "of a kind that is not read": [f"{name} ({kind})" for name, kind in contents.unread.items() if missing],
    }


def _set_parameter(path: Path, parameter: ms.Parameter, value: np.ndarray) -> None:
    if (value.dtype.kind == "f") != parameter.is_floating_point():
        raise UserError(f"{path}: {parameter.name} is {value.dtype} in the file, {parameter.dtype} in the network")
    tensor = ms.Tensor(np.asarray(value, order="C"), parameter.dtype)
    if parameter.is_floating_point() and not np.isfinite(tensor.asnumpy()).all():
        raise UserError(f"{path}: {parameter.name} is not finite")
    parameter.set_data(tensor)


def _set_masks(layers: Sequence[MaskedLayer], values: Arrays) -> None:
    """The masks of `layers` from the masks in a file, else from its zeros."""
    zeros = sum(int(np.count_nonzero(values[layer.weight.name] == 0)) for layer in layers)
    with_masks = any(layer.mask.name in values for layer in layers)
    if with_masks or zeros > PRUNED_ELSEWHERE * sum(layer.weight.size for layer in layers):
        for layer in layers:
            weight = layer.weight.asnumpy().copy()
            set_topology(layer, weight, layer.mask.asnumpy() if with_masks else weight != 0)

"""Names of Parameters: MindSpore's, PyTorch's, and which of them the names in a file are.

Nearly all of PyTorch's names follow from the layers: a batch norm's `gamma` is PyTorch's `weight`. What differs beyond
that, because mindcv and torchvision chose other names, is in `FAMILIES`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Optional

from mindcv.models.mobilenetv2 import MobileNetV2
from mindcv.models.resnet import ResNet
from mindspore import nn

from rpg_ms.models.detection.mask_rcnn import MaskRCNN

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)  # BatchNorm3d has a BatchNorm2d in it
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
OWN_NAMES = (
    (NORMS, {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}),
    ((nn.Embedding,), {"embedding_table": "weight"}),
    ((nn.PReLU,), {"w": "weight"}),
)
MASK = "weight_mask"
# What data-parallel, compiled, sharded and checkpointed modules of PyTorch put into the names, anywhere.
WRAPPERS = re.compile(r"(^|\.)(?:(?:module|_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module)\.)+")


def _torchvision_mobilenet_v2(name: str) -> str:
    """torchvision makes one module of convolution, norm and activation where mindcv makes three layers."""
    if not name.startswith("features."):
        return name
    _, index, rest = name.split(".", 2)
    if not rest.startswith("layers."):
        return f"features.0.{index}.{rest}" if int(index) < 2 else f"features.18.{int(index) - 20}.{rest}"
    block = int(index) - 2
    _, layer, attribute = rest.split(".")
    first, other = {"3": "1", "4": "2"}, {"3": "1.0", "4": "1.1", "6": "2", "7": "3"}
    place = {"0": "0.0", "1": "0.1", **(first if block == 1 else other)}[layer]
    return f"features.{block}.conv.{place}.{attribute}"


FAMILIES = (
    (ResNet, lambda name: re.sub(r"^classifier\.", "fc.", name.replace(".down_sample.", ".downsample."))),
    (MobileNetV2, _torchvision_mobilenet_v2),
    (MaskRCNN, lambda name: name.replace(".down_sample.", ".downsample.")),
)
BODY = "backbone.body."  # where a detector has the network that a classifier's weights are for


def _older_detector(name: str) -> str:
    """torchvision's names before convolutions and activations became modules, which its published files have."""
    name = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.0\.", r"\1.", name)
    name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    return re.sub(
        r"^roi_heads\.mask_head\.(\d+)\.0\.", lambda found: f"roi_heads.mask_head.mask_fcn{int(found[1]) + 1}.", name
    )


def pytorch_names(network: nn.Cell) -> dict[str, str]:
    """`{name: PyTorch's name}` of every Parameter of a network but its masks: torchvision's for ResNet, VGG and
    MobileNet-v2, timm's for vision transformers, and otherwise what follows from the layers.
    """
    return {name: places[0][1] for name, places in all_names(network).items()}


def all_names(network: nn.Cell) -> dict[str, list[tuple[str, str]]]:
    """`{Parameter's name: [(name, PyTorch's name), ...]}` but for masks.

    There is one pair for every place at which a Parameter stands, first that of its own name: a layer that is used
    under two names, and tied weights, have several.
    """
    family = next((rename for kind, rename in FAMILIES if isinstance(network, kind)), lambda name: name)
    names = {}
    for prefix, cell in _cells("", network, ()):
        own = next((table for kinds, table in OWN_NAMES if isinstance(cell, kinds)), {})
        for path, parameter in cell.parameters_and_names(expand=False):
            if parameter.name.rpartition(".")[2] == MASK:
                continue
            places = names.setdefault(parameter.name, [])
            place = prefix + path if places else parameter.name
            stem, dot, attribute = place.rpartition(".")
            pair = place, family(stem + dot + own.get(attribute, attribute))
            if pair not in places:
                places.append(pair)
    return names


def _cells(prefix: str, cell: nn.Cell, above: tuple[nn.Cell, ...]) -> Iterator[tuple[str, nn.Cell]]:
    """Every cell at every place, `(its name and a dot, cell)`; MindSpore's own walk passes each cell once."""
    yield prefix, cell
    for name, part in cell._cells.items():
        if part is not None and all(part is not other for other in (*above, cell)):
            yield from _cells(f"{prefix}{name}.", part, (*above, cell))


def namings(network: nn.Cell) -> list[dict[str, str]]:
    """What the names in a file can be: a list of `{name in a file: Parameter's name}`.

    A detector takes files of detectors, with torchvision's newer or older names, and of classifiers, for its body.
    """
    masks = {parameter.name for parameter in network.get_parameters() if parameter.name.endswith(MASK)}
    here, pytorch = {name: name for name in masks}, {}
    for name, places in all_names(network).items():
        for place, theirs in places:
            here[place] = pytorch[theirs] = name
            if f"{name}_mask" in masks:
                here[f"{place}_mask"] = pytorch[f"{theirs}_mask"] = f"{name}_mask"
    former = getattr(network, "former_names", {})
    known = [here, pytorch, former]
    if isinstance(network, MaskRCNN):
        known.append({_older_detector(name): own for name, own in pytorch.items()})
        for names in (here, pytorch):
            known.append({name[len(BODY) :]: own for name, own in names.items() if name.startswith(BODY)})
    return known


def without_wrappers(name: str) -> str:
    """A name without what PyTorch's wrappers put into it."""
    return WRAPPERS.sub(r"\1", name)


def find_names(
    names: Collection[str], known: Iterable[Mapping[str, str]], prefix: Optional[str] = None
) -> dict[str, dict[str, str]]:
    """Which Parameters the names in a file are.

    Names are compared without wrappers and without the prefix under which most of them fit.

    Args:
        names: those in the file.
        known: see `namings`; the first in which the most names fit counts.
        prefix: the prefix, with its dot; None to look for it, shorter ones first.

    Returns:
        `{prefix: {name in the file: Parameter's name}}`, the best first; others are there only if as many names fit
        under them, and none if names fit without a prefix.
    """
    best = {"": {}}
    for naming in known:
        plain, shorten = {without_wrappers(name): own for name, own in naming.items()}, without_wrappers
        if len(plain) < len(naming):  # a network that has wrappers itself: its names are taken as they are
            plain, shorten = naming, str
        short = {name: shorten(name) for name in names}
        starts = [shorten(prefix)] if prefix is not None else _best_starts(short.values(), plain)
        found = {
            start: {
                name: plain[rest[len(start) :]]
                for name, rest in short.items()
                if rest.startswith(start) and rest[len(start) :] in plain
            }
            for start in starts
        }
        if found and len(found[starts[0]]) > len(next(iter(best.values()))):
            best = found
    return best


def _best_starts(names: Iterable[str], known: Mapping[str, str]) -> list[str]:
    """The prefixes under which the most names are known, the shortest first; the empty one has no rivals."""
    under = Counter()
    for name in names:
        ends = (end for end in range(len(name)) if end == 0 or name[end - 1] == ".")
        under.update(name[:end] for end in ends if name[end:] in known)
    most = max(under.values(), default=0)
    starts = sorted((start for start in under if under[start] == most), key=len)
    return [""] if "" in starts else starts

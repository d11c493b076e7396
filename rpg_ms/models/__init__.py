"""Networks by name: this package's own, every image model of mindcv, and a user's own."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, Union

import mindcv
import mindspore as ms
from mindcv.models.resnet import ResNet
from mindspore import Tensor, nn, ops

from rpg_ms.errors import UserError, one_line
from rpg_ms.models.resnet_cifar import CifarResNet
from rpg_ms.models.vgg_cifar import CifarVGG19
from rpg_ms.models.vit import deit_small

CIFAR_RESNETS = {
    "resnet_small": {"depth": 14, "width": 24, "stem_stride": 2},
    **{f"cifar_resnet{depth}": {"depth": depth, "width": 16} for depth in (8, 20, 32, 44, 56, 110)},
}
MODELS = (*CIFAR_RESNETS, "cifar_vgg19", "deit_small")


def create_model(
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: int = 224,
    width: float = 1.0,
    pool_padding: str = "pytorch",
) -> nn.Cell:
    """A network by name, with fresh weights.

    Args:
        name: one of `MODELS`, any name mindcv knows, or `module:function` of the user's own, imported from
            the working directory and called with what it takes of `num_classes`, `in_channels`, `image_size`.
        num_classes: width of the classifier.
        in_channels: channels of the images.
        image_size: height and width of the images, for the networks that are built for one size.
        width: factor on the channels of a CIFAR ResNet.
        pool_padding: how mindcv's ResNets pad before their max pooling: "pytorch" (on every side) or "mindcv"
            (right and bottom only, what weights trained with mindcv expect).

    Raises:
        UserError: an unknown name, or a network that cannot be built like this.
    """
    if width != 1 and name not in CIFAR_RESNETS:
        raise UserError(f"model.width: {width:g} is for {', '.join(CIFAR_RESNETS)}, not for {name}")
    if name in CIFAR_RESNETS:
        shape = CIFAR_RESNETS[name]
        network = CifarResNet(
            num_classes=num_classes,
            in_channels=in_channels,
            **{**shape, "width": max(1, round(shape["width"] * width))},
        )
    elif name == "cifar_vgg19":
        _at_least(name, image_size, 16)
        network = CifarVGG19(num_classes, in_channels)
    elif name == "deit_small":
        _at_least(name, image_size, 16)
        network = deit_small(num_classes, in_channels, image_size)
    elif ":" in name:
        network = _users_own(name, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    else:
        network = _from_mindcv(name, num_classes, in_channels, image_size)
    if isinstance(network, ResNet) and pool_padding == "pytorch":
        network.max_pool = PaddedMaxPool()
    elif pool_padding != "pytorch" and not isinstance(network, ResNet):
        raise UserError(f"model.pool_padding: {pool_padding} is for mindcv's ResNets, not for {name}")
    name_by_place(network)
    for parameter in network.get_parameters():
        if not (parameter.is_floating_point() or parameter.is_complex()):
            parameter.requires_grad = False  # MindSpore's default is True; a counter or index has no gradient
    return network


def name_by_place(network: nn.Cell) -> None:
    """Name every Parameter by its place in the network: in some of mindcv's networks the two differ, and
    MindSpore saves by place but loads by name. `former_names` keeps the names that mindcv's checkpoints have.
    """
    network.former_names = {}
    for place, parameter in network.parameters_and_names():
        network.former_names[parameter.name] = place
        parameter.name = place


class PaddedMaxPool(nn.Cell):
    """3x3 max pooling of stride 2, padded by one on every side; zeros do, as no input is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = ops.Pad(((0, 0), (0, 0), (1, 1), (1, 1)))
        self.pool = nn.MaxPool2d(3, 2, pad_mode="valid")

    def construct(self, x: Tensor) -> Tensor:
        return self.pool(self.pad(x))


def _at_least(name: str, image_size: int, smallest: int) -> None:
    if image_size < smallest:
        raise UserError(f"model.name: {name} takes images of at least {smallest} pixels a side, not {image_size}")


# ----------------------------------------------------------------------------------------------------
# mindcv's
# ----------------------------------------------------------------------------------------------------


def _from_mindcv(name: str, num_classes: int, in_channels: int, image_size: int) -> nn.Cell:
    known = mindcv.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, [*MODELS, *known], 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(
            f"model.name: {name!r} is not one of {', '.join(MODELS)}, nor a model of mindcv, nor module:function{hint}"
        )
    arguments = {"num_classes": num_classes}
    if in_channels != 3:
        arguments["in_channels"] = in_channels
    network = None
    # Models built for one image size call it by one of two names; the others take neither.
    for extra in ({"image_size": image_size}, {"img_size": image_size}, {}):
        try:
            network = mindcv.create_model(name, **arguments, **extra)
            break
        except TypeError as error:
            if not any(repr(key) in str(error) for key in extra):
                raise UserError(
                    f"model.name: mindcv cannot build {name} for {_given(arguments)}: {one_line(str(error))}"
                ) from None
        except (ValueError, AssertionError) as error:
            raise UserError(
                f"model.name: mindcv cannot build {name} for {_given({**arguments, **extra})}: {one_line(str(error))}"
            ) from None
    cells = [cell for _, cell in network.cells_and_names()]
    first = next((cell for cell in cells if isinstance(cell, nn.Conv2d)), None)
    if first is not None and first.in_channels != in_channels:
        raise UserError(
            f"model.name: {name} of mindcv takes images of {first.in_channels} channels only, not {in_channels}"
        )
    patches = next((cell for cell in cells if type(cell).__name__ == "PatchEmbed"), None)
    built_for = getattr(patches, "image_size", None)
    if built_for is not None and tuple(built_for) != (image_size, image_size):
        raise UserError(
            f"model.name: {name} of mindcv takes images of {built_for[0]} x {built_for[1]} pixels "
            f"only, not {image_size} x {image_size}"
        )
    return network


def _given(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items())


# ----------------------------------------------------------------------------------------------------
# The user's own
# ----------------------------------------------------------------------------------------------------


def _users_own(name: str, **arguments: int) -> nn.Cell:
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), function_name]):
        raise UserError(f"model.name: {name!r} is not of the form module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and module_name.split(".")[0] == error.name:
            raise UserError(f"model.name: {name}: no module {module_name} in {os.getcwd()}") from None
        raise UserError(f"model.name: {name}: {module_name} cannot be imported: {_in_one_line(error)}") from error
    build = getattr(module, function_name, None)
    if not callable(build):
        raise UserError(f"model.name: {name}: {module.__file__} has no function {function_name}")
    taken = inspect.signature(build).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        arguments = {key: value for key, value in arguments.items() if key in taken}
    try:
        network = build(**arguments)
    except Exception as error:
        raise UserError(f"model.name: {name}({_given(arguments)}) fails: {_in_one_line(error)}") from error
    if not isinstance(network, nn.Cell):
        raise UserError(f"model.name: {name} returns a {type(network).__name__}, not a mindspore.nn.Cell")
    _refuse_hidden_parameters(network, name)
    return network


def _refuse_hidden_parameters(network: nn.Cell, name: str) -> None:
    """Refuse Parameters that MindSpore does not find, as they are in a plain list, tuple or dict: they would be neither
    trained, pruned, loaded nor saved. Such a list may well name Cells that are attributes as well.
    """
    known = {id(parameter) for parameter in network.get_parameters()}
    for place, cell in network.cells_and_names():
        for attribute, value in vars(cell).items():
            for item in _held_in(value):
                alone = isinstance(item, ms.Parameter)
                if all(id(parameter) in known for parameter in ([item] if alone else item.get_parameters())):
                    continue
                wanted = "ParameterTuple" if alone else "nn.CellDict" if isinstance(value, dict) else "nn.CellList"
                raise UserError(
                    f"model.name: {name}: {place + '.' if place else ''}{attribute} is a plain "
                    f"{type(value).__name__} with a {type(item).__name__} in it, which MindSpore would "
                    f"neither train nor save; make it a mindspore.{wanted}"
                )


def _held_in(value: Any) -> Iterator[Union[nn.Cell, ms.Parameter]]:
    """The Cells and Parameters in a list, tuple or dict, however deep; none of any other value."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for item in items:
        if isinstance(item, (nn.Cell, ms.Parameter)):
            yield item
        else:
            yield from _held_in(item)


def _in_one_line(error: BaseException) -> str:
    """An exception from somebody else's code: its type, its text, and the line it came from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {one_line(str(error))} ({frame.filename}, line {frame.lineno})"

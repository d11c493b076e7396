"""Every MindSpore operator on the device path is documented for Ascend: what cannot be run here can still be read."""

import ast
import re

import pytest
from mindspore import Tensor, amp, nn, ops

from conftest import PROJECT

DEVICE_PATH = [
    *sorted(f"rpg_ms/cells/{file.name}" for file in (PROJECT / "rpg_ms/cells").glob("[a-z]*.py")),
    "rpg_ms/rank/cell.py",
    "rpg_ms/rank/matmul.py",
    "rpg_ms/tasks/classification.py",
    "rpg_ms/training/distributed.py",
    *sorted(f"rpg_ms/models/detection/{file.name}" for file in (PROJECT / "rpg_ms/models/detection").glob("[a-z]*.py")),
    "rpg_ms/models/resnet_cifar.py",
    "rpg_ms/models/vgg_cifar.py",
]
MODULES = {"ops": ops, "nn": nn, "amp": amp}
# Not operators, but ways to write programs.
PROGRAM = {"nn.Cell", "ops.value_and_grad", "ops.stop_gradient", "ops.depend", "amp.LossScaler"}
# Of the backend "gram", which is refused on anything but a CPU.
CPU_ONLY = {"ops.Custom"}


# Tensor methods that belong to the host, and methods of other objects with such names.
HOST = {"asnumpy", "size", "copy", "item", "index", "split", "contiguous", "update", "view", "init", "__init__"}


def used(file):
    """`{"ops.name": object}` of what a file takes from mindspore.ops, nn and amp, and of Tensor methods it calls."""
    tree = ast.parse((PROJECT / file).read_text(encoding="utf-8"))
    called = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and not (isinstance(node.func.value, ast.Name) and node.func.value.id in {*MODULES, "np", "ms", "os"})
    }
    methods = {
        f"Tensor.{name}": getattr(ops, name, getattr(Tensor, name)) for name in called - HOST if hasattr(Tensor, name)
    }
    names = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in MODULES
    }
    return {**methods, **{name: getattr(MODULES[name.split(".")[0]], name.split(".")[1]) for name in names}}


def platforms(operator):
    """The words of "Supported Platforms" in a docstring, or None where there is no such section."""
    found = re.search(r"Supported Platforms:\s*\n(.*?)(?:\n\s*\n|$)", operator.__doc__ or "", re.DOTALL)
    return found and set(re.findall(r"``(\w+)``", found[1]))


@pytest.mark.parametrize("file", DEVICE_PATH)
def test_operators_exist_on_ascend(file):
    operators = {name: operator for name, operator in used(file).items() if name not in PROGRAM | CPU_ONLY}
    unsaid = [name for name, operator in operators.items() if platforms(operator) is None]
    missing = [
        name for name, operator in operators.items() if name not in unsaid and "Ascend" not in platforms(operator)
    ]
    assert not missing, f"not on Ascend: {missing}"
    assert not unsaid, f"no platforms in the documentation: {unsaid}"


def test_the_test_finds_one_without_ascend():
    assert platforms(ops.matrix_power) is not None and "Ascend" not in platforms(ops.matrix_power)

"""What the functions that lower an ONNX operator share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

import numpy as np

from rpg_ms.deploy.c.builder import Builder
from rpg_ms.deploy.c.graph import Graph, Node
from rpg_ms.deploy.c.operations import POINT, Input, Linear, Term, Value

Tensor = Union[Value, Linear]
Rounded = Mapping[str, tuple[np.ndarray, np.ndarray]]  # {weight: (values as they are stored, scale of each output)}


class Unsupported(Exception):
    """An operator, or a form of it, that cannot be written as C; the text says which."""


class Lowering:
    """A graph that is being lowered."""

    def __init__(self, graph: Graph, rounded: Rounded) -> None:
        self.graph, self.rounded, self.builder = graph, rounded, Builder()
        self.dense = 0  # multiply-adds of convolutions and dense layers, zeros included
        shape = graph.input_shape
        space = shape[1:] if len(shape) == 3 else POINT
        planes = self.builder.add(Input(space, np.zeros(0, np.int64)), shape[0]) if len(shape) in (1, 3) else None
        if planes is None:
            raise Unsupported(f"input of shape {list(shape)}")
        self.tensors: dict[str, Tensor] = {graph.input: Value((1, *shape), planes[None], space)}

    def solid(self, tensor: Tensor) -> Value:
        """The tensor as planes, without padding that is still to be there."""
        if isinstance(tensor, Value) and any(tensor.pads):
            tensor = identity(tensor, tensor.pads)
        return self.builder.rows(tensor) if isinstance(tensor, Linear) else tensor

    def linear(self, node: Node, index: int = 0) -> Linear:
        """An input as a sum that can be added to."""
        tensor = self.tensors[node.inputs[index]]
        if isinstance(tensor, Linear):
            return tensor
        if tensor.planes.shape != tensor.shape[:2]:
            raise Unsupported(f"{node.kind} of a tensor of shape {list(tensor.shape)}")
        return identity(tensor, tensor.pads)

    def value(self, node: Node, index: int = 0) -> Value:
        """An input as planes."""
        return self.solid(self.tensors[node.inputs[index]])

    def image(self, node: Node, padded: bool = False) -> Value:
        """The first input as planes `[1, channels]` with a height and a width."""
        tensor = self.tensors[node.inputs[0]]
        tensor = tensor if padded and isinstance(tensor, Value) else self.solid(tensor)
        if len(tensor.shape) != 4 or tensor.planes.size != tensor.shape[1]:
            raise Unsupported(f"{node.kind} of a tensor of shape {list(tensor.shape)}")
        return tensor

    def number(self, node: Node, index: int, attribute: str = "", default: Any = None) -> Any:
        """A constant input as an array, or the attribute that it is in older versions of ONNX."""
        if attribute in node.attributes:
            return np.asarray(node.attributes[attribute])
        if len(node.inputs) <= index or not node.inputs[index]:
            return None if default is None else np.asarray(default)
        if node.inputs[index] not in self.graph.constants:
            raise Unsupported(f"{node.kind} with a computed {attribute or 'operand'}")
        return self.graph.constants[node.inputs[index]]

    def weight(self, name: str) -> tuple[np.ndarray, np.ndarray, bool]:
        """A weight, the scale of each of its outputs, and whether it is kept in fewer bits."""
        if name in self.rounded:
            return (*self.rounded[name], True)
        weight = self.graph.constants[name].astype(np.float32)
        return weight, np.ones(len(weight)), False


def identity(value: Value, pads: tuple = (0, 0, 0, 0), stride: tuple = (1, 1)) -> Linear:
    """A `Linear` that is the value itself, or every `stride`-th pixel of it."""
    count = value.planes.size
    space = tuple(
        -(-(size + before + after) // step)
        for size, before, after, step in zip(value.space, pads[:2], pads[2:], stride)
    )
    shape = (*value.shape[:2], *space) if len(value.shape) == 4 else value.shape
    term = Term(
        np.ones((count, 1, 1, 1), np.float32),
        value.planes.ravel(),
        value.space,
        np.ones(count),
        stride,
        pads=pads,
        groups=count,
    )
    return Linear(shape, space, [term], np.zeros(count))

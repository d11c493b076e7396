"""An ONNX graph as a list of nodes, constants computed and activations recognised."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from rpg_ms.errors import UserError


@dataclass
class Node:
    """An operator of the graph.

    Args:
        kind: the ONNX operator, or "Swish", "HardSwish" or "HardSigmoid" for what MindSpore writes as several.
        inputs, outputs: names of values; an input that is left out is "".
        attributes: `{name: value}`.
    """

    kind: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """A network of one input and one output.

    Args:
        nodes: in an order in which they can be computed.
        constants: `{name: array}`, weights included.
        input, output: names of values.
        input_shape: `(channels, height, width)`, or fewer axes.
    """

    nodes: list[Node]
    constants: dict[str, np.ndarray]
    input: str
    output: str
    input_shape: tuple[int, ...]

    def readers(self, name: str) -> list[Node]:
        """The nodes that read a value, one for each time it is read."""
        return [node for node in self.nodes for read in node.inputs if read == name]


def read_graph(path: Path) -> Graph:
    """Read an ONNX file whose batch is 1.

    Raises:
        UserError: it has several inputs or outputs, or a batch other than 1.
    """
    model = onnx.load(str(path))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise UserError(
            f"--file_format: C takes a network of one input and one output, not of {len(inputs)} and "
            f"{len(model.graph.output)}"
        )
    shape = tuple(axis.dim_value for axis in inputs[0].type.tensor_type.shape.dim)
    if shape[0] != 1 or 0 in shape:
        raise UserError(f"--file_format: C takes one image of fixed size, not an input of shape {list(shape)}")
    nodes = []
    for proto in model.graph.node:
        if all(name in constants for name in proto.input if name):
            constants.update(_computed(proto, constants, model))
        else:
            attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
            nodes.append(Node(proto.op_type, list(proto.input), list(proto.output), attributes))
    graph = Graph(nodes, constants, inputs[0].name, model.graph.output[0].name, shape[1:])
    _recognise_activations(graph)
    return graph


def _computed(proto: onnx.NodeProto, constants: dict[str, np.ndarray], model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """What a node computes from constants."""
    read = [name for name in dict.fromkeys(proto.input) if name]
    inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(constants[n].dtype), None) for n in read]
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in proto.output]
    single = helper.make_graph([proto], "one", inputs, outputs)
    evaluator = ReferenceEvaluator(helper.make_model(single, opset_imports=model.opset_import))
    found = evaluator.run(None, {name: constants[name] for name in read})
    return dict(zip(proto.output, map(np.asarray, found)))


# ----------------------------------------------------------------------------------------------------
# Activations that MindSpore writes as several operators
# ----------------------------------------------------------------------------------------------------


def _recognise_activations(graph: Graph) -> None:
    """Replace `x sigmoid(x)`, `x relu6(x + 3) / 6`, `relu6(x + 3) / 6` and `max(alpha x, x)` by one node each."""
    by_output = {node.outputs[0]: node for node in graph.nodes}
    for node in graph.nodes:
        argument = None
        if node.kind == "Div" and _is(graph, node.inputs[1], 6):
            argument = _hard_gate(graph, by_output, node.inputs[0])
            if argument is not None:
                node.kind, node.inputs = "HardSigmoid", [argument]
                continue
            product = by_output.get(node.inputs[0])
            if product is not None and product.kind == "Mul" and len(graph.readers(product.outputs[0])) == 1:
                argument = _gated(product, lambda name: _hard_gate(graph, by_output, name))
            if argument is not None:
                node.kind, node.inputs = "HardSwish", [argument]
        elif node.kind == "Max":
            _recognise_leaky(graph, by_output, node)
        elif node.kind == "Mul":
            argument = _gated(node, lambda name: _argument(by_output, name, "Sigmoid"))
            if argument is not None:
                node.kind, node.inputs = "Swish", [argument]
    _drop_unread(graph)


def _recognise_leaky(graph: Graph, by_output: dict[str, Node], node: Node) -> None:
    """Replace `max(alpha x, x)`, alpha at most 1."""
    for scaled, argument in (node.inputs, node.inputs[::-1]) if len(node.inputs) == 2 else ():
        product = by_output.get(scaled)
        if product is not None and product.kind == "Mul" and argument in product.inputs:
            alpha = graph.constants.get(product.inputs[1 - product.inputs.index(argument)])
            if alpha is not None and alpha.size == 1 and alpha.item() <= 1:
                node.kind, node.inputs, node.attributes = "LeakyRelu", [argument], {"alpha": alpha.item()}
                return


def _gated(product: Node, argument_of: Any) -> Optional[str]:
    """`x` of a product of `x` and a function of `x`, or None."""
    for one, other in (product.inputs, product.inputs[::-1]):
        if argument_of(other) == one:
            return one
    return None


def _hard_gate(graph: Graph, by_output: dict[str, Node], name: str) -> Optional[str]:
    """`x` where the value is `clip(x + 3, 0, 6)`, or None."""
    clip = by_output.get(name)
    if clip is None or clip.kind != "Clip" or clip_limits(clip, graph.constants) != (0, 6):
        return None
    added = by_output.get(clip.inputs[0])
    return added.inputs[0] if added is not None and added.kind == "Add" and _is(graph, added.inputs[1], 3) else None


def _argument(by_output: dict[str, Node], name: str, kind: str) -> Optional[str]:
    node = by_output.get(name)
    return node.inputs[0] if node is not None and node.kind == kind else None


def _is(graph: Graph, name: str, number: float) -> bool:
    return name in graph.constants and graph.constants[name].size == 1 and graph.constants[name].item() == number


def clip_limits(node: Node, constants: dict[str, np.ndarray]) -> Optional[tuple[float, float]]:
    """The limits of a Clip, infinite where there is none; None where they are computed."""
    limits = [node.attributes.get("min", -np.inf), node.attributes.get("max", np.inf)]
    for i, name in enumerate(node.inputs[1:3]):
        if name and name not in constants:
            return None
        limits[i] = constants[name].item() if name else limits[i]
    return tuple(limits)


def _drop_unread(graph: Graph) -> None:
    """Leave out the nodes whose outputs nothing reads any more."""
    read, kept = {graph.output}, []
    for node in reversed(graph.nodes):
        if read.intersection(node.outputs):
            kept.append(node)
            read.update(node.inputs)
    graph.nodes = kept[::-1]

"""ONNX operators in terms of the operations that there are kernels for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, Union

import numpy as np

from rpg_ms.deploy.c.builder import Builder
from rpg_ms.deploy.c.graph import Graph, Node, clip_limits
from rpg_ms.deploy.c.operations import POINT, SMALLEST, Activation, Input, Linear, PlaneByPlane, Term, Value, Whole

Tensor = Union[Value, Linear]
Rounded = Mapping[str, tuple[np.ndarray, np.ndarray]]  # {weight: (values as they are stored, scale of each output)}


class Unsupported(Exception):
    """An operator, or a form of it, that cannot be written as C; the text says which."""


def lower(graph: Graph, rounded: Rounded) -> tuple[Builder, Value]:
    """The operations of a graph, and its output.

    Args:
        graph: from `rpg_ms.deploy.c.graph.read_graph`.
        rounded: weights that are kept in fewer bits.

    Raises:
        Unsupported: the graph has an operator that cannot be written as C.
    """
    lowering = _Lowering(graph, rounded)
    for node in graph.nodes:
        if node.kind not in OPERATORS:
            raise Unsupported(node.kind)
        tensors = OPERATORS[node.kind](lowering, node)
        for name, tensor in zip(node.outputs, tensors if isinstance(tensors, list) else [tensors]):
            if len(graph.readers(name)) != 1:
                tensor = lowering.solid(tensor)
            lowering.tensors[name] = tensor
    return lowering.builder, lowering.solid(lowering.tensors[graph.output])


class _Lowering:
    """What the functions below share."""

    def __init__(self, graph: Graph, rounded: Rounded) -> None:
        self.graph, self.rounded, self.builder = graph, rounded, Builder()
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


# ----------------------------------------------------------------------------------------------------
# Convolutions, dense layers, pooling
# ----------------------------------------------------------------------------------------------------


def _window(node: Node, value: Value, kernel: tuple[int, int]) -> tuple[tuple, tuple, tuple, tuple]:
    """Stride, dilation, pads (above, left, below, right) of a window, and the space of what it yields."""
    stride = tuple(node.attributes.get("strides", (1, 1)))
    dilation = tuple(node.attributes.get("dilations", (1, 1)))
    pads = tuple(node.attributes.get("pads", (0, 0, 0, 0)))
    mode = node.attributes.get("auto_pad", b"NOTSET")
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        total = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(value.space, stride, span)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = (*less, *more) if mode == b"SAME_UPPER" else (*more, *less)
    if node.attributes.get("ceil_mode"):
        raise Unsupported(f"{node.kind} with ceil_mode")
    pads = tuple(map(sum, zip(pads, value.pads)))
    space = tuple((value.space[i] + pads[i] + pads[i + 2] - span[i]) // stride[i] + 1 for i in range(2))
    if min(space) < 1:
        raise Unsupported(f"{node.kind} with a window larger than the image")
    return stride, dilation, pads, space


def _conv(lowering: _Lowering, node: Node) -> Linear:
    value = lowering.image(node, padded=True)
    lowering.number(node, 1)
    weight, scale, packed = lowering.weight(node.inputs[1])
    if weight.ndim != 4:
        raise Unsupported(f"Conv with a kernel of {weight.ndim - 2} axes")
    stride, dilation, pads, space = _window(node, value, weight.shape[2:])
    groups, planes = node.attributes.get("group", 1), value.planes.ravel()
    term = Term(weight, planes, value.space, scale, stride, dilation, pads, groups, packed, True)
    bias = lowering.number(node, 2, default=np.zeros(len(weight))).astype(np.float64)
    return Linear((1, len(weight), *space), space, [term], bias)


def _gemm(lowering: _Lowering, node: Node) -> Linear:
    value = lowering.value(node)
    attributes, second = node.attributes, lowering.number(node, 1)
    if value.space != POINT or len(value.shape) != 2 or value.shape[0] != 1 or second.ndim != 2:
        raise Unsupported(f"{node.kind} of a tensor of shape {list(value.shape)}")
    if attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1 or attributes.get("transA"):
        raise Unsupported("Gemm with a factor, or transposed")
    weight, scale, packed = lowering.weight(node.inputs[1])
    if not attributes.get("transB"):
        weight, scale, packed = (weight * scale[:, None]).astype(np.float32).T, np.ones(weight.shape[1]), False
    term = Term(weight[:, :, None, None], value.planes.ravel(), POINT, scale, packed=packed, product=True)
    bias = np.broadcast_to(lowering.number(node, 2, default=0.0).astype(np.float64).ravel(), len(weight)).copy()
    return Linear((1, len(weight)), POINT, [term], bias)


def _max_pool(lowering: _Lowering, node: Node) -> Tensor:
    value = lowering.image(node, padded=True)
    kernel = tuple(node.attributes.get("kernel_shape", value.space))
    own = any(_window(node, lowering.solid(value), kernel)[2]) if any(value.pads) else False
    value = lowering.solid(value) if own else value
    stride, dilation, pads, space = _window(node, value, kernel)
    if kernel == (1, 1) and not any(pads):
        return identity(value, stride=stride)
    if any(value.pads):
        value = lowering.solid(value)
        stride, dilation, pads, space = _window(node, value, kernel)

    def largest(planes: np.ndarray) -> np.ndarray:
        ones = np.ones((len(planes), 1, *kernel), np.float32)
        term = Term(ones, planes, value.space, np.ones(len(planes)), stride, dilation, pads, len(planes))
        linear = Linear((1, len(planes), *space), space, [term], np.zeros(len(planes)))
        return lowering.builder.rows(linear, maximum=True).planes.ravel()

    planes = lowering.builder.where_not_constant(value.planes.ravel(), largest, float)
    return Value((1, len(planes), *space), planes[None], space)


def _average_pool(lowering: _Lowering, node: Node) -> Tensor:
    value = lowering.image(node)
    kernel = tuple(node.attributes.get("kernel_shape", value.space))
    stride, dilation, pads, space = _window(node, value, kernel)
    count = value.planes.size
    if any(pads) and not node.attributes.get("count_include_pad"):
        if dilation != (1, 1):
            raise Unsupported("AveragePool with dilation")
        options = {"kernel": kernel, "stride": stride, "pads": pads[:2]}
        return _plane_by_plane(lowering, value, "average", (1, count, *space), space, **options)
    if kernel == value.space and not any(pads):
        return _plane_by_plane(lowering, value, "mean", (1, count, 1, 1), POINT)
    share = np.full((count, 1, *kernel), 1 / (kernel[0] * kernel[1]), np.float32)
    term = Term(share, value.planes.ravel(), value.space, np.ones(count), stride, dilation, pads, count)
    return Linear((1, count, *space), space, [term], np.zeros(count))


def _mean(lowering: _Lowering, node: Node) -> Value:
    axes = lowering.number(node, 1, "axes", (2, 3)).tolist()
    value = lowering.image(node)
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        raise Unsupported(f"{node.kind} over the axes {axes}")
    keep = node.kind != "ReduceMean" or node.attributes.get("keepdims", 1)
    return _plane_by_plane(lowering, value, "mean", value.shape[:2] + (1, 1) * bool(keep), POINT)


def _plane_by_plane(
    lowering: _Lowering, value: Value, kind: str, shape: tuple, space: tuple[int, int], **options: Any
) -> Value:
    """A value from an operation that takes one plane for each plane, and keeps constants as they are."""
    if value.space == POINT and space == POINT:
        return Value(shape, value.planes, POINT)

    def make(planes: np.ndarray) -> np.ndarray:
        sources = lowering.builder.in_arena(planes, value.space)[None]
        operation = PlaneByPlane(space, planes, False, kind, sources, value.space, **options)
        return lowering.builder.add(operation, len(planes))

    return Value(shape, lowering.builder.where_not_constant(value.planes, make, float), space)


# ----------------------------------------------------------------------------------------------------
# Element by element
# ----------------------------------------------------------------------------------------------------


def _batch_norm(lowering: _Lowering, node: Node) -> Linear:
    linear = lowering.linear(node)
    gamma, beta, mean, variance = (lowering.number(node, i).astype(np.float64) for i in range(1, 5))
    factor = gamma / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    return _scaled(linear, factor, beta - mean * factor)


def _scaled(linear: Linear, factor: Any, offset: Any) -> Linear:
    for term in linear.terms:
        term.scale = term.scale * factor
    linear.bias = linear.bias * factor + offset
    return linear


def _per_channel(node: Node, constant: np.ndarray, tensor: Tensor) -> np.ndarray:
    """A constant operand as float64 `[channels]`."""
    axes = (1,) * (len(tensor.shape) - constant.ndim) + constant.shape
    if len(axes) != len(tensor.shape) or axes[0] != 1 or any(n != 1 for n in axes[2:]):
        raise Unsupported(f"{node.kind} of a constant of shape {list(constant.shape)}")
    return np.broadcast_to(constant.astype(np.float64).ravel(), tensor.shape[1])


def _arithmetic(lowering: _Lowering, node: Node) -> Tensor:
    """Add, Sub, Mul and Div, where one operand of a product or both of a sum are computed."""
    for index in range(2):
        if node.inputs[index] in lowering.graph.constants:
            if node.kind == "Div" and index == 0:
                raise Unsupported("Div by a computed tensor")
            linear = lowering.linear(node, 1 - index)
            constant = _per_channel(node, lowering.graph.constants[node.inputs[index]], linear)
            if node.kind in ("Mul", "Div"):
                return _scaled(linear, 1 / constant if node.kind == "Div" else constant, 0.0)
            if node.kind == "Add":
                return _scaled(linear, 1.0, constant)
            return _scaled(linear, 1.0, -constant) if index else _scaled(linear, -1.0, constant)
    if node.kind in ("Add", "Sub"):
        return _sum(lowering, node)
    if node.kind == "Mul":
        return _product(lowering, node)
    raise Unsupported("Div by a computed tensor")


def _sum(lowering: _Lowering, node: Node) -> Linear:
    first, second = lowering.linear(node, 0), lowering.linear(node, 1)
    if first.shape != second.shape:
        raise Unsupported(f"{node.kind} of tensors of shapes {list(first.shape)} and {list(second.shape)}")
    if first is second:  # the same name twice
        return _scaled(first, 2.0 if node.kind == "Add" else 0.0, 0.0)
    second = _scaled(second, 1.0 if node.kind == "Add" else -1.0, 0.0)
    if any(t.packed for t in first.terms) and any(t.packed for t in second.terms):  # a row has one scale
        second = identity(lowering.solid(second))
    return Linear(first.shape, first.space, [*first.terms, *second.terms], first.bias + second.bias)


def _product(lowering: _Lowering, node: Node) -> Value:
    first, second = lowering.value(node, 0), lowering.value(node, 1)
    if first.space == POINT:
        first, second = second, first
    if first.planes.shape != second.planes.shape or second.space not in (first.space, POINT):
        raise Unsupported(f"Mul of tensors of shapes {list(first.shape)} and {list(second.shape)}")
    builder = lowering.builder
    sources = np.stack([builder.in_arena(value.planes.ravel(), value.space) for value in (first, second)])
    gate = PlaneByPlane(first.space, sources[0], False, "gate", sources, second.space)
    planes = builder.add(gate, first.planes.size)
    return Value(first.shape, planes.reshape(first.planes.shape), first.space)


def _activate(lowering: _Lowering, node: Node) -> Value:
    activation = ACTIVATIONS[node.kind]
    if node.kind == "Clip":
        limits = clip_limits(node, lowering.graph.constants)
        if limits is None:
            raise Unsupported("Clip with computed limits")
        activation = Activation("clip", *(float(np.clip(limit, SMALLEST, -SMALLEST)) for limit in limits))
    if node.kind == "LeakyRelu":
        activation = Activation("leaky", float(node.attributes.get("alpha", 0.01)))
    if node.kind == "HardSigmoid" and not np.allclose(node.attributes.get("alpha", 1 / 6), 1 / 6):
        raise Unsupported("HardSigmoid with another slope than 1/6")
    return lowering.builder.rows(lowering.linear(node), activation)


ACTIVATIONS = {
    "Relu": Activation("clip", 0.0),
    "Clip": None,
    "LeakyRelu": None,
    "Sigmoid": Activation("sigmoid"),
    "Swish": Activation("swish"),
    "HardSigmoid": Activation("hard_sigmoid"),
    "HardSwish": Activation("hard_swish"),
}


def _softmax(lowering: _Lowering, node: Node) -> Value:
    value = lowering.value(node)
    axis = node.attributes.get("axis", -1) % len(value.shape)
    if value.space != POINT or value.planes.size != value.shape[axis]:
        raise Unsupported(f"Softmax over axis {axis} of a tensor of shape {list(value.shape)}")
    builder = lowering.builder
    sources = builder.in_arena(value.planes.ravel(), POINT)
    planes = builder.add(Whole(POINT, sources, False, "softmax", sources), len(sources))
    return Value(value.shape, planes.reshape(value.planes.shape), POINT)


# ----------------------------------------------------------------------------------------------------
# Other lists of the same planes
# ----------------------------------------------------------------------------------------------------


def _same(lowering: _Lowering, node: Node) -> Tensor:
    return lowering.tensors[node.inputs[0]]


def _pad(lowering: _Lowering, node: Node) -> Value:
    value, pads = lowering.image(node, padded=True), lowering.number(node, 1, "pads").tolist()
    fill = lowering.number(node, 2, "value", 0.0).item()
    channels, spatial = (pads[1], pads[5]), (pads[2], pads[3], pads[6], pads[7])
    if node.attributes.get("mode", b"constant") != b"constant" or fill or min(pads) < 0 or pads[0] or pads[4]:
        raise Unsupported("Pad with anything but zeros")
    before, after = ([lowering.builder.constant(0.0) for _ in range(count)] for count in channels)
    planes = np.array([*before, *value.planes.ravel(), *after], np.int64)[None]
    shape = (1, planes.size, value.shape[2] + spatial[0] + spatial[2], value.shape[3] + spatial[1] + spatial[3])
    return Value(shape, planes, value.space, tuple(map(sum, zip(value.pads, spatial))))


def _leading(value: Value) -> np.ndarray:
    """A value's planes; of single numbers, with all axes."""
    return value.planes.reshape(value.shape) if value.space == POINT else value.planes


def _listed(planes: np.ndarray, rest: tuple[int, ...], value: Value) -> Value:
    return Value((*planes.shape, *rest), planes, value.space)


def _concat(lowering: _Lowering, node: Node) -> Value:
    values = [lowering.value(node, i) for i in range(len(node.inputs))]
    parts, axis = [_leading(value) for value in values], node.attributes["axis"] % len(values[0].shape)
    if axis >= parts[0].ndim or len({(value.space, part.ndim) for value, part in zip(values, parts)}) != 1:
        raise Unsupported(f"Concat along axis {axis}")
    return _listed(np.concatenate(parts, axis), values[0].shape[parts[0].ndim :], values[0])


def _reshape(lowering: _Lowering, node: Node) -> Value:
    value, target = lowering.value(node), lowering.number(node, 1).tolist()
    target = [value.shape[i] if size == 0 else size for i, size in enumerate(target)]
    size = int(np.prod(value.shape))
    target = tuple(size // -int(np.prod(target)) if n == -1 else n for n in target)
    return _reshaped(lowering, value, target)


def _reshaped(lowering: _Lowering, value: Value, target: tuple[int, ...]) -> Value:
    """The value in another shape; where that mixes pixels with channels, all pixels become planes of their own."""
    for axes in sorted(range(1, len(target) + 1), key=lambda axes: (axes != 2, axes)):
        if int(np.prod(target[:axes])) == value.planes.size:
            return Value(target, value.planes.reshape(target[:axes]), value.space)
    builder = lowering.builder
    sources = builder.in_arena(value.planes.ravel(), value.space)
    count = sources.size * value.space[0] * value.space[1]
    operation = Whole(POINT, sources, False, "flat", sources, value.space)
    return Value(target, builder.add(operation, count).reshape(target), POINT)


def _flatten(lowering: _Lowering, node: Node) -> Value:
    value, axis = lowering.value(node), node.attributes.get("axis", 1)
    target = (int(np.prod(value.shape[:axis])), int(np.prod(value.shape[axis:])))
    return _reshaped(lowering, value, target)


def _squeeze(lowering: _Lowering, node: Node) -> Value:
    value = lowering.value(node)
    axes = lowering.number(node, 1, "axes", [i for i, n in enumerate(value.shape) if n == 1]).tolist()
    axes = {axis % len(value.shape) for axis in axes}
    return _reshaped(lowering, value, tuple(n for i, n in enumerate(value.shape) if i not in axes))


def _unsqueeze(lowering: _Lowering, node: Node) -> Value:
    value, axes = lowering.value(node), lowering.number(node, 1, "axes").tolist()
    shape = list(value.shape)
    for axis in sorted(axis % (len(value.shape) + len(axes)) for axis in axes):
        shape.insert(axis, 1)
    return _reshaped(lowering, value, tuple(shape))


def _transpose(lowering: _Lowering, node: Node) -> Value:
    value, order = lowering.value(node), node.attributes["perm"]
    planes = _leading(value)
    if list(order[planes.ndim :]) != list(range(planes.ndim, len(order))):
        raise Unsupported(f"Transpose of a tensor of shape {list(value.shape)}")
    return _listed(planes.transpose(order[: planes.ndim]), value.shape[planes.ndim :], value)


def _slice(lowering: _Lowering, node: Node) -> Value:
    value = lowering.value(node)
    starts, ends = (lowering.number(node, i, name).tolist() for i, name in ((1, "starts"), (2, "ends")))
    axes = lowering.number(node, 3, "axes", range(len(starts))).tolist()
    steps = lowering.number(node, 4, "", [1] * len(starts)).tolist()
    planes, slices = _leading(value), [slice(None)] * len(value.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps):
        slices[axis] = slice(start, end if step > 0 or end >= 0 else None, step)
    if any(part.indices(n) != (0, n, 1) for part, n in zip(slices[planes.ndim :], value.shape[planes.ndim :])):
        raise Unsupported("Slice of an image")
    return _listed(planes[tuple(slices[: planes.ndim])], value.shape[planes.ndim :], value)


def _split(lowering: _Lowering, node: Node) -> list[Tensor]:
    value, axis = lowering.value(node), node.attributes.get("axis", 0)
    planes = _leading(value)
    axis %= len(value.shape)
    if axis >= planes.ndim:
        raise Unsupported("Split of an image")
    even = [planes.shape[axis] // len(node.outputs)] * len(node.outputs)
    ends = np.cumsum(lowering.number(node, 1, "split", even))[:-1]
    return [_listed(part, value.shape[planes.ndim :], value) for part in np.split(planes, ends, axis)]


OPERATORS: dict[str, Callable[[_Lowering, Node], Union[Tensor, list[Tensor]]]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _gemm,
    "MaxPool": _max_pool,
    "GlobalMaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _mean,
    "ReduceMean": _mean,
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    **dict.fromkeys(ACTIVATIONS, _activate),
    "Softmax": _softmax,
    **dict.fromkeys(("Identity", "Dropout", "Cast"), _same),
    "Pad": _pad,
    "Concat": _concat,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
}

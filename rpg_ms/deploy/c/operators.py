"""ONNX operators in terms of the operations that there are kernels for."""

from __future__ import annotations

from typing import Any, Callable, Union

import numpy as np

from rpg_ms.deploy.c.builder import Builder
from rpg_ms.deploy.c.graph import Graph, Node, clip_limits
from rpg_ms.deploy.c.lowering import Lowering, Rounded, Tensor, Unsupported, identity
from rpg_ms.deploy.c.operations import POINT, SMALLEST, Activation, Linear, PlaneByPlane, Term, Value, Whole


def lower(graph: Graph, rounded: Rounded) -> tuple[Builder, Value, int]:
    """The operations of a graph, its output, and its multiply-adds with all zeros.

    Args:
        graph: from `rpg_ms.deploy.c.graph.read_graph`.
        rounded: weights that are kept in fewer bits.

    Raises:
        Unsupported: the graph has an operator that cannot be written as C.
    """
    lowering = Lowering(graph, rounded)
    for node in graph.nodes:
        if node.kind not in OPERATORS:
            raise Unsupported(node.kind)
        tensors = OPERATORS[node.kind](lowering, node)
        for name, tensor in zip(node.outputs, tensors if isinstance(tensors, list) else [tensors]):
            if len(graph.readers(name)) != 1:
                tensor = lowering.solid(tensor)
            lowering.tensors[name] = tensor
    return lowering.builder, lowering.solid(lowering.tensors[graph.output]), lowering.dense


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


def _conv(lowering: Lowering, node: Node) -> Linear:
    value = lowering.image(node, padded=True)
    lowering.number(node, 1)
    weight, scale, packed = lowering.weight(node.inputs[1])
    if weight.ndim != 4:
        raise Unsupported(f"Conv with a kernel of {weight.ndim - 2} axes")
    stride, dilation, pads, space = _window(node, value, weight.shape[2:])
    lowering.dense += weight.size * space[0] * space[1]
    groups, planes = node.attributes.get("group", 1), value.planes.ravel()
    term = Term(weight, planes, value.space, scale, stride, dilation, pads, groups, packed, True)
    bias = lowering.number(node, 2, default=np.zeros(len(weight))).astype(np.float64)
    return Linear((1, len(weight), *space), space, [term], bias)


def _gemm(lowering: Lowering, node: Node) -> Linear:
    value = lowering.value(node)
    attributes, second = node.attributes, lowering.number(node, 1)
    if value.space != POINT or len(value.shape) != 2 or value.shape[0] != 1 or second.ndim != 2:
        raise Unsupported(f"{node.kind} of a tensor of shape {list(value.shape)}")
    if attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1 or attributes.get("transA"):
        raise Unsupported("Gemm with a factor, or transposed")
    weight, scale, packed = lowering.weight(node.inputs[1])
    if not attributes.get("transB"):
        weight, scale, packed = (weight * scale[:, None]).astype(np.float32).T, np.ones(weight.shape[1]), False
    lowering.dense += weight.size
    term = Term(weight[:, :, None, None], value.planes.ravel(), POINT, scale, packed=packed, product=True)
    bias = np.broadcast_to(lowering.number(node, 2, default=0.0).astype(np.float64).ravel(), len(weight)).copy()
    return Linear((1, len(weight)), POINT, [term], bias)


def _max_pool(lowering: Lowering, node: Node) -> Tensor:
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


def _average_pool(lowering: Lowering, node: Node) -> Tensor:
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


def _mean(lowering: Lowering, node: Node) -> Value:
    axes = lowering.number(node, 1, "axes", (2, 3)).tolist()
    value = lowering.image(node)
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        raise Unsupported(f"{node.kind} over the axes {axes}")
    keep = node.kind != "ReduceMean" or node.attributes.get("keepdims", 1)
    return _plane_by_plane(lowering, value, "mean", value.shape[:2] + (1, 1) * bool(keep), POINT)


def _plane_by_plane(
    lowering: Lowering, value: Value, kind: str, shape: tuple, space: tuple[int, int], **options: Any
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


def _batch_norm(lowering: Lowering, node: Node) -> Linear:
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


def _arithmetic(lowering: Lowering, node: Node) -> Tensor:
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


def _sum(lowering: Lowering, node: Node) -> Linear:
    first, second = lowering.linear(node, 0), lowering.linear(node, 1)
    if first.shape != second.shape:
        raise Unsupported(f"{node.kind} of tensors of shapes {list(first.shape)} and {list(second.shape)}")
    if first is second:  # the same name twice
        return _scaled(first, 2.0 if node.kind == "Add" else 0.0, 0.0)
    second = _scaled(second, 1.0 if node.kind == "Add" else -1.0, 0.0)
    if any(t.packed for t in first.terms) and any(t.packed for t in second.terms):  # a row has one scale
        second = identity(lowering.solid(second))
    return Linear(first.shape, first.space, [*first.terms, *second.terms], first.bias + second.bias)


def _product(lowering: Lowering, node: Node) -> Value:
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


def _activate(lowering: Lowering, node: Node) -> Value:
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


def _softmax(lowering: Lowering, node: Node) -> Value:
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


def _same(lowering: Lowering, node: Node) -> Tensor:
    return lowering.tensors[node.inputs[0]]


def _pad(lowering: Lowering, node: Node) -> Value:
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
    shape = (*planes.shape, *rest)
    if value.space == POINT and all(n == 1 for n in shape[2:]):  # axes of one pixel belong to the planes again
        planes = planes.reshape(shape[:2])
    return Value(shape, planes, value.space)


def _concat(lowering: Lowering, node: Node) -> Value:
    values = [lowering.value(node, i) for i in range(len(node.inputs))]
    parts, axis = [_leading(value) for value in values], node.attributes["axis"] % len(values[0].shape)
    if axis >= parts[0].ndim or len({(value.space, part.ndim) for value, part in zip(values, parts)}) != 1:
        raise Unsupported(f"Concat along axis {axis}")
    return _listed(np.concatenate(parts, axis), values[0].shape[parts[0].ndim :], values[0])


def _reshape(lowering: Lowering, node: Node) -> Value:
    value, target = lowering.value(node), lowering.number(node, 1).tolist()
    target = [value.shape[i] if size == 0 else size for i, size in enumerate(target)]
    size = int(np.prod(value.shape))
    target = tuple(size // -int(np.prod(target)) if n == -1 else n for n in target)
    return _reshaped(lowering, value, target)


def _reshaped(lowering: Lowering, value: Value, target: tuple[int, ...]) -> Value:
    """The value in another shape; where that mixes pixels with channels, all pixels become planes of their own."""
    for axes in sorted(range(1, len(target) + 1), key=lambda axes: (axes != 2, axes)):
        if int(np.prod(target[:axes])) == value.planes.size:
            return Value(target, value.planes.reshape(target[:axes]), value.space)
    builder = lowering.builder
    sources = builder.in_arena(value.planes.ravel(), value.space)
    count = sources.size * value.space[0] * value.space[1]
    operation = Whole(POINT, sources, False, "flat", sources, value.space)
    return Value(target, builder.add(operation, count).reshape(target), POINT)


def _flatten(lowering: Lowering, node: Node) -> Value:
    value, axis = lowering.value(node), node.attributes.get("axis", 1)
    target = (int(np.prod(value.shape[:axis])), int(np.prod(value.shape[axis:])))
    return _reshaped(lowering, value, target)


def _squeeze(lowering: Lowering, node: Node) -> Value:
    value = lowering.value(node)
    axes = lowering.number(node, 1, "axes", [i for i, n in enumerate(value.shape) if n == 1]).tolist()
    axes = {axis % len(value.shape) for axis in axes}
    return _reshaped(lowering, value, tuple(n for i, n in enumerate(value.shape) if i not in axes))


def _unsqueeze(lowering: Lowering, node: Node) -> Value:
    value, axes = lowering.value(node), lowering.number(node, 1, "axes").tolist()
    shape = list(value.shape)
    for axis in sorted(axis % (len(value.shape) + len(axes)) for axis in axes):
        shape.insert(axis, 1)
    return _reshaped(lowering, value, tuple(shape))


def _transpose(lowering: Lowering, node: Node) -> Value:
    value, order = lowering.value(node), node.attributes["perm"]
    planes = _leading(value)
    if list(order[planes.ndim :]) != list(range(planes.ndim, len(order))):
        raise Unsupported(f"Transpose of a tensor of shape {list(value.shape)}")
    return _listed(planes.transpose(order[: planes.ndim]), value.shape[planes.ndim :], value)


def _slice(lowering: Lowering, node: Node) -> Value:
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


def _split(lowering: Lowering, node: Node) -> list[Tensor]:
    value, axis = lowering.value(node), node.attributes.get("axis", 0)
    planes = _leading(value)
    axis %= len(value.shape)
    if axis >= planes.ndim:
        raise Unsupported("Split of an image")
    even = [planes.shape[axis] // len(node.outputs)] * len(node.outputs)
    ends = np.cumsum(lowering.number(node, 1, "split", even))[:-1]
    return [_listed(part, value.shape[planes.ndim :], value) for part in np.split(planes, ends, axis)]


OPERATORS: dict[str, Callable[[Lowering, Node], Union[Tensor, list[Tensor]]]] = {
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

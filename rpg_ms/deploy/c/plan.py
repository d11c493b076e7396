"""What of a network is computed, and where in the arena it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rpg_ms.deploy.c.builder import Builder, Reach
from rpg_ms.deploy.c.operations import POINT, Input, Operation, Space, Value

ALIGNED = 16  # floats: a vector of AVX-512, and a cache line
LARGEST = 2**31 - 1  # offsets in an arena are 32 bits


@dataclass(frozen=True)
class Shape:
    """How planes of one space lie in memory, in floats; `source/kernels.c` says how.

    Args:
        space: height and width.
        stride: from one row to the next.
        plane: from one plane to the next.
        lead, tail: before the first plane and behind the last, where taps may read.
    """

    space: Space
    stride: int
    plane: int
    lead: int
    tail: int


@dataclass
class Plan:
    """Everything that is written.

    Args:
        operations: those that something reads, in order, with what they write.
        output: the planes of the output, `computed` all of them.
        shapes: `{space: Shape}` of all planes in the arena.
        reach: as a `Builder` has it.
        starts: where in the arena each operation's first plane is, floats.
        offsets: int64, of each plane; in the input for its planes.
        strides: int64, from one row of each plane to the next.
        arena: floats.
    """

    operations: list[Operation]
    output: Value
    shapes: dict[Space, Shape]
    reach: dict[Space, tuple[Reach, Reach]]
    starts: dict[Operation, int]
    offsets: np.ndarray
    strides: np.ndarray
    arena: int

    @property
    def macs(self) -> int:
        """Multiply-adds of convolutions and dense layers that are left."""
        return sum(
            int(op.product.sum()) * op.space[0] * op.space[1] for op in self.operations if hasattr(op, "product")
        )


def plan(builder: Builder, output: Value) -> Plan:
    """Leave out what nothing reads, and place the rest.

    Raises:
        OverflowError: the arena would need offsets of more than 32 bits.
    """
    planes = builder.in_arena(output.planes.ravel(), output.space)
    output = Value(output.shape, planes.reshape(output.planes.shape), output.space)
    operations = _read(builder.operations, planes, len(builder.planes))
    shapes = {op.space: _shape(op.space, builder.reach) for op in operations}
    shapes[POINT] = Shape(POINT, 1, 1, 0, 0)
    starts, arena = _placed(operations, planes, shapes, len(builder.planes))
    offsets, strides = np.full((2, len(builder.planes)), -1, np.int64)
    for operation in operations:
        shape = shapes[operation.space]
        step, stride = shape.plane, shape.stride
        if isinstance(operation, Input):
            step, stride = operation.space[0] * operation.space[1], operation.space[1]
        offsets[operation.outputs] = starts[operation] + step * np.arange(len(operation.outputs))
        strides[operation.outputs] = stride
    return Plan(operations, output, shapes, builder.reach, starts, offsets, strides, arena)


def _read(operations: list[Operation], outputs: np.ndarray, count: int) -> list[Operation]:
    """The operations whose planes are read, by one of them or as `outputs`, without the planes that are not."""
    needed, kept = np.zeros(count, bool), []
    needed[outputs] = True
    for operation in reversed(operations):
        wanted = needed[operation.outputs]
        if wanted.any():
            operation.keep(wanted)
            needed[operation.reads()] = True
            kept.append(operation)
    return kept[::-1]


def _shape(space: Space, reach: dict[Space, tuple[Reach, Reach]]) -> Shape:
    down, right = (axis.pad for axis in reach.get(space, (Reach(), Reach())))
    stride = space[1] + right
    beyond = down * stride + right
    computed = _aligned(space[0] * stride)
    plane = max(_aligned((space[0] + down) * stride), computed)
    return Shape(space, stride, plane, _aligned(beyond), _aligned(max(0, computed + beyond - plane)))


def _aligned(floats: int) -> int:
    return -(-floats // ALIGNED) * ALIGNED


def _placed(
    operations: list[Operation], outputs: np.ndarray, shapes: dict[Space, Shape], count: int
) -> tuple[dict[Operation, int], int]:
    """Where each operation writes its first plane, and the floats of all: large buffers first, each as low as it can.

    Buffers that are needed at the same time do not overlap.
    """
    writer = np.zeros(count, np.int64)
    last = np.arange(len(operations))  # the last operation that reads what each one wrote
    for i, operation in enumerate(operations):
        writer[operation.outputs] = i
        last[writer[operation.reads()]] = i
    last[writer[outputs]] = len(operations)
    sizes = []
    for operation in operations:
        shape = shapes[operation.space]
        inside = not isinstance(operation, Input)
        sizes.append(_aligned(shape.lead + shape.plane * len(operation.outputs) + shape.tail) if inside else 0)
    placed: list[tuple[int, int, int, int]] = []  # first and last operation, start, end
    starts = {}
    for i in sorted(range(len(operations)), key=lambda i: -sizes[i]):
        start = 0
        for low, high in sorted((s, e) for first, until, s, e in placed if first <= last[i] and i <= until):
            if start + sizes[i] <= low:
                break
            start = max(start, high)
        if sizes[i]:
            placed.append((i, last[i], start, start + sizes[i]))
        starts[operations[i]] = start + shapes[operations[i].space].lead if sizes[i] else 0
    arena = max((end for *_, end in placed), default=0)
    if arena > LARGEST:
        raise OverflowError(f"its activations take {4 * arena / 2**30:.1f} GiB, more than 32-bit offsets reach")
    return starts, arena

"""The calls of kernels, and the tables that they read, as `source/kernels.c` documents them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rpg_ms.deploy.c.operations import POINT, Activation, Input, PlaneByPlane, Rows, Space, Whole
from rpg_ms.deploy.c.plan import LARGEST, Plan

DENSE = 0.4  # share of non-zeros in groups of four rows from which computing the zeros as well is faster
FARTHEST = 2**16 - 1  # what a record's distance can be
BYTES = {"float16": 2, "int8": 1}


@dataclass
class Program:
    """What is written of a network.

    Args:
        calls: statements of C.
        words: uint32, all tables.
        spaces: those whose shapes the calls name.
    """

    calls: list[str] = field(default_factory=list)
    parts: list[np.ndarray] = field(default_factory=list)
    spaces: set[Space] = field(default_factory=set)
    length: int = 0

    @property
    def words(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.uint32), *self.parts])

    def table(self, *arrays: np.ndarray) -> str:
        """Append a table of arrays of 32 bits; the C expression of its address."""
        address = f"w + {self.length}"
        for array in arrays:
            self.parts.append(np.ascontiguousarray(array).view(np.uint32).ravel())
            self.length += self.parts[-1].size
        return address

    def shape(self, space: Space) -> str:
        """The C expression of a shape's address."""
        self.spaces.add(space)
        return f"&{shape_name(space)}"


def shape_name(space: Space) -> str:
    """The C name of a space's shape."""
    return f"net_{space[0]}x{space[1]}"


def program(plan: Plan, value_type: str) -> Program:
    """The calls and tables of a plan.

    Raises:
        OverflowError: a table would need more than 32 bits.
    """
    result = Program()
    for operation in plan.operations:
        if isinstance(operation, Rows):
            result.calls.append(_rows(result, plan, operation, value_type))
        elif isinstance(operation, PlaneByPlane):
            result.calls.append(_plane_by_plane(result, plan, operation))
        elif isinstance(operation, Whole):
            result.calls.append(_whole(result, plan, operation))
    planes = plan.output.planes.ravel()
    shape = result.shape(plan.output.space)
    result.calls.append(f"net_flat(a, output, {result.table(_offsets(plan, planes))}, {len(planes)}, {shape});")
    if result.length > LARGEST:
        raise OverflowError("its weights take more than 8 GiB")
    return result


def _offsets(plan: Plan, planes: np.ndarray) -> np.ndarray:
    return plan.offsets[planes].astype(np.int32)


def _floats(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)


def _counts(index: np.ndarray, count: int) -> np.ndarray:
    """Where each of `count` runs of equal numbers begins, and the end; int32 `[count + 1]`."""
    return np.concatenate([[0], np.cumsum(np.bincount(index, minlength=count))]).astype(np.int32)


# ----------------------------------------------------------------------------------------------------
# Weighted sums
# ----------------------------------------------------------------------------------------------------


def _rows(result: Program, plan: Plan, rows: Rows, value_type: str) -> str:
    offset = plan.offsets[rows.plane] + rows.down * plan.strides[rows.plane] + rows.right
    order = np.lexsort((offset, rows.row))
    row, offset, weight, packed = rows.row[order], offset[order], rows.weight[order], rows.packed[order]
    row, offset, weight, packed = _merged(row, offset, weight, packed)
    count, start, activation = len(rows.outputs), plan.starts[rows], _activation(rows.activation)
    point = rows.space == POINT
    if not (packed.any() or rows.maximum):
        matrix = _matrix(result, rows, row, offset, weight) if point else None
        if matrix:
            return f"net_matrix(a + {matrix[1]}, a + {start}, {matrix[0]}, {count}, {matrix[2]}, {activation});"
        table = None if point else _blocks(result, rows, row, offset, weight)
        if table:
            shape = result.shape(rows.space)
            return f"net_blocks(a, a + {start}, {table}, {count}, {shape}, {int(rows.gaps)}, {activation});"
    plain = ~packed
    arrays = [_counts(row[plain], count), rows.bias]
    if packed.any():
        first, counts, records = _records(row[packed], offset[packed], weight[packed], count, value_type)
        arrays += [rows.scale, first, counts]
    arrays.append(_entries(offset[plain], _floats(weight[plain])[:, None]))
    arrays += [records] if packed.any() else []
    table, mode = result.table(*arrays), "MAXIMUM" if rows.maximum else "PACKED" if packed.any() else "SUM"
    if point:
        return f"net_dots(NET_{mode}, a, a + {start}, {table}, {count}, {activation});"
    kernel = {"MAXIMUM": "net_largest", "PACKED": "net_packed", "SUM": "net_rows"}[mode]
    return f"{kernel}(a, a + {start}, {table}, {count}, {result.shape(rows.space)}, {int(rows.gaps)}, {activation});"


def _merged(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Entries of the same row and offset as one; a row has several where two convolutions were added."""
    row, offset, weight, packed = arrays
    same = (row[1:] == row[:-1]) & (offset[1:] == offset[:-1]) & ~packed[1:] & ~packed[:-1]
    if not same.any():
        return arrays
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    total = np.add.reduceat(weight.astype(np.float64), starts).astype(np.float32)
    return row[starts], offset[starts], total, packed[starts]


def _entries(offset: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each offset with its weights behind it, as words."""
    words = np.empty((len(offset), 1 + weights.shape[1]), np.uint32)
    words[:, 0] = offset.astype(np.int32).view(np.uint32)
    words[:, 1:] = weights.view(np.uint32)
    return words


def _matrix(result: Program, rows: Rows, row: np.ndarray, offset: np.ndarray, weight: np.ndarray) -> tuple:
    """The table of a dense layer, the offset of what it reads and how much; None if it is sparse or that scattered."""
    if not len(offset):
        return None
    first, columns = int(offset.min()), int(offset.max() - offset.min()) + 1
    count = len(rows.outputs)
    if len(row) < DENSE * count * columns:
        return None
    matrix = np.zeros((count, columns), np.float32)
    matrix[row, offset - first] = weight
    return result.table(rows.bias, matrix), first, columns


def _blocks(result: Program, rows: Rows, row: np.ndarray, offset: np.ndarray, weight: np.ndarray) -> str:
    """The table of groups of four rows, or None if they share too little."""
    group, count = row // 4, -(-len(rows.outputs) // 4)
    order = np.lexsort((offset, group))
    row, offset, weight, group = row[order], offset[order], weight[order], group[order]
    new = np.concatenate([[True], (group[1:] != group[:-1]) | (offset[1:] != offset[:-1])])
    if len(row) < DENSE * 4 * new.sum():
        return None
    weights = np.zeros((int(new.sum()), 4), np.float32)
    weights[np.cumsum(new) - 1, row % 4] = weight
    bias = np.zeros(4 * count, np.float32)
    bias[: len(rows.bias)] = rows.bias
    return result.table(_counts(group[new], count), bias, _entries(offset[new], weights))


def _records(
    row: np.ndarray, offset: np.ndarray, value: np.ndarray, count: int, value_type: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packed entries: the first offset of each row, where its records begin, and the records as words.

    A distance that 16 bits cannot hold is bridged by records of the value 0.
    """
    distance = np.diff(offset, prepend=offset[:1])
    begins = np.concatenate([[True], row[1:] != row[:-1]])
    distance[begins] = 0
    first = np.zeros(count, np.int32)
    first[row[begins]] = offset[begins]
    bridges = np.maximum(distance - 1, 0) // FARTHEST
    at = np.cumsum(bridges + 1) - 1  # of each entry, behind its bridges
    distances, values = np.full(int(at[-1]) + 1, FARTHEST), np.zeros(int(at[-1]) + 1, np.float32)
    distances[at], values[at] = distance - bridges * FARTHEST, value
    records = np.zeros((len(distances), 2 + BYTES[value_type]), np.uint8)
    records[:, :2] = distances.astype("<u2").view(np.uint8).reshape(-1, 2)
    records[:, 2:] = values.astype(np.dtype(value_type).newbyteorder("<"))[:, None].view(np.uint8)
    content = records.tobytes()
    words = np.frombuffer(content + bytes(-len(content) % 4), np.uint32)
    return first, _counts(np.repeat(row, bridges + 1), count), words


# ----------------------------------------------------------------------------------------------------
# Others
# ----------------------------------------------------------------------------------------------------


def _plane_by_plane(result: Program, plan: Plan, op: PlaneByPlane) -> str:
    if op.kind == "phase":
        return _phase(result, plan, op)
    table, start, count = result.table(_offsets(plan, op.sources)), plan.starts[op], len(op.outputs)
    if op.kind == "mean":
        return f"net_mean(a, a + {start}, {table}, {count}, {result.shape(op.source)});"
    shape = result.shape(op.space)
    if op.kind == "gate":
        numbers = int(op.source == POINT)
        return f"net_gate(a, a + {start}, {table}, {count}, {shape}, {numbers}, {int(op.gaps)});"
    window = ", ".join(map(str, (*op.kernel, *op.stride, *op.pads)))
    return (
        f"net_average(a, a + {start}, {table}, {count}, {shape}, {result.shape(op.source)}, {window}, {int(op.gaps)});"
    )


def _phase(result: Program, plan: Plan, op: PlaneByPlane) -> str:
    outside, stride = (
        isinstance(plan.operations[0], Input) and op.sources[0, 0] in plan.operations[0].outputs,
        plan.strides[op.sources[0, 0]],
    )
    table = result.table((plan.offsets[op.sources[0]] + op.start[0] * stride + op.start[1]).astype(np.int32))
    held = []
    for axis in range(2):
        after = plan.reach[op.space][axis].after if op.space in plan.reach else 0
        held.append(min(-(-(op.source[axis] - op.start[axis]) // op.stride[axis]), op.space[axis] + after))
    fill = "-FLT_MAX" if op.fill else "0"
    return (
        f"net_phase({'input' if outside else 'a'}, a + {plan.starts[op]}, {table}, {len(op.outputs)}, "
        f"{result.shape(op.space)}, {stride}, {op.stride[0]}, {op.stride[1]}, {held[0]}, {held[1]}, {fill});"
    )


def _whole(result: Program, plan: Plan, op: Whole) -> str:
    table, start = result.table(_offsets(plan, op.sources)), plan.starts[op]
    if op.kind == "softmax":
        return f"net_softmax(a, a + {start}, {table}, {len(op.sources)});"
    return f"net_flat(a, a + {start}, {table}, {len(op.sources)}, {result.shape(op.source)});"


def _activation(activation: Activation) -> str:
    kind = activation.kind.upper()
    return f"(net_activation){{NET_{kind}, {_literal(activation.low)}, {_literal(activation.high)}}}"


def _literal(number: float) -> str:
    if abs(number) >= float(np.finfo(np.float32).max):
        return "FLT_MAX" if number > 0 else "-FLT_MAX"
    return f"{float(np.float32(number))!r}f"

"""Collects the operations of a network, in the order in which they are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rpg_ms.deploy.c.operations import (
    LINEAR,
    POINT,
    SMALLEST,
    Activation,
    Input,
    Linear,
    Operation,
    Plane,
    PlaneByPlane,
    Rows,
    Space,
    Term,
    Value,
)


@dataclass
class Reach:
    """How far beyond the edge of planes of one space something reads, in pixels down and to the right.

    `spill` says that some phases have pixels there that are read, so that they share no room with the padding before.
    """

    before: int = 0
    after: int = 0
    spill: bool = False

    def include(self, shifts: np.ndarray, held: int, size: int) -> None:
        """Count shifts that are read, of planes that hold `held` of `size` pixels along this axis."""
        self.before = max(self.before, -int(shifts.min(initial=0)))
        self.after = max(self.after, int(shifts.max(initial=0)))
        self.spill = self.spill or (held > size and int(shifts.max(initial=0)) > 0)

    @property
    def pad(self) -> int:
        """The zeros between one row, or plane, and the next."""
        return self.before + self.after if self.spill else max(self.before, self.after)


class Builder:
    """The operations so far.

    Attributes:
        operations: in order.
        planes: `Plane` of each number.
        reach: `{space: (Reach down, Reach to the right)}`.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.planes: list[Plane] = []
        self.reach: dict[Space, tuple[Reach, Reach]] = {}
        self._phases: dict[tuple, int] = {}
        self._filled: dict[tuple[float, Space], int] = {}

    def add(self, operation: Operation, count: int) -> np.ndarray:
        """Append an operation that writes `count` planes; their numbers."""
        first = len(self.planes)
        self.planes.extend(Plane(operation) for _ in range(count))
        operation.outputs = np.arange(first, first + count)
        self.operations.append(operation)
        return operation.outputs

    def constant(self, number: float) -> int:
        """A plane that is `number` everywhere and takes no room."""
        self.planes.append(Plane(None, float(number)))
        return len(self.planes) - 1

    def constants_of(self, planes: np.ndarray) -> np.ndarray:
        """What planes are everywhere, NaN where they are no constants; float64 of the same shape."""
        found = [p.constant if p.operation is None else np.nan for p in map(self.planes.__getitem__, planes.ravel())]
        return np.array(found, np.float64).reshape(planes.shape)

    def computed(self, planes: np.ndarray, space: Space) -> np.ndarray:
        """The same planes, in memory even where they are constants."""
        constants = self.constants_of(planes)
        planes = planes.copy()
        for at in np.argwhere(~np.isnan(constants)):
            planes[tuple(at)] = self._fill(float(constants[tuple(at)]), space)
        return planes

    def in_arena(self, planes: np.ndarray, space: Space) -> np.ndarray:
        """The same planes, in the arena even where they are constants or the network's input."""
        planes = self.computed(planes, space)
        if any(isinstance(self.planes[p].operation, Input) for p in planes):
            planes = self._phase(planes, space, space, (1, 1), (0, 0), 0.0)
        return planes

    def _fill(self, number: float, space: Space) -> int:
        if (number, space) not in self._filled:
            row = _rows(space, [], 1, np.array([number]))
            self._filled[number, space] = int(self.add(row, 1)[0])
        return self._filled[number, space]

    def where_not_constant(
        self, planes: np.ndarray, make: Callable[[np.ndarray], np.ndarray], constant: Callable[[float], float]
    ) -> np.ndarray:
        """New planes from `make`, which is given those that are no constants, and constants from `constant`."""
        constants = self.constants_of(planes)
        known, result = ~np.isnan(constants), np.empty(planes.shape, np.int64)
        result[known] = [self.constant(constant(number)) for number in constants[known]]
        if not known.all():
            result[~known] = make(planes[~known])
        return result

    # ----------------------------------------------------------------------------------------------------
    # Weighted sums
    # ----------------------------------------------------------------------------------------------------

    def rows(self, linear: Linear, activation: Activation = LINEAR, maximum: bool = False) -> Value:
        """Compute a `Linear`; outputs without any entry become constants."""
        count = len(linear.bias)
        bias, scale, parts = linear.bias.copy(), np.ones(count), []
        for term in linear.terms:
            part, constant = self._entries(term, linear.space, maximum)
            bias += constant * term.scale
            if term.packed:
                scale = term.scale
            else:
                part["weight"] = (part["weight"] * term.scale[part["row"]]).astype(np.float32)
            parts.append({name: array[part["weight"] != 0] for name, array in part.items()})
        operation = _rows(linear.space, parts, count, bias, scale, activation, maximum)
        used = np.bincount(operation.row, minlength=count) > 0
        planes = np.empty(count, np.int64)
        planes[~used] = [self.constant(number) for number in np.float32(activation(bias[~used]))]
        if used.any():
            outputs = self.add(operation, count)
            operation.keep(used)
            planes[used] = outputs[used]
        return Value(linear.shape, planes.reshape(linear.shape[:2]), linear.space)

    def _entries(self, term: Term, space: Space, maximum: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """A term's entries, and what constant planes add to each output before the scale."""
        row, channel, tap_down, tap_right = np.nonzero(term.weight)
        weight = term.weight[row, channel, tap_down, tap_right]
        channel += row // (len(term.weight) // term.groups) * term.weight.shape[1]
        down = tap_down * term.dilation[0] - term.pads[0]
        right = tap_right * term.dilation[1] - term.pads[1]
        constant = np.zeros(len(term.weight))
        if space == POINT:
            inside = (down >= 0) & (down < term.source[0]) & (right >= 0) & (right < term.source[1])
            row, channel, down, right, weight = (a[inside] for a in (row, channel, down, right, weight))
        planes = term.planes
        if not maximum:
            constants = np.nan_to_num(self.constants_of(planes))
            known = ~np.isnan(self.constants_of(planes))
            if space == POINT or not any(term.pads):
                np.add.at(constant, row, weight.astype(np.float64) * constants[channel])
                gone = known[channel]
            else:
                gone = (known & (constants == 0))[channel]
            row, channel, down, right, weight = (a[~gone] for a in (row, channel, down, right, weight))
        plane = np.zeros(len(row), np.int64)
        if len(row):
            read = np.unique(channel)
            planes = planes.copy()
            planes[read] = self.computed(planes[read], term.source)
            plane = planes[channel]
            if space != POINT:
                plane, down, right = self._shifted(term, plane, down, right, space, SMALLEST if maximum else 0.0)
            else:
                planes[read] = self.in_arena(planes[read], term.source)
                plane = planes[channel]
        entries = {"row": row, "plane": plane, "down": down, "right": right, "weight": weight}
        entries["packed"] = np.full(len(row), term.packed)
        entries["product"] = np.full(len(row), term.product)
        return entries, constant

    def _shifted(
        self, term: Term, plane: np.ndarray, down: np.ndarray, right: np.ndarray, space: Space, fill: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The planes that have each tap at a constant offset, and the shifts there."""
        used = {int(p) for p in np.unique(plane)}
        outside = any(isinstance(self.planes[p].operation, Input) for p in used)
        reach = self.reach.setdefault(space, (Reach(), Reach()))
        if term.stride == (1, 1) and term.source == space and fill == 0 and not outside:
            for axis, shifts in enumerate((down, right)):
                reach[axis].include(shifts, space[axis], space[axis])
            for p in np.unique(plane[(down != 0) | (right != 0)]):
                self.planes[p].operation.gaps = True
            return plane, down, right
        result, strides = plane.copy(), term.stride
        start_down, start_right = down % strides[0], right % strides[1]
        down, right = down // strides[0], right // strides[1]
        for axis, shifts in enumerate((down, right)):
            reach[axis].include(shifts, -(-term.source[axis] // strides[axis]), space[axis])
        for start in {*zip(start_down.tolist(), start_right.tolist())}:
            chosen = (start_down == start[0]) & (start_right == start[1])
            result[chosen] = self._phase(plane[chosen], term.source, space, strides, start, fill)
        return result, down, right

    def _phase(
        self, planes: np.ndarray, source: Space, space: Space, stride: tuple, start: tuple, fill: float
    ) -> np.ndarray:
        """The phases of planes, computed at most once each."""
        wanted, inverse = np.unique(planes, return_inverse=True)
        missing = np.array([p for p in wanted if (p, space, stride, start, fill) not in self._phases], np.int64)
        outside = np.array([isinstance(self.planes[p].operation, Input) for p in missing], bool)
        for chosen in (missing[outside], missing[~outside]):  # an operation reads either the input or the arena
            if len(chosen):
                options = {"stride": stride, "start": start, "fill": fill}
                operation = PlaneByPlane(space, chosen, True, "phase", chosen[None], source, **options)
                for plane, phase in zip(chosen, self.add(operation, len(chosen))):
                    self._phases[plane, space, stride, start, fill] = int(phase)
        return np.array([self._phases[p, space, stride, start, fill] for p in wanted], np.int64)[inverse]


def _rows(
    space: Space,
    parts: list[dict[str, np.ndarray]],
    count: int,
    bias: np.ndarray,
    scale: np.ndarray = None,
    activation: Activation = LINEAR,
    maximum: bool = False,
) -> Rows:
    types = {"row": np.int32, "plane": np.int64, "down": np.int32, "right": np.int32, "weight": np.float32}
    joined = {
        name: np.concatenate([np.zeros(0), *(part[name] for part in parts)]).astype(types.get(name, bool))
        for name in Rows.ENTRIES
    }
    scale = np.ones(count) if scale is None else scale
    return Rows(
        space,
        np.zeros(0, np.int64),
        scale=np.float32(scale),
        bias=np.float32(bias),
        activation=activation,
        maximum=maximum,
        **joined,
    )

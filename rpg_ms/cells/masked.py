"""Masked layers: what turns any MindSpore network into one that can be pruned.

A mask does not enter the forward pass. The weight itself is kept exactly zero where its mask is, which costs
nothing per step and leaves the gradient at masked positions what regrowth needs: the true, dense one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import mint, nn, ops

from rpg_ms.rank import mean_rank

TRANSPOSED = (nn.Conv1dTranspose, nn.Conv2dTranspose, nn.Conv3dTranspose, mint.nn.ConvTranspose2d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, mint.nn.Conv1d, mint.nn.Conv2d, mint.nn.Conv3d, *TRANSPOSED)
DENSES = (nn.Dense, mint.nn.Linear)


class _Masked:
    """Adds to a layer the parameter `weight_mask`: bool, of the weight's shape, not trainable, saved with it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _add_mask(self)


class MaskedConv2d(_Masked, nn.Conv2d):
    """`nn.Conv2d` with a `weight_mask`."""


class MaskedDense(_Masked, nn.Dense):
    """`nn.Dense` with a `weight_mask`."""


@dataclass(frozen=True)
class MaskedLayer:
    """A layer that can be pruned: its cell's name, its weight and mask Parameters, "conv" or "dense"."""

    name: str
    kind: str
    weight: ms.Parameter
    mask: ms.Parameter


@dataclass(frozen=True)
class Sparsified:
    """What `sparsify` found: `layers` in the network's order, and why it `skipped` which other weight."""

    layers: tuple[MaskedLayer, ...]
    skipped: dict[str, str]  # parameters of two or more dimensions, by name

    @property
    def prunable(self) -> int:
        """`N`: the number of prunable weights."""
        return sum(layer.weight.size for layer in self.layers)

    @property
    def nonzero(self) -> int:
        """The number of positions whose mask is 1."""
        return sum(int(np.count_nonzero(layer.mask.asnumpy())) for layer in self.layers)

    @property
    def density(self) -> float:
        """Share of prunable positions whose mask is 1."""
        return self.nonzero / self.prunable

    def counts(self) -> dict[str, float]:
        """The three of them by name."""
        return {name: getattr(self, name) for name in ("density", "nonzero", "prunable")}

    def mean_rank(self) -> float:
        """Numeric rank of the weights in percent of the full rank, mean over the layers; singular values, so slow."""
        return mean_rank([layer.weight.asnumpy() for layer in self.layers])


class NothingMatches(ValueError):
    """Patterns of layers to leave out that match none, or that leave none to prune."""


def sparsify(network: nn.Cell, exclude: Sequence[str] = ()) -> Sparsified:
    """Turn the convolution and dense layers of any network into masked ones, in place; masks start all ones.

    Layers keep their names, Parameters and behaviour; `nn.Conv2d` and `nn.Dense` become `MaskedConv2d` and
    `MaskedDense`, other convolutions (1-D, 3-D, transposed, `mint`) and subclasses keep their class and gain
    the mask. Norm scales, biases and embeddings are never pruned (arXiv 2311.17493, section 4.1).

    `exclude` are patterns with shell wildcards, matched against cell names ("conv1", "layer1.*").

    Raises:
        NothingMatches: a pattern that matches no layer, or patterns that leave no layer to prune.
        ValueError: the network has no layer to prune, or a `weight_mask` of its own that is not such a mask.
    """
    layers, skipped, seen, used = [], {}, set(), set()
    for cell_name, cell in network.cells_and_names():
        for attribute, parameter in list(cell.parameters_and_names(expand=False)):
            attribute = attribute.rsplit(".", 1)[-1]
            if attribute == "weight_mask":
                _check_mask(cell_name, cell)
            if id(parameter) in seen or parameter.ndim < 2 or attribute == "weight_mask":
                continue
            seen.add(id(parameter))
            patterns = {pattern for pattern in exclude if fnmatchcase(cell_name, pattern)}
            kind = "conv" if isinstance(cell, CONVOLUTIONS) else "dense" if isinstance(cell, DENSES) else None
            if attribute != "weight" or kind is None:
                reason = f"{attribute!r} of a {type(cell).__name__}, not the weight of a convolution or dense layer"
            elif not parameter.requires_grad:
                reason = "frozen (requires_grad is False)"
            elif patterns:
                reason = f"excluded by {min(patterns)!r}"
                used |= patterns
            else:
                layers.append(MaskedLayer(cell_name, kind, parameter, _masked(cell_name, cell)))
                continue
            skipped[parameter.name] = reason
    unused = sorted(set(exclude) - used)
    if unused:
        raise NothingMatches(f"no prunable layer matches {', '.join(map(repr, unused))}")
    if not layers:
        reasons = [reason for reason in skipped.values() if reason.startswith(("frozen", "excluded"))]
        counts = ", ".join(f"{reasons.count(reason)} {reason}" for reason in dict.fromkeys(reasons))
        raise (NothingMatches if used else ValueError)(
            f"the network has no convolution or dense layer to prune{': ' if counts else ''}{counts}"
        )
    return Sparsified(tuple(layers), skipped)


def set_topology(layer: MaskedLayer, weight: np.ndarray, mask: np.ndarray) -> None:
    """Put a new weight and mask (arrays of the layer's shape) in place; the weight is made exactly 0 outside."""
    mask = np.ascontiguousarray(mask, np.bool_)
    weight = np.where(mask, weight, 0).astype(weight.dtype, copy=False)
    # Not set_data: in PyNative mode the optimizer's compiled parts would go on with the storage that it replaces.
    ops.assign(layer.weight, ms.Tensor(weight, layer.weight.dtype))
    ops.assign(layer.mask, ms.Tensor(mask))


def masked_gradient(mask: ms.Tensor, gradient: ms.Tensor) -> ms.Tensor:
    """The gradient where the mask is 1, exactly 0 elsewhere (also where it is not finite)."""
    return ops.select(mask, gradient, ops.zeros_like(gradient))


def _masked(cell_name: str, cell: nn.Cell) -> ms.Parameter:
    if hasattr(cell, "weight_mask"):
        _check_mask(cell_name, cell)
    else:
        _add_mask(cell)
        cell.__class__ = {nn.Conv2d: MaskedConv2d, nn.Dense: MaskedDense}.get(type(cell), type(cell))
    return cell.weight_mask


def _check_mask(cell_name: str, cell: nn.Cell) -> None:
    """Refuse a `weight_mask` that is not what pruning, checkpoints and exports have under this name."""
    mask, weight = cell.weight_mask, getattr(cell, "weight", None)
    if not (
        isinstance(mask, ms.Parameter)
        and mask.dtype == ms.bool_
        and isinstance(weight, ms.Parameter)
        and mask.shape == weight.shape
    ):
        what = f"{mask.dtype} of shape {mask.shape}" if isinstance(mask, ms.Tensor) else f"a {type(mask).__name__}"
        raise ValueError(
            f"{cell_name}.weight_mask is {what}, not a mask as pruning keeps it under this name, a bool "
            "Parameter of the weight's shape; call it otherwise"
        )


def _add_mask(cell: nn.Cell) -> None:
    cell.weight_mask = ms.Parameter(
        ms.Tensor(np.ones(cell.weight.shape, np.bool_)), name=f"{cell.weight.name}_mask", requires_grad=False
    )

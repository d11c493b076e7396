"""What MindSpore's ONNX exporter lacks, said in operators that it has.

The exporter (2.7 to 2.10) writes an operator for an operator of the compiled graph, and knows few: no
in-place addition, no unstacking, no error function, no hard swish. Here a network is made to compile without
them, and is left as it was: training keeps MindSpore's own operators, which are faster.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Optional

import mindspore as ms
from mindcv.models import vit
from mindspore import nn, ops
from mindspore.ops.composite.multitype_ops import add_impl

if TYPE_CHECKING:
    import onnx

# MindSpore and ONNX have the error function, only the exporter has not. So it is given another function of
# one argument, one that networks do not use, and that node's name is put right afterwards.
ERF_STAND_IN, ERF_EXPORTED_AS = ops.ACos, "Acos"


@contextmanager
def exportable(network: nn.Cell) -> Iterator[None]:
    """While the block runs, `network` compiles to operators that the ONNX exporter has, as far as known here.

    What is exported has to go through `restore_operators`.
    """
    classes = [(cell, type(cell)) for _, cell in network.cells_and_names() if _substitute(cell)]
    tensors = ("Tensor", "Tensor")
    in_place = next(function for types, function in add_impl.augassign_add.entries if tuple(map(str, types)) == tensors)
    try:
        for cell, _ in classes:
            cell.__class__ = _substitute(cell)
        # Graph mode compiles `out += identity` to an in-place addition.
        add_impl.augassign_add.register_fn(tensors, _add)
        yield
    finally:
        add_impl.augassign_add.register_fn(tensors, in_place)
        for cell, cell_class in classes:
            cell.__class__ = cell_class


def restore_operators(model: onnx.ModelProto) -> None:
    """Mend an `onnx.ModelProto`: stand-ins get the names of the operators that they stand for, transposed convolutions
    an output shape without batch and channels, and nodes their order, each behind those that it reads from.
    """
    for node in model.graph.node:
        if node.op_type == ERF_EXPORTED_AS:
            node.op_type = "Erf"
        for attribute in node.attribute:
            if node.op_type == "ConvTranspose" and attribute.name == "output_shape":
                del attribute.ints[:-2]
    maker = {name: i for i, node in enumerate(model.graph.node) for name in node.output}
    order = graphlib.TopologicalSorter(
        {i: [maker[name] for name in node.input if name in maker] for i, node in enumerate(model.graph.node)}
    )
    nodes = [model.graph.node[i] for i in order.static_order()]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _substitute(cell: nn.Cell) -> Optional[type[nn.Cell]]:
    """The class that a cell needs for the export, or None."""
    if type(cell) is nn.GELU and cell.approximate != "none":
        return None  # the approximation by tanh is exported
    return SUBSTITUTES.get(type(cell))


class _GELU(nn.GELU):
    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return 0.5 * x * (1 + ERF_STAND_IN()(x * 0.5**0.5))


class _HSigmoid(nn.HSigmoid):
    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return ops.relu6(x + 3) / 6


class _HSwish(nn.HSwish):
    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return x * ops.relu6(x + 3) / 6


class _Attention(vit.Attention):
    def construct(self, x: ms.Tensor) -> ms.Tensor:
        b, n, c = x.shape
        qkv = self.reshape(self.qkv(x), (b, n, 3, self.num_heads, self.head_dim))
        qkv = self.transpose(qkv, (2, 0, 3, 1, 4))
        shares = self.q_matmul_k(self.q_norm(qkv[0]), self.k_norm(qkv[1])) * self.scale
        out = self.attn_matmul_v(ops.softmax(shares, axis=-1), qkv[2])
        return self.proj(self.reshape(self.transpose(out, (0, 2, 1, 3)), (b, n, c)))


SUBSTITUTES = {nn.GELU: _GELU, nn.HSigmoid: _HSigmoid, nn.HSwish: _HSwish, vit.Attention: _Attention}


def _add(x: ms.Tensor, y: ms.Tensor) -> ms.Tensor:
    return ops.add(x, y)

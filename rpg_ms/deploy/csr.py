"""Sparse layers as SciPy matrices, for those who multiply by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from rpg_ms.cells import Sparsified


def csr_matrices(sparsified: Sparsified) -> dict[str, csr_matrix]:
    """The pruned layers' weights, of their dtype, as compressed sparse rows: `{layer name: csr_matrix}`.

    A matrix is `[C_out, C_in/groups * kh * kw]` for a convolution, so that it multiplies unfolded patches, and
    `[C_out, C_in]` for a dense layer: `matrix @ x` is what the layer computes before its bias. Of a transposed
    convolution it is the weight's first axis by all others, as MindSpore stores it.
    """
    return {
        layer.name: csr_matrix(layer.weight.asnumpy().reshape(layer.weight.shape[0], -1)) for layer in sparsified.layers
    }

"""Symmetric eigen-decompositions in parts, by LAPACK.

`scipy.linalg.eigh` transforms all eigenvectors back, though the rank term needs those of one side of its cut, and holds
Python's lock meanwhile, so that layers cannot be decomposed side by side. SciPy's documented C interface to the same
LAPACK (`scipy.linalg.cython_lapack`) offers the parts, and calls through ctypes release the lock.
"""
from __future__ import annotations

import ctypes
from functools import lru_cache

import numpy as np
from scipy.linalg import cython_lapack


class SymmetricEigen:
    """The eigenvalues of a symmetric matrix, and those of its eigenvectors that are asked for.

    Args:
        matrix: C-contiguous float32 or float64 array `[n, n]`; it is overwritten.

    Attributes:
        values: `[n]`, ascending.

    Raises:
        numpy.linalg.LinAlgError: it does not converge, or the values are not finite.
    """

    def __init__(self, matrix):
        self._prefix = {np.dtype(np.float32): "s", np.dtype(np.float64): "d"}[matrix.dtype]
        self._householder = matrix
        size, dtype = len(matrix), matrix.dtype
        self.values, off_diagonal, self._tau = (np.empty(size, dtype) for _ in range(3))
        # A = Q T Q^T with T tridiagonal; a symmetric array is the same in C's and Fortran's order.
        self._call("sytrd", b"L", size, matrix, size, self.values, off_diagonal, self._tau,
                   np.empty(64 * size, dtype), 64 * size)
        self._tridiagonal = np.empty((size, size), dtype)  # row i: eigenvector i of T
        work, integers = 1 + 4 * size + size * size, 3 + 5 * size
        self._call("stedc", b"I", size, self.values, off_diagonal, self._tridiagonal, size, np.empty(work, dtype), work,
                   np.empty(integers, np.int32), integers)
        if not np.isfinite(self.values).all():
            raise np.linalg.LinAlgError("eigenvalues are not finite")

    def vectors(self, first, last):
        """The eigenvectors of `values[first:last]`, the columns of an array `[n, last - first]`."""
        size, rows = len(self.values), self._tridiagonal[first:last].copy()
        if len(rows):
            work = 64 * len(rows)
            self._call("ormtr", b"L", b"L", b"N", size, len(rows), self._householder, size, self._tau, rows, size,
                       np.empty(work, rows.dtype), work)
        return rows.T

    def _call(self, name, *arguments):
        """Call a routine: integers by reference, arrays by address, then its `info`, which must be 0."""
        info = ctypes.c_int(0)
        pointers = [ctypes.byref(ctypes.c_int(a)) if isinstance(a, int) else a if isinstance(a, bytes) else a.ctypes.data
                    for a in arguments]
        _routine(self._prefix + name)(*pointers, ctypes.byref(info))
        if info.value != 0:
            raise np.linalg.LinAlgError(f"LAPACK's {name} did not converge (info {info.value})")


@lru_cache(maxsize=None)
def _routine(name):
    capsule = cython_lapack.__pyx_capi__[name]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    signature = api.PyCapsule_GetName(capsule)
    arguments = signature.count(b",") + 1  # all of them pointers
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(api.PyCapsule_GetPointer(capsule, signature))

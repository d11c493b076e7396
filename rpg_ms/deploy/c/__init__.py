"""A sparse network as C source without dependencies, which computes with its non-zeros only.

`graph` reads an ONNX graph, `lower` turns its operators into the few operations of `operations`, `plan` leaves out what
nothing reads and places buffers in one arena, `tables` writes what the kernels in `source/` read, `write` the files and
`compiled` runs them.
"""

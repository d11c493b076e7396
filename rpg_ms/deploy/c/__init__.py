"""A sparse network as C source without dependencies, which computes with its non-zeros only.

`graph` reads an ONNX graph, `operators` (with `lowering` and `builder`) turns it into the few operations of
`operations`, `plan` leaves out what nothing reads and places buffers in one arena, `tables` writes what the kernels in
`source/` read, `write` the files; `compiled` runs them, and `format` is the row of `rpg_ms.deploy.formats.FORMATS`.
"""

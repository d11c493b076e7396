#!/usr/bin/env python3
"""What sparsity is worth at inference: latency of exported ONNX files, against the same networks without their zeros.

    python scripts/benchmark_onnx.py FILE.onnx [FILE.onnx ...] [--seconds 5] [--threads N]

Every runtime that is installed runs every file and its dense twin, the same network with random values in the place of
the zeros, in turns. A line of JSON for each: milliseconds per batch (median), images per second, sparse / dense time,
and the largest difference of its outputs from the first runtime's. Outputs that differ by more than 1e-3 of the largest
end it with status 1. Runtimes: onnxruntime; deepsparse, which computes with non-zeros only (not developed any more
since June 2025; it needs onnx < 1.15, so an environment of its own: pip install deepsparse onnxruntime).
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rpg_ms.errors import RunStopped, UserError, front_door  # noqa: E402
from rpg_ms.files import user_path  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=user_path, nargs="+", metavar="FILE.onnx")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="for each file and runtime (default 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of a runtime (default: its own choice)")
    args = parser.parse_args()
    if not args.seconds > 0:
        raise UserError(f"--seconds: {args.seconds} is not > 0")
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads: {args.threads} is not at least 1")
    runtimes = {name: load for name, load in RUNTIMES.items() if installed(name)}
    if not runtimes:
        raise UserError("no runtime is installed: pip install onnxruntime")
    missing = [name for name in RUNTIMES if name not in runtimes]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        for file in args.files:
            measure(file, Path(folder), runtimes, args.seconds, args.threads)


def measure(file, folder, runtimes, seconds, threads):
    """Print a line for each runtime.

    Raises:
        UserError: the file is no ONNX network of one image input of fixed size.
        RunStopped: two runtimes do not agree.
    """
    import onnx

    try:
        model = onnx.load(file)
        shape = [d.dim_value or 1 for d in model.graph.input[0].type.tensor_type.shape.dim]
    except Exception as error:  # protobuf's own, and OSError
        raise UserError(f"{file}: is not an ONNX file: {error}") from None
    twin = folder / "dense.onnx"
    onnx.save(dense_twin(model), str(twin))
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    reference = None
    for name, load in runtimes.items():
        sparse, dense = load(file, shape[0], threads), load(str(twin), shape[0], threads)
        outputs = sparse(images)
        reference = outputs if reference is None else reference
        difference = float(np.abs(outputs - reference).max())
        times = {sparse: [], dense: []}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times[dense]) < 5:
            for run in times:
                started = time.perf_counter()
                run(images)
                times[run].append(time.perf_counter() - started)
        milliseconds = {run: 1000 * statistics.median(values) for run, values in times.items()}
        print(
            json.dumps(
                {
                    "file": str(file),
                    "runtime": name,
                    "batch": shape[0],
                    "sparse_ms": round(milliseconds[sparse], 3),
                    "dense_ms": round(milliseconds[dense], 3),
                    "sparse_images_per_s": round(1000 * shape[0] / milliseconds[sparse], 1),
                    "sparse_to_dense": round(milliseconds[sparse] / milliseconds[dense], 3),
                    "max_abs_difference": difference,
                }
            ),
            flush=True,
        )
        if not difference <= 1e-3 * np.abs(reference).max():
            raise RunStopped(
                f"{file}: the outputs of {name} differ by {difference:.3g} from those of {next(iter(runtimes))}"
            )


def dense_twin(model):
    """The network with random values of each weight's own size in the place of its zeros."""
    import onnx

    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    rng = np.random.default_rng(0)
    for tensor in twin.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim < 2 or array.dtype != np.float32 or array.all() or not array.any():
            continue
        values = rng.standard_normal(array.shape).astype(np.float32) * array.std()
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.where(array == 0, values, array), tensor.name))
    return twin


def installed(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def load_onnxruntime(file, batch, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def load_deepsparse(file, batch, threads):
    import deepsparse

    engine = deepsparse.compile_model(file, batch_size=batch, num_cores=threads)
    return lambda images: engine.run([images])[0]


RUNTIMES = {"onnxruntime": load_onnxruntime, "deepsparse": load_deepsparse}


if __name__ == "__main__":
    front_door(main)

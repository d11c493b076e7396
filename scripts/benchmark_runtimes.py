#!/usr/bin/env python3
"""What sparsity is worth at inference: the same ONNX file in onnxruntime, as C, in MNN and in deepsparse.

    python scripts/benchmark_runtimes.py FILE.onnx [FILE.onnx ...] [--sparsity S [S ...]] [--seconds 5] [--threads N]

FILE is what `export --file_format ONNX` wrote, with a batch of 1. Every runtime that is installed runs it, in turns,
one image at a time. With --sparsity, the weights of convolutions (but depthwise ones) and dense layers are pruned
first: in each, the largest stay, by the ERK allocation. That tells what a sparsity would be worth before anything is
trained.

A line of JSON for each: milliseconds of CPU time and of wall time for an image, their minima and medians, and how many
times faster than onnxruntime it is: by the least CPU time with one thread, which other programs on the machine disturb
least, by the least wall time with several. Outputs that differ by more than 1e-3 of the largest end it with status 1.

C is compiled by the machine's compiler. MNN: pip install MNN. deepsparse is not developed any more since June 2025 and
needs onnx < 1.15, so an environment of its own.
"""

import argparse
import ctypes
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rpg_ms.deploy.c import compiled  # noqa: E402
from rpg_ms.errors import RunStopped, UserError, front_door  # noqa: E402
from rpg_ms.files import user_path  # noqa: E402
from rpg_ms.pruning.allocation import erk_counts  # noqa: E402

CALLS = 4  # timed calls of a block, after one that is not


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=user_path, nargs="+", metavar="FILE.onnx")
    parser.add_argument("--sparsity", type=float, nargs="+", metavar="S", help="prune to these sparsities (0 to 1)")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="for each file and runtime (default 5)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of a runtime (default 1)")
    args = parser.parse_args()
    if not args.seconds > 0:
        raise UserError(f"--seconds: {args.seconds} is not > 0")
    if args.threads < 1:
        raise UserError(f"--threads: {args.threads} is not at least 1")
    if not all(0 <= sparsity < 1 for sparsity in args.sparsity or ()):
        raise UserError(f"--sparsity: {args.sparsity} is not at least 0 and below 1")
    with stdout_as_stderr():
        runtimes = {name: load for name, (needed, load) in RUNTIMES.items() if needed()}
    if "onnxruntime" not in runtimes:
        raise UserError("onnxruntime is not installed: pip install onnxruntime")
    missing = [name for name in RUNTIMES if name not in runtimes]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    if args.threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for file in args.files:
        for sparsity in args.sparsity or [None]:
            with tempfile.TemporaryDirectory() as folder:
                measure(file, sparsity, Path(folder), runtimes, args)


def measure(file, sparsity, folder, runtimes, args):
    """Print a line for each runtime.

    Raises:
        UserError: the file is no ONNX network of one image.
        RunStopped: two runtimes do not agree.
    """
    import onnx

    try:
        model = onnx.load(file)
        shape = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    except Exception as error:  # protobuf's own, and OSError
        raise UserError(f"{file}: is not an ONNX file: {error}") from None
    if not shape or shape[0] != 1 or 0 in shape:
        raise UserError(f"{file}: takes an input of shape {shape}, not one image")
    if sparsity is not None:
        prune(model, 1 - sparsity)
    path = folder / "net.onnx"
    onnx.save(model, str(path))
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    with stdout_as_stderr():
        runs = {name: load(path, images, args.threads) for name, load in runtimes.items()}
    reference = np.ravel(runs["onnxruntime"]())
    differences = {
        name: np.abs(np.ravel(run()) - reference).max() / np.abs(reference).max() for name, run in runs.items()
    }
    times = timed(runs, args.seconds)
    measured = "cpu_ms" if args.threads == 1 else "wall_ms"
    for name, figures in times.items():
        line = {
            "file": Path(file).name,
            "sparsity": sparsity,
            "runtime": name,
            "threads": args.threads,
            **figures,
            "times_faster": round(times["onnxruntime"][measured] / figures[measured], 2),
            "relative_difference": float(f"{differences[name]:.2g}"),
        }
        print(json.dumps(line), flush=True)
        if not differences[name] <= 1e-3:
            raise RunStopped(
                f"{file}: the outputs of {name} differ by {differences[name]:.3g} from those of onnxruntime"
            )


@contextmanager
def stdout_as_stderr():
    """MNN writes to the standard output what it does."""
    sys.stdout.flush()
    before = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


def timed(runs, seconds):
    """Milliseconds a call of each runtime: least and median CPU time, least and median wall time of a block."""
    cpu, wall = {name: [] for name in runs}, {name: [] for name in runs}
    end = time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < end or len(cpu["onnxruntime"]) < 5:
        for name, run in runs.items():
            run()
            started = time.process_time(), time.perf_counter()
            for _ in range(CALLS):
                run()
            cpu[name].append(1000 * (time.process_time() - started[0]) / CALLS)
            wall[name].append(1000 * (time.perf_counter() - started[1]) / CALLS)
    return {
        name: {
            f"{kind}_ms{suffix}": round(function(values[name]), 4)
            for kind, values in (("cpu", cpu), ("wall", wall))
            for suffix, function in (("", min), ("_median", statistics.median))
        }
        for name in runs
    }


def prune(model, density):
    """Keep the largest weights of each convolution and dense layer, as many as the ERK allocation gives it.

    What stays is scaled up so that activations neither vanish nor explode in a network that is not trained so.
    """
    from onnx import numpy_helper

    depthwise = {
        node.input[1]
        for node in model.graph.node
        if node.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in node.attribute)
    }
    tensors = [
        tensor for tensor in model.graph.initializer if len(tensor.dims) in (2, 4) and tensor.name not in depthwise
    ]
    weights = [numpy_helper.to_array(tensor) for tensor in tensors]
    for tensor, weight, count in zip(tensors, weights, erk_counts(weights, density)):
        kept = np.argpartition(np.abs(weight).ravel(), weight.size - count)[weight.size - count :]
        pruned = np.zeros(weight.size, np.float32)
        pruned[kept] = weight.ravel()[kept]
        norm = np.linalg.norm(pruned)
        pruned *= np.float32(np.linalg.norm(weight) / norm) if norm else np.float32(1)
        tensor.CopyFrom(numpy_helper.from_array(pruned.reshape(weight.shape), tensor.name))


# ----------------------------------------------------------------------------------------------------
# Runtimes: a function of a file, an image and threads returns a function without arguments
# ----------------------------------------------------------------------------------------------------


def installed(module):
    def find():
        try:
            __import__(module)
        except ImportError:
            return False
        return True

    return find


def load_onnxruntime(path, images, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: images})[0]


def load_c(path, images, threads):
    from rpg_ms.deploy.c.graph import read_graph
    from rpg_ms.deploy.c.lowering import Unsupported
    from rpg_ms.deploy.c.operators import lower
    from rpg_ms.deploy.c.plan import plan
    from rpg_ms.deploy.c.write import write_folder

    try:
        builder, output, _ = lower(read_graph(path), {})
    except Unsupported as error:
        raise UserError(f"{path.name}: there is no C for the operator {error}") from None
    folder, library = path.with_name("c"), path.with_name("c.so")
    write_folder(plan(builder, output), images.size, "float32", folder)
    compiled.build(folder, library, "-O3", "-march=native", *(["-fopenmp"] if threads > 1 else []))
    run = compiled.run(folder, library)
    if threads > 1:
        ctypes.CDLL(str(library)).omp_set_num_threads(threads)
    return lambda: run(images)


def load_mnn(path, images, threads):
    import _tools  # of MNN; its command mnnconvert installs a package by itself and reports its use, this does not
    import MNN

    converted = str(path.with_suffix(".mnn"))
    flags = ["-f", "ONNX", "--modelFile", str(path), "--MNNModel", converted, "--detectSparseSpeedUp"]
    _tools.mnnconvert(["mnnconvert", *flags])
    net = MNN.Interpreter(converted)
    session = net.createSession({"backend": "CPU", "precision": "high", "numThread": threads})
    given, layout = net.getSessionInput(session), MNN.Tensor_DimensionType_Caffe
    image = MNN.Tensor(images.shape, MNN.Halide_Type_Float, images, layout)

    def run():
        given.copyFrom(image)
        net.runSession(session)
        found = net.getSessionOutput(session)
        result = MNN.Tensor(found.getShape(), MNN.Halide_Type_Float, np.zeros(found.getShape(), np.float32), layout)
        found.copyToHostTensor(result)
        return np.array(result.getNumpyData())

    return run


def load_deepsparse(path, images, threads):
    import deepsparse

    engine = deepsparse.compile_model(str(path), batch_size=1, num_cores=threads)
    return lambda: engine.run([images])[0]


RUNTIMES = {
    "onnxruntime": (installed("onnxruntime"), load_onnxruntime),
    "C": (lambda: compiled.compiler() is not None, load_c),
    "MNN": (installed("MNN"), load_mnn),
    "deepsparse": (installed("deepsparse"), load_deepsparse),
}


if __name__ == "__main__":
    front_door(main)

"""What pruning costs, as ratios measured side by side in one run.

    python scripts/benchmark.py [NAME ...] [--results FOLDER]

Prints a line for every figure; with --results they are kept in FOLDER/results.json (figures that are not
measured this time stay). scripts/update_docs.py makes the table of docs/performance.md from results/speed/results.json.
The names, all of them by default:

    step      a masked training step, topology updates included, against the dense network's
    topology  one topology update of a ResNet-50: seconds and memory
    rank      the rank term of a ResNet-50 against the singular value decompositions it stands for
    pytorch   a training step against PyTorch's (left out where PyTorch is not installed)
    start     importing, compiling and the memory of the quick start

Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmark_rank import rank  # noqa: E402
from benchmark_steps import (  # noqa: E402
    UPDATE_EVERY,
    Figure,
    batch_of,
    dense_step,
    masked_step,
    peak_memory,
    reset_peak_memory,
    seconds,
    torch_step,
)

from rpg_ms.compare.results import environment  # noqa: E402
from rpg_ms.config import OneLineParser  # noqa: E402
from rpg_ms.errors import UserError, front_door  # noqa: E402
from rpg_ms.files import atomic_path, user_path  # noqa: E402


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--results", type=user_path, metavar="FOLDER", help="where results.json is kept")
    args = parser.parse_args()
    for name in args.names:
        if name not in BENCHMARKS:
            raise UserError(f"NAME: {name!r} is not one of {', '.join(BENCHMARKS)}")
    path = Path(args.results) / "results.json" if args.results else None
    for name in args.names or BENCHMARKS:
        figures = {}
        for key, english, chinese, value, aim in BENCHMARKS[name]():
            figures[key] = {"en": english, "cn": chinese, "value": value, "aim": aim}
            print(f"{english}: {value}" + (f" (aim: {aim})" if aim else ""), flush=True)
        if path:
            document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"benchmarks": {}}
            document["benchmarks"][name] = {
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "command": f"python scripts/benchmark.py {name}",
                "environment": environment(),
                "figures": figures,
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as new:
                new.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def step() -> Iterator[Figure]:
    """Masked against dense training steps, both compiled, same optimizer and batch."""
    for key, name, batch, size, rounds in (
        ("resnet20", "cifar_resnet20", 128, 32, 20),
        ("resnet50", "resnet50", 8, 224, 6),
    ):
        dense, masked = dense_step(name, size), masked_step(name, size)
        inputs = batch_of(batch, size)
        for _ in range(2):
            dense(*inputs).asnumpy(), masked(*inputs).asnumpy()
        ratios, dense_times, updates = [], [], []
        for _ in range(rounds):
            while (masked.step_number + 1) % UPDATE_EVERY == 0:
                masked(*inputs)
            dense_times.append(seconds(lambda: dense(*inputs).asnumpy()))
            ratios.append(seconds(lambda: masked(*inputs).asnumpy()) / dense_times[-1])
        for _ in range(3):  # the first compiles
            masked.step_number = UPDATE_EVERY - 1
            updates.append(seconds(lambda: masked(*inputs).asnumpy()))
            if masked.record is None:
                raise AssertionError("that was not a topology update")
        ratio = statistics.median(ratios)
        update = min(updates[1:]) / statistics.median(dense_times)
        what = f"{'CIFAR ResNet-20' if size == 32 else 'ResNet-50'}, {batch} × {size}²"
        yield (f"{key}_step", f"masked / dense step, {what}", f"掩码步 / 稠密步，{what}", round(ratio, 3), "≤ 1.03")
        yield (
            f"{key}_update",
            f"step with a topology update (rank term included) / dense step, {what}",
            f"含拓扑更新（及秩项）的步 / 稠密步，{what}",
            round(update, 2),
            None,
        )
        yield (
            f"{key}_both",
            f"the same, an update every {UPDATE_EVERY} steps, {what}",
            f"每 {UPDATE_EVERY} 步更新一次时的总体比值，{what}",
            round(((UPDATE_EVERY - 1) * ratio + update) / UPDATE_EVERY, 3),
            "≤ 1.05",
        )


def topology() -> Iterator[Figure]:
    """The host's part of an update: weights and gradients there already, masks and state back on the device."""
    masked = masked_step("resnet50", 224, classes=1000)
    weights = [layer.weight.asnumpy() for layer in masked.layers]
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(weight.shape, np.float32) for weight in weights]
    size = sum(weight.nbytes for weight in weights)
    times, extra = [], []
    from rpg_ms.cells.masked import set_topology

    dense = [rng.standard_normal(weight.shape, np.float32) for weight in weights]
    for update in (20, 40, 60, 80):
        for layer, weight in zip(masked.layers, dense):
            set_topology(layer, weight, np.ones(weight.shape, bool))
        before = reset_peak_memory()
        times.append(seconds(lambda: masked._update_topology(update * UPDATE_EVERY, gradients, None)))
        extra.append(peak_memory() - before)
    yield (
        "topology_seconds",
        "topology update of ResNet-50 (25.5 M weights), seconds",
        "ResNet-50（25.5 M 权重）一次拓扑更新，秒",
        round(min(times[1:]), 2),
        "< 1",
    )
    yield (
        "topology_memory",
        "its peak extra memory / the weights",
        "其额外内存峰值 / 权重",
        round(max(extra[1:]) / size, 2),
        "< 3",
    )


def pytorch() -> Iterator[Figure]:
    """A dense training step of CIFAR ResNet-20 in both frameworks, in turns."""
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed: left out", file=sys.stderr)
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    ours, inputs = dense_step("cifar_resnet20", 32), batch_of(128, 32)
    theirs = torch_step(torch, *(tensor.asnumpy() for tensor in inputs))
    times = {"ours": [], "theirs": []}
    for _ in range(4):  # the first warms up
        times["ours"].append(seconds(lambda: [ours(*inputs).asnumpy() for _ in range(8)]))
        times["theirs"].append(seconds(lambda: [theirs() for _ in range(8)]))
    yield (
        "torch",
        f"MindSpore's / PyTorch {torch.__version__.partition('+')[0]}'s images per second, training a "
        "dense CIFAR ResNet-20, 128 × 32²",
        f"MindSpore / PyTorch {torch.__version__.partition('+')[0]} 训练稠密 CIFAR ResNet-20 的每秒图像数，128 × 32²",
        round(min(times["theirs"]) / min(times["ours"]), 2),
        None,
    )


def start() -> Iterator[Figure]:
    """Start-up of the front doors against a bare `import mindspore`, a first step, and the memory of a training."""
    help_time = min(seconds(lambda: python("train.py", "--help")) for _ in range(3))
    bare = min(seconds(lambda: python("-c", "import mindspore")) for _ in range(3))
    label = "`train.py --help` / `import mindspore`"
    yield "start_help", label, label, round(help_time / bare, 2), None
    cells, inputs = (dense_step("cifar_resnet20", 32), masked_step("cifar_resnet20", 32)), batch_of(128, 32)
    first = [seconds(lambda: cell(*inputs).asnumpy()) for cell in cells]
    later = [min(seconds(lambda: cell(*inputs).asnumpy()) for _ in range(3)) for cell in cells]
    dense, masked = (one - other for one, other in zip(first, later))
    english = "compiling the masked / the dense step of CIFAR ResNet-20"
    yield "start_compile", english, "编译 CIFAR ResNet-20 的掩码步 / 稠密步", round(masked / dense, 2), None
    yield "start_compile_seconds", "compiling the masked step, seconds", "编译掩码步，秒", round(masked, 1), None
    program = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    with tempfile.TemporaryDirectory() as folder:
        training = ["train.py", "--config", "quickstart", "--set", "train.epochs=2", "--output_dir", f"{folder}/run"]
        peak = int(re.search(r"PEAK (\d+)", python("-c", program, sys.executable, *training))[1])
    english = "peak memory of the quick start's training, MB"
    yield "start_memory", english, "快速开始训练的内存峰值，MB", round(peak / 1024), None


def python(*arguments: str) -> str:
    """What a Python process prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout


BENCHMARKS = {"step": step, "topology": topology, "rank": rank, "pytorch": pytorch, "start": start}


if __name__ == "__main__":
    front_door(main)

#!/usr/bin/env python3
"""Draw how many times faster than onnxruntime each runtime is, by sparsity.

    python scripts/plot_runtimes.py RESULTS.jsonl FIGURE.png

RESULTS has the lines of benchmark_runtimes.py with --sparsity and one thread.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

STYLES = {"C": "-o", "MNN": "--s", "deepsparse": ":^"}


def main():
    if len(sys.argv) != 3:
        sys.exit(f"usage: {__doc__.splitlines()[2].strip()}")
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["sparsity"] is not None]  # the others were pruned before
    files = list(dict.fromkeys(line["file"] for line in lines))
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for color, file in zip(("tab:blue", "tab:orange", "tab:green", "tab:red"), files):
        for runtime, style in STYLES.items():
            points = [
                (1 / (1 - line["sparsity"]), line["times_faster"])
                for line in lines
                if (line["file"], line["runtime"], line["threads"]) == (file, runtime, 1)
            ]
            if points:
                name = Path(file).stem.replace("_", " ")
                axes.plot(*zip(*sorted(points)), style, color=color, markersize=4, label=f"{name}, {runtime}")
    axes.axhline(1, color="gray", linewidth=0.8)
    sparsities = sorted({line["sparsity"] for line in lines})
    axes.set(xscale="log", yscale="log", xlabel="sparsity (ERK), %", ylabel="times faster than onnxruntime, one core")
    axes.set_xticks([1 / (1 - s) for s in sparsities], [f"{100 * s:g}" for s in sparsities])
    axes.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    axes.minorticks_off()
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(sys.argv[2], dpi=120)


if __name__ == "__main__":
    main()

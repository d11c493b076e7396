"""Compare pruning methods: rpg-ms compare --config FILE --methods rpg gmp --densities 0.02 --seeds 0 1

Every method at every density with every seed is one run of `rpg-ms train` in a folder of its own below
--output_dir. Runs that are there are not run again, those that were cut off go on: the same command,
given again, does what is left. results.json, results.csv and results.md are written after every run,
the figures at the end.

The file's density schedule, allocation, alpha, lambda and delta are those of its own method; another method has
its published values, and its own calendar if it comes with one. --set and a variant's settings change both.

Choose settings on a validation split, never on the test images: --set data.validation=0.1.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rpg_ms.config import add_config_and_device
from rpg_ms.errors import RunStopped
from rpg_ms.files import user_path
from rpg_ms.pruning.methods import METHODS


def main(parser: argparse.ArgumentParser) -> None:
    """Run what is not finished of a comparison, and write its tables and figures."""
    args = parse(parser)

    from rpg_ms.compare import grid, results, running

    entries = [grid.parse_entry(text) for text in args.methods]
    planned = grid.plan(args.config, entries, args.densities, args.seeds, args.output_dir, args.set, args.device_target)
    folder = args.results or args.output_dir
    command = shlex.join(["rpg-ms", "compare", *sys.argv[1:]])

    def collected(failures: Mapping[Path, str]) -> dict[str, Any]:
        return results.collect(planned, failures, command, args.config, args.set)

    if args.dry_run:
        for run, line in zip(planned, collected({})["runs"]):
            print(f"{line['status']:8}  {run.name}: {run.folder}")
        return
    failures, stopped_by = running.run_missing(
        planned, args.output_dir, lambda failures: results.write(collected(failures), folder)
    )
    if stopped_by is not None:
        raise RunStopped(
            f"stopped by {stopped_by.name}; the table so far is {folder}/results.md; the same command goes on",
            128 + stopped_by,
        )
    for problem in results.draw(planned, folder):
        print(f"not in the figures: {problem}")
    print(results.table(collected(failures), "en"))
    if failures:
        raise RunStopped(
            f"{len(failures)} of {len(planned)} runs failed, see {folder}/results.md; the same command tries them again"
        )


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command's arguments."""
    add_config_and_device(parser)
    parser.add_argument(
        "--methods",
        required=True,
        nargs="+",
        metavar="METHOD",
        help=f"{', '.join(METHODS)}, or a variant of one under a label of its own: LABEL=METHOD,key=value,key=value",
    )
    parser.add_argument(
        "--densities",
        required=True,
        nargs="+",
        type=float,
        metavar="D",
        help="shares of the prunable weights that stay, fractions",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="default: 0")
    parser.add_argument(
        "--output_dir",
        type=user_path,
        default="runs/compare",
        metavar="DIR",
        help="folder of the runs' folders; default: runs/compare",
    )
    parser.add_argument(
        "--results", type=user_path, metavar="DIR", help="folder of tables and figures; default: --output_dir"
    )
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="a.b=value",
        help="set a key for all methods, the value in YAML; a variant's own settings win. "
        "data.validation=0.1 measures on a tenth of the training images, not the test images",
    )
    parser.add_argument("--dry_run", action="store_true", help="list the runs and what is there, and run nothing")
    return parser.parse_args()

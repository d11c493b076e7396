"""Report on training runs: rpg-ms report RUN_FOLDER [RUN_FOLDER ...] --output_dir FOLDER"""

from __future__ import annotations

import argparse
import json
import os

from rpg_ms.files import user_path


def main(parser: argparse.ArgumentParser) -> None:
    """Write report.html and its figures."""
    parser.add_argument(
        "runs", type=user_path, nargs="+", metavar="RUN_FOLDER", help="folder of a run, finished or not"
    )
    parser.add_argument(
        "--output_dir",
        type=user_path,
        metavar="FOLDER",
        help="where report.html and its figures go (default for one run: RUN_FOLDER/report)",
    )
    args = parser.parse_args()
    if len(args.runs) > 1 and args.output_dir is None:
        parser.error("--output_dir: required for a report on several runs")
    for i, run in enumerate(args.runs):
        if os.path.realpath(run) in map(os.path.realpath, args.runs[:i]):
            parser.error(f"RUN_FOLDER: {run} is given twice")

    import mindspore as ms

    from rpg_ms.report import load_run, write_report

    ms.set_device("CPU")  # an accelerator may be busy with the run itself
    path = write_report(
        [load_run(folder) for folder in args.runs], args.output_dir or os.path.join(args.runs[0], "report")
    )
    print(json.dumps({"report": str(path), "runs": len(args.runs)}))

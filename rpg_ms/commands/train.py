"""Train and prune a network: rpg-ms train --config quickstart --output_dir runs/mine"""

from __future__ import annotations

import argparse
import json
import os

from rpg_ms.config import add_shared_arguments, config_of
from rpg_ms.files import user_path


def main(parser: argparse.ArgumentParser) -> None:
    """Train a configuration to the end, or let a run go on."""
    args = parse(parser)
    config = config_of(args, **({} if args.resume in (None, "auto") else {"output_dir": args.resume}))

    from rpg_ms.tasks import create_task
    from rpg_ms.training import build, device, distributed
    from rpg_ms.training.loop import train
    from rpg_ms.training.run_folder import RunFolder
    from rpg_ms.training.session import Session

    target = device.set_up(config)
    world = distributed.join()
    task = create_task(config, world)
    if args.check_data:
        print(f"all {task.check_data()} images can be read", flush=True)
    network, sparsified = build.build_network(config, task, config.model.pretrained)
    world.broadcast(network)
    step, rates = build.build_train_step(config, task, network, sparsified.layers, target, world)
    folder = RunFolder(config, args.resume is not None, args.allow_changes, args.overwrite, world.first)
    if folder.summary() is None:
        build.compile_step(config, task, network, step)
    folder.open()
    summary = folder.summary()
    world.check_same(summary is not None, f"{config.output_dir}: finished (1) or not (0)")
    if summary is None:
        print(
            f"{config.model.name} on {config.data.name}: {len(sparsified.layers)} layers, "
            f"{sparsified.prunable} prunable weights, {len(rates)} steps on {world.size} x {target}",
            flush=True,
        )
        note = build.idle_rank_term(config, step)
        if note is not None:
            print(note, flush=True)
        summary = train(Session(config, task, network, sparsified, step, rates, folder, world))
    print(json.dumps(summary))


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command's arguments, refused where they contradict each other."""
    add_shared_arguments(parser)
    parser.add_argument(
        "--resume",
        type=user_path,
        metavar="RUN_FOLDER",
        help="let the run in this folder go on; auto: the run in the output folder if there is one, else start it",
    )
    parser.add_argument(
        "--allow_changes", action="store_true", help="resume with a configuration that changes the result"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in the output folder")
    parser.add_argument(
        "--check_data",
        action="store_true",
        help="read every image before training begins, and name all that cannot be read",
    )
    args = parser.parse_args()
    if args.resume and args.overwrite:
        parser.error("--resume and --overwrite contradict each other")
    if args.resume not in (None, "auto"):
        if args.output_dir is not None and os.path.realpath(args.resume) != os.path.realpath(args.output_dir):
            parser.error("--resume RUN_FOLDER and --output_dir name different folders; a run goes on where it is")
        if not os.path.isfile(os.path.join(args.resume, "config.yaml")):
            parser.error(f"--resume: {args.resume} is not the folder of a run: it has no config.yaml")
    return args

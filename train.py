#!/usr/bin/env python3
"""Train and prune a network: python train.py --config config/quickstart.yaml"""
import rpg_ms.interrupts  # noqa: F401  before all else: Ctrl-C ends also what is still being imported
import json
import os

from rpg_ms.config import OneLineParser, add_shared_arguments, load_config
from rpg_ms.errors import front_door
from rpg_ms.files import user_path


def main():
    parser = OneLineParser(description=__doc__)
    add_shared_arguments(parser)
    parser.add_argument("--resume", type=user_path, metavar="RUN_FOLDER",
                        help="let the run in this folder go on; auto: the run in the output folder if there is one, "
                        "else start it")
    parser.add_argument("--allow_changes", action="store_true",
                        help="resume with a configuration that changes the result")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in the output folder")
    parser.add_argument("--check_data", action="store_true",
                        help="read every image before training begins, and name all that cannot be read")
    args = parser.parse_args()
    if args.resume and args.overwrite:
        parser.error("--resume and --overwrite contradict each other")
    resume_folder = None if args.resume in (None, "auto") else args.resume
    if None not in (resume_folder, args.output_dir) \
            and os.path.realpath(resume_folder) != os.path.realpath(args.output_dir):
        parser.error("--resume RUN_FOLDER and --output_dir name different folders; a run goes on where it is")
    config = load_config(args.config, args.set, seed=args.seed, device_target=args.device_target,
                         output_dir=resume_folder or args.output_dir)
    if resume_folder is not None and not os.path.isfile(os.path.join(resume_folder, "config.yaml")):
        parser.error(f"--resume: {resume_folder} is not the folder of a run: it has no config.yaml")

    from rpg_ms.data.datasets import check_images
    from rpg_ms.tasks import Classification
    from rpg_ms.training import build, device, distributed
    from rpg_ms.training.loop import train
    from rpg_ms.training.run_folder import NoFolder, RunFolder, may_train

    target = device.set_up(config)
    ranks = distributed.join()
    task = Classification(config, ranks)
    if args.check_data:
        print(f"all {check_images(task.dataset, ranks.rank, ranks.size)} images can be read", flush=True)
    network, found = build.build_network(config, task, config.model.pretrained)
    ranks.broadcast(network)
    step, rates = build.build_train_step(config, task, network, found.layers, target, ranks)
    resume = args.resume is not None
    if may_train(config, resume, args.allow_changes, args.overwrite):
        build.compile_step(config, task, network, step)
    folder = RunFolder(config, resume, args.allow_changes, args.overwrite) if ranks.first \
        else NoFolder(config, resume, args.allow_changes)
    ranks.meet()  # the first rank has made the folder ready
    summary = folder.summary()
    ranks.check_same(summary is not None, f"{config.output_dir}: finished (1) or not (0)")
    if summary is None:
        print(f"{config.model.name} on {config.data.name}: {len(found.layers)} layers, {found.prunable} prunable "
              f"weights, {len(rates)} steps on {ranks.size} x {target}", flush=True)
        if step.rank_is_idle:
            print(f"rank.lambda: {config.rank.lambda_:g} changes nothing, as pruning.method={config.pruning.method} has "
                  "no update that takes up its gradient; rank.every=step lets the term drive the weights", flush=True)
        if step.rank_is_empty:
            print(f"rank.lambda: {config.rank.lambda_:g} changes nothing, as {config.model.name} has no convolution to "
                  "prune; rank.include_dense=true takes dense layers into the term", flush=True)
        summary = train(config, task, network, found, step, rates, folder, ranks)
    print(json.dumps(summary))


if __name__ == "__main__":
    front_door(main)

"""Evaluate a checkpoint: rpg-ms eval --config FILE --checkpoint_path CKPT"""

from __future__ import annotations

import argparse
import json

from rpg_ms.config import add_shared_arguments, load_config
from rpg_ms.files import user_path


def main(parser: argparse.ArgumentParser) -> None:
    """Print the figures of a checkpoint as one JSON line, last."""
    add_shared_arguments(parser)
    parser.add_argument(
        "--checkpoint_path", type=user_path, required=True, help="checkpoint of a training run, or a file of weights"
    )
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights (train.ema_decay)")
    args = parser.parse_args()
    config = load_config(
        args.config, args.set, seed=args.seed, device_target=args.device_target, output_dir=args.output_dir
    )

    from rpg_ms.tasks import create_task
    from rpg_ms.training import build, checkpoint, device, distributed

    device.set_up(config)
    world = distributed.join()
    task = create_task(config, world)
    network, sparsified = build.build_network(config, task)
    state = checkpoint.load_network(args.checkpoint_path, network, sparsified, args.ema)
    checkpoint.check_held_out(args.checkpoint_path, state, config)
    figures = task.evaluate(network)
    print(
        json.dumps(
            {
                **figures,
                "density": sparsified.density,
                "nonzero": sparsified.nonzero,
                "prunable": sparsified.prunable,
                "rank": sparsified.mean_rank(),
                "steps": state["step"],
                "seconds": state["seconds"],
            }
        )
    )

"""Evaluate a checkpoint: rpg-ms eval --config FILE --checkpoint_path CKPT"""

from __future__ import annotations

import argparse
import json

from rpg_ms.config import add_checkpoint_arguments, config_of


def main(parser: argparse.ArgumentParser) -> None:
    """Print the figures of a checkpoint as one JSON line, last."""
    add_checkpoint_arguments(parser)
    args = parser.parse_args()
    config = config_of(args)

    from rpg_ms.tasks import create_task
    from rpg_ms.training import build, checkpoint, device, distributed

    device.set_up(config)
    world = distributed.join()
    task = create_task(config, world)
    network, sparsified = build.build_network(config, task)
    state = checkpoint.load_network(args.checkpoint_path, network, sparsified, args.ema)
    checkpoint.check_held_out(args.checkpoint_path, state, config)
    figures = task.evaluate(network)
    trained = {"steps": state["step"], "seconds": state["seconds"]}
    print(json.dumps({**figures, **sparsified.counts(), "rank": sparsified.mean_rank(), **trained}))

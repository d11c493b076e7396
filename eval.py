#!/usr/bin/env python3
"""Evaluate a checkpoint: python eval.py --config FILE --checkpoint_path CKPT"""
import rpg_ms.interrupts  # noqa: F401  before all else: Ctrl-C ends also what is still being imported
import json

from rpg_ms.config import OneLineParser, add_shared_arguments, load_config
from rpg_ms.errors import front_door
from rpg_ms.files import user_path


def main():
    parser = OneLineParser(description=__doc__)
    add_shared_arguments(parser)
    parser.add_argument("--checkpoint_path", type=user_path, required=True,
                        help="checkpoint of a training run, or a file of weights")
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights (train.ema_decay)")
    args = parser.parse_args()
    config = load_config(args.config, args.set, seed=args.seed, device_target=args.device_target,
                         output_dir=args.output_dir)

    from rpg_ms.tasks import Classification
    from rpg_ms.training import build, checkpoint, device, distributed

    device.set_up(config)
    ranks = distributed.join()
    task = Classification(config, ranks)
    network, found = build.build_network(config, task)
    state = checkpoint.load_network(args.checkpoint_path, network, found, args.ema)
    checkpoint.check_held_out(args.checkpoint_path, state, config)
    figures = task.evaluate(network)
    print(json.dumps({**figures, "density": found.density, "nonzero": found.nonzero, "prunable": found.prunable,
                      "rank": found.rank, "steps": state["step"], "seconds": state["seconds"]}))


if __name__ == "__main__":
    front_door(main)

#!/usr/bin/env python3
"""Train and prune a network: python train.py --config config/quickstart.yaml"""
import json

from rpg_ms.config import OneLineParser, add_shared_arguments, load_config
from rpg_ms.errors import front_door


def main():
    parser = OneLineParser(description=__doc__)
    add_shared_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in the output folder")
    args = parser.parse_args()
    config = load_config(args.config, args.set, seed=args.seed, device_target=args.device_target,
                         output_dir=args.output_dir)

    from rpg_ms.tasks import Classification
    from rpg_ms.training import build, device
    from rpg_ms.training.loop import train
    from rpg_ms.training.run_folder import RunFolder

    target = device.set_up(config)
    task = Classification(config)
    network, found = build.build_network(config, task, config.model.pretrained)
    step, rates = build.build_train_step(config, task, network, found.layers, target)
    folder = RunFolder(config, args.overwrite)
    print(f"{config.model.name} on {config.data.name}: {len(found.layers)} layers, {found.prunable} prunable weights, "
          f"{len(rates)} steps on {target}")
    print(json.dumps(train(config, task, network, found, step, rates, folder)))


if __name__ == "__main__":
    front_door(main)

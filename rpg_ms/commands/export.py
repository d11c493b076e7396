"""Export a checkpoint: rpg-ms export --config FILE --checkpoint_path CKPT --file_format MINDIR --file_name OUT"""

from __future__ import annotations

import argparse
import json

from rpg_ms.config import add_checkpoint_arguments, config_of
from rpg_ms.deploy.formats import FORMATS, VALUE_TYPES, Options, check_options, file_path, takers
from rpg_ms.files import user_path


def main(parser: argparse.ArgumentParser) -> None:
    """Write a checkpoint in the form of FORMAT, verified, and print a JSON line on what was written."""
    args = parse(parser)
    options = Options(args.batch_size, args.dynamic_batch, args.normalize_input, args.softmax, args.value_type)
    check_options(args.file_format, options)
    path = file_path(args.file_format, args.file_name)
    config = config_of(args)

    from rpg_ms.deploy.export import export
    from rpg_ms.tasks import create_task
    from rpg_ms.training import build, checkpoint, device, distributed

    device.set_up(config)
    task = create_task(config, distributed.ALONE)
    network, sparsified = build.build_network(config, task, mixed_precision=False)
    state = checkpoint.load_network(args.checkpoint_path, network, sparsified, args.ema)
    checkpoint.check_held_out(args.checkpoint_path, state, config)
    if FORMATS[args.file_format].computes or args.value_type in ("float16", "int8"):  # it is evaluated
        task.compile_evaluation(network)
    trained = {"step": state["step"], "seconds": state["seconds"]}
    print(json.dumps(export(network, sparsified, task, args.file_format, path, trained=trained, **vars(options))))


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command's arguments."""
    add_checkpoint_arguments(parser)
    parser.add_argument("--file_format", choices=tuple(FORMATS), default="MINDIR")
    parser.add_argument(
        "--file_name", type=user_path, required=True, help="file to write; the extension may be left out"
    )
    parser.add_argument(
        "--batch_size", type=int, default=1, help=f"batch of the exported network (default 1; {takers('batch_size')})"
    )
    parser.add_argument(
        "--value_type",
        choices=VALUE_TYPES,
        help=f"how the pruned layers' weights are kept (default float32, exact; {takers('value_type')})",
    )
    parser.add_argument(
        "--dynamic_batch", action="store_true", help=f"export for any batch size ({takers('dynamic_batch')})"
    )
    parser.add_argument(
        "--normalize_input",
        action="store_true",
        help="the exported network takes pixels, 0 to 255, float32, and normalises them itself "
        f"({takers('normalize_input')})",
    )
    parser.add_argument(
        "--softmax",
        action="store_true",
        help=f"the exported network returns probabilities in the place of logits ({takers('softmax')})",
    )
    return parser.parse_args()

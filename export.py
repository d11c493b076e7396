#!/usr/bin/env python3
"""Export a checkpoint: python export.py --config FILE --checkpoint_path CKPT --file_format MINDIR --file_name OUT"""
import rpg_ms.interrupts  # noqa: F401  before all else: Ctrl-C ends also what is still being imported
import json
import os

from rpg_ms.config import OneLineParser, add_shared_arguments, load_config
from rpg_ms.errors import front_door
from rpg_ms.files import user_path


def main():
    parser = OneLineParser(description=__doc__)
    add_shared_arguments(parser)
    parser.add_argument("--checkpoint_path", type=user_path, required=True,
                        help="checkpoint of a training run, or a file of weights")
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights (train.ema_decay)")
    parser.add_argument("--file_format", choices=("MINDIR", "ONNX", "AIR", "PACKED"), default="MINDIR")
    parser.add_argument("--file_name", type=user_path, required=True,
                        help="file to write; the extension may be left out")
    parser.add_argument("--batch_size", type=int, default=1, help="batch of the exported network (default 1)")
    parser.add_argument("--value_type", choices=("float32", "float16", "int8"),
                        help="how PACKED keeps the pruned layers' weights (default float32, exact)")
    parser.add_argument("--dynamic_batch", action="store_true", help="export for any batch size (MINDIR, ONNX)")
    parser.add_argument("--normalize_input", action="store_true",
                        help="the exported network takes pixels, 0 to 255, float32, and normalises them itself")
    parser.add_argument("--softmax", action="store_true",
                        help="the exported network returns probabilities in the place of logits")
    parser.add_argument("--compact", action="store_true",
                        help="leave out the channels that the zeros made dead (ONNX)")
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error(f"--batch_size: {args.batch_size} is not at least 1")
    if not os.path.basename(args.file_name):
        parser.error(f"--file_name: {args.file_name!r} names a folder, wanted a file in it")
    if args.value_type and args.file_format != "PACKED":
        parser.error(f"--value_type: for PACKED only, not for {args.file_format}")
    if args.compact and args.file_format != "ONNX":
        parser.error(f"--compact: for ONNX only, not for {args.file_format}")
    if args.file_format == "PACKED" and (args.batch_size != 1 or args.dynamic_batch or args.normalize_input
                                         or args.softmax):
        parser.error("--batch_size, --dynamic_batch, --normalize_input, --softmax: not for PACKED, which holds weights")
    config = load_config(args.config, args.set, seed=args.seed, device_target=args.device_target,
                         output_dir=args.output_dir)

    from rpg_ms.deploy.export import export
    from rpg_ms.deploy.packed import export_packed
    from rpg_ms.tasks import Classification
    from rpg_ms.training import build, checkpoint, device, distributed

    device.set_up(config)
    task = Classification(config, distributed.ALONE)
    network, found = build.build_network(config, task, mixed_precision=False)
    state = checkpoint.load_network(args.checkpoint_path, network, found, args.ema)
    checkpoint.check_held_out(args.checkpoint_path, state, config)
    if args.file_format != "PACKED" or args.value_type in ("float16", "int8"):  # it is evaluated
        task.compile_evaluation(network)
    if args.file_format == "PACKED":
        about = {"model": config.model.name, "num_classes": task.classes, "input_shape": task.input_shape,
                 "step": state["step"], "seconds": state["seconds"]}
        report = export_packed(network, found, task, args.file_name, args.value_type or "float32", about)
    else:
        report = export(network, found, task, args.file_format, args.file_name, args.batch_size, args.dynamic_batch,
                        args.normalize_input, args.softmax, args.compact)
    print(json.dumps(report))


if __name__ == "__main__":
    front_door(main)

"""Convert weights: rpg-ms convert --model resnet50 --from resnet50.pth --to resnet50.ckpt

Reads MindSpore checkpoints, PyTorch's files and safetensors. What is written follows from the name: .ckpt for
MindSpore, .safetensors for PyTorch (torch_model.load_state_dict(safetensors.torch.load_file(FILE)))."""

from __future__ import annotations

import argparse
import json

from rpg_ms.files import user_path


def main(parser: argparse.ArgumentParser) -> None:
    """Read a file of weights into a network and write it in the other format."""
    args = parse(parser)

    from rpg_ms.cells import sparsify
    from rpg_ms.models import create_model
    from rpg_ms.models.detection import PREFIX, DetectionSettings, create_detector
    from rpg_ms.weights import load_weights, write_weights

    if args.model.startswith(PREFIX):
        settings = DetectionSettings(masks=not args.no_masks)
        network = create_detector(args.model, args.num_classes, args.image_size, args.width, settings)
    else:
        network = create_model(args.model, args.num_classes, args.in_channels, args.image_size, args.width)
    sparsified = sparsify(network)
    load_weights(args.source, network, sparsified, args.allow, args.entry, args.prefix, "--{}")
    write_weights(args.target, network)
    print(json.dumps({"file": args.target, "model": args.model, **sparsified.counts()}))


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command's arguments."""
    parser.add_argument("--model", required=True, help="network, as model.name in a configuration")
    parser.add_argument("--from", dest="source", type=user_path, required=True, help="file to read")
    parser.add_argument(
        "--to", dest="target", type=user_path, required=True, help="file to write, .ckpt or .safetensors"
    )
    parser.add_argument(
        "--num_classes", type=int, default=1000, help="width of the classifier, of a detector with the background"
    )
    parser.add_argument("--in_channels", type=int, default=3, help="channels of the images (default 3)")
    parser.add_argument(
        "--image_size", type=int, default=224, help="size of the images, where it matters (default 224)"
    )
    parser.add_argument("--width", type=float, default=1.0, help="factor on the channels of a CIFAR ResNet")
    parser.add_argument("--no_masks", action="store_true", help="a detector predicts boxes alone, as Faster R-CNN")
    parser.add_argument(
        "--entry",
        help="which entry of a PyTorch checkpoint, a.b for one in another (default: the averaged weights, if any)",
    )
    parser.add_argument("--prefix", help="take only the names with this prefix (default: all; a prefix is found)")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PATTERN",
        help="names that may be missing, unused or of another shape; may be repeated",
    )
    args = parser.parse_args()
    for name in ("num_classes", "in_channels", "image_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: {getattr(args, name)} is not at least 1")
    if not 0 < args.width <= 64:
        parser.error(f"--width: {args.width} is not in (0, 64]")
    return args

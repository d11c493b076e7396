"""Predict for pictures of one's own: rpg-ms predict --config FILE --checkpoint_path CKPT IMAGES... --output FOLDER

IMAGES are image files, or folders of them. FOLDER gets predictions.json and each picture with what was predicted drawn
on it. The dataset is not needed; where it is there, it tells the classes' names."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rpg_ms.config import add_shared_arguments, load_config
from rpg_ms.errors import UserError
from rpg_ms.files import UNFINISHED, user_path

RESULT = "predictions.json"


def main(parser: argparse.ArgumentParser) -> None:
    """Write the predictions and the pictures, and print a JSON line, last."""
    add_shared_arguments(parser)
    parser.add_argument("images", nargs="+", type=user_path, metavar="IMAGES", help="image files, or folders of them")
    parser.add_argument(
        "--checkpoint_path", type=user_path, required=True, help="checkpoint of a training run, or a file of weights"
    )
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights (train.ema_decay)")
    parser.add_argument(
        "--output", type=user_path, required=True, metavar="FOLDER", help="where predictions and pictures go"
    )
    args = parser.parse_args()
    config = load_config(
        args.config, args.set, seed=args.seed, device_target=args.device_target, output_dir=args.output_dir
    )
    files = image_files(args.images)
    earlier = earlier_files(Path(args.output))

    from tqdm import tqdm

    from rpg_ms.data.class_folders import read_image
    from rpg_ms.tasks import create_task
    from rpg_ms.training import build, checkpoint, device
    from rpg_ms.training.distributed import ALONE

    for file in files:  # all of them, before the first one takes its time
        read_image(file, file)
    device.set_up(config)
    task = create_task(config, ALONE, weights=args.checkpoint_path)
    network, sparsified = build.build_network(config, task)
    checkpoint.load_network(args.checkpoint_path, network, sparsified, args.ema)
    predictions = []
    os.makedirs(args.output, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=args.output) as folder:
        for file, name in zip(tqdm(files, unit="image", disable=None), picture_names(files)):
            image = read_image(file, file)
            prediction = task.predict(network, image)
            task.draw(image, prediction).save(os.path.join(folder, name))
            predictions.append(
                {"file": file, "picture": name, "width": image.width, "height": image.height, **prediction}
            )
        document = {**task.about(), "checkpoint": args.checkpoint_path, "images": predictions}
        Path(folder, RESULT).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        for name in earlier:
            Path(args.output, name).unlink(missing_ok=True)
        for name in sorted(os.listdir(folder)):
            os.replace(os.path.join(folder, name), os.path.join(args.output, name))
    print(json.dumps({"predictions": os.path.join(args.output, RESULT), "images": len(files)}))


def image_files(given: Sequence[str]) -> list[str]:
    """The files given, and the images in the folders given, by name.

    Raises:
        UserError: a file or folder that is not there, or a folder without images.
    """
    from rpg_ms.data.class_folders import SUFFIXES, images_below

    files = []
    for path in given:
        if os.path.isdir(path):
            found = images_below(Path(path))
            if not found:
                raise UserError(f"IMAGES: {path} has no images (files ending in {', '.join(SUFFIXES)})")
            files += found
        elif os.path.exists(path):
            files.append(path)
        else:
            raise UserError(f"IMAGES: {path}: no such file or folder")
    return files


def picture_names(files: Sequence[str]) -> list[str]:
    """A file name for each picture: the image's, with a number where several images have the same."""
    names: list[str] = []
    taken = set()
    for file in files:
        stem, number = Path(file).stem, 1
        name = f"{stem}.png"
        while name in taken:
            number += 1
            name = f"{stem}-{number}.png"
        taken.add(name)
        names.append(name)
    return names


def earlier_files(folder: Path) -> list[str]:
    """What an earlier prediction left in the output folder, which may be replaced.

    Raises:
        UserError: the folder holds something else, or cannot be read.
    """
    try:
        there = {name for name in os.listdir(folder) if not name.startswith(UNFINISHED)}
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"--output: {folder}: {error.strerror}") from None
    earlier = {RESULT}
    if RESULT in there:
        try:
            images = json.loads((folder / RESULT).read_bytes())["images"]
            earlier |= {os.path.basename(image["picture"]) for image in images}
        except (OSError, ValueError, TypeError, KeyError):
            raise UserError(f"--output: {folder / RESULT} is not of an earlier prediction; choose another") from None
    foreign = sorted(there - earlier)
    if foreign:
        raise UserError(f"--output: {folder} holds {foreign[0]}, which is not of an earlier prediction; choose another")
    return sorted(earlier)

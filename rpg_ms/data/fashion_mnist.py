"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747), in full from a folder or the shipped subset."""

from __future__ import annotations

import gzip
import lzma
import zlib
from pathlib import Path
from typing import Optional

import numpy as np

from rpg_ms.errors import UserError

CLASSES = ("t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SUBSET = Path(__file__).with_suffix("")  # the folder beside this file
IDX_FILES = {  # part -> (images, labels), the names the files carry in the original release
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def load(root: Optional[str], part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (uint8 `[n, 28, 28]`) and labels (int32 `[n]`, indices into `CLASSES`) of `part`: "train" or "test".

    `root` is a folder with the four idx files of the original release, gzipped or not (60,000 train and
    10,000 test images); None stands for the subset shipped with the package (12,000 and 4,000).

    Raises:
        UserError: a file is missing, damaged or not of Fashion-MNIST.
    """
    if root is None:
        images_file, labels_file = (SUBSET / f"{name}.xz" for name in IDX_FILES[part])
    else:
        found = _idx_files(Path(root))
        images_file, labels_file = (found[name] for name in IDX_FILES[part])
    images, labels = _read_idx(images_file), _read_idx(labels_file)
    if images.shape[1:] != (28, 28):
        raise UserError(f"{images_file}: an array of shape {images.shape}, not images of 28 x 28 pixels")
    if not len(images):
        raise UserError(f"{images_file}: holds no images")
    if labels.shape != images.shape[:1]:
        raise UserError(f"{labels_file}: has shape {labels.shape} for {len(images)} images in {images_file.name}")
    if labels.max() >= len(CLASSES):
        raise UserError(f"{labels_file}: label {labels.max()} is not in 0 to {len(CLASSES) - 1}")
    if root is None:
        # The shipped images are stored column by column, which xz packs 4 % smaller.
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    return images, labels.astype(np.int32)


def _idx_files(root: Path) -> dict[str, Path]:
    """Path by name of the four files in `root`; all are needed, so that a run fails at its start."""
    names = [name for pair in IDX_FILES.values() for name in pair]
    candidates = [root / f"{name}{suffix}" for name in names for suffix in ("", ".gz")]
    found = {file.name.replace(".gz", ""): file for file in candidates if file.is_file()}
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"data.root: {root} lacks {', '.join(f'{name}.gz' for name in missing)} (or uncompressed); get them from "
            "https://github.com/zalandoresearch/fashion-mnist or the Debian package dataset-fashion-mnist, or leave "
            "data.root out to use the subset shipped with the package"
        )
    return found


def _read_idx(file: Path) -> np.ndarray:
    """The array in an idx file: the bytes 0, 0, 8 (for uint8), how many sizes, these as big-endian uint32, data."""
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix, open)
    try:
        with opener(file, "rb") as stream:
            content = stream.read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    start = 4 + 4 * content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    if start == 0 or len(content) < start:
        raise UserError(f"{file}: not an idx file of bytes")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", content[3], offset=4))
    expected = int(np.prod(shape, dtype=object))
    if len(content) - start != expected:
        raise UserError(f"{file}: damaged: {len(content) - start} bytes of data, its header says {expected}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)

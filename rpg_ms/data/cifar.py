"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in their binary layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np

from rpg_ms.errors import UserError

PIXELS = 3 * 32 * 32  # one image: the red, green and blue plane, row by row


@dataclass(frozen=True)
class Layout:
    """How one of the two datasets lies on disk: records of label bytes, of which the last is the class, and pixels."""

    classes: int
    label_bytes: int
    folder: str
    archive: str
    files: dict[str, tuple[str, ...]]  # part -> file names
    names: tuple[str, ...] = ()  # of the classes


CIFAR10 = Layout(
    10,
    1,
    "cifar-10-batches-bin",
    "cifar-10-binary.tar.gz",
    {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
CIFAR100 = Layout(
    100, 2, "cifar-100-binary", "cifar-100-binary.tar.gz", {"train": ("train.bin",), "test": ("test.bin",)}
)


def load(layout: Layout, root: Optional[str], part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (uint8 `[n, 32, 32, 3]`, RGB) and labels (int32 `[n]`; of CIFAR-100 the fine ones) of a part.

    Args:
        layout: `CIFAR10` or `CIFAR100`.
        root: the folder with the files, or the one that has the archive's folder in it. All files of both parts have
            to be there, so that a run fails at its start or not at all.
        part: "train" or "test".

    Raises:
        UserError: a file is missing, damaged or of another dataset.
    """
    names = [name for part in layout.files.values() for name in part]
    advice = f"unpack {layout.archive} from https://www.cs.toronto.edu/~kriz/cifar.html"
    if root is None:
        raise UserError(f"data.root: not set; it is the folder with {', '.join(names)}: {advice}")
    folder = Path(root) / layout.folder if (Path(root) / layout.folder).is_dir() else Path(root)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"data.root: {folder} lacks {', '.join(missing)}: {advice}")
    records = np.concatenate([_read(layout, folder / name) for name in layout.files[part]])
    images = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, layout.label_bytes - 1].astype(np.int32)


def _read(layout: Layout, file: Path) -> np.ndarray:
    """The records of one file, uint8 `[n, label bytes + PIXELS]`."""
    try:
        content = np.fromfile(file, np.uint8)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    size = layout.label_bytes + PIXELS
    if not content.size or content.size % size:
        raise UserError(f"{file}: damaged: {content.size} bytes are not a multiple of {size}, the size of a record")
    records = content.reshape(-1, size)
    label = records[:, layout.label_bytes - 1].max()
    if label >= layout.classes:
        raise UserError(f"{file}: label {label} is not in 0 to {layout.classes - 1}")
    return records

"""Images in MindRecord files: `root/train.mindrecord*` and `root/val.mindrecord*`, each beside its index `*.db`.

A record has `image` (bytes: a whole JPEG, PNG ... file) and `label` (int32 or int64: the class, from 0).
"""

from __future__ import annotations

import io
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

import mindspore.dataset as ds
import numpy as np
from mindspore.mindrecord import FileReader, FileWriter

from rpg_ms.data import class_folders
from rpg_ms.errors import UserError, one_line

if TYPE_CHECKING:
    from PIL import Image

SCHEMA = {"image": {"type": "bytes"}, "label": {"type": "int32"}}
PARTS = ("train", "val")


class MindRecord:
    """The records of one part, in random access: call it with an index for a PIL image.

    `labels` is an int32 array `[n]`, `files` the files' names.

    Raises:
        UserError: files that are missing, damaged or of another schema.
    """

    def __init__(self, root: Optional[str], part: str) -> None:
        if root is None:
            raise UserError(
                "data.root: not set; it is the folder with train.mindrecord* and val.mindrecord*, such as "
                "scripts/make_mindrecord.py writes"
            )
        files = map(str, Path(root).glob(f"{part}.mindrecord*"))
        self.files = sorted(file for file in files if re.fullmatch(r"\d*", file.rpartition(".mindrecord")[2]))
        if not self.files:
            raise UserError(
                f"data.root: {root} has no {part}.mindrecord; scripts/make_mindrecord.py writes one from class folders"
            )
        for file in self.files:
            if not Path(f"{file}.db").is_file():
                raise UserError(f"data.root: {file} lacks its index {file}.db")
        self.labels = self._read_labels()
        self._process = self._records = None
        self._one_at_a_time = threading.Lock()

    def __call__(self, i: int) -> Image.Image:
        with self._one_at_a_time:
            # Each process opens the files itself: after a fork they would share one position in each file.
            if self._process != os.getpid():
                self._records = ds.MindDataset(self.files, ["image"], num_parallel_workers=1, shuffle=False)
                self._process = os.getpid()
            try:
                content = self._records[i][0].tobytes()
            except RuntimeError as error:
                raise UserError(f"{self.files[0]}: record {i}: cannot be read: {_reason(error)}") from None
        return class_folders.read_image(io.BytesIO(content), f"{self.files[0]}: record {i}")

    def _read_labels(self) -> np.ndarray:
        try:
            columns = FileReader(self.files[0]).schema()
            if not {"image", "label"} <= set(columns):
                raise UserError(f"{self.files[0]}: has {', '.join(columns)} a record, not image and label")
            labels = ds.MindDataset(self.files, ["label"], num_parallel_workers=1, shuffle=False).batch(4096)
            batches = [batch[0] for batch in labels.create_tuple_iterator(num_epochs=1, output_numpy=True)]
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"{self.files[0]}: not a MindRecord file: {_reason(error)}") from None
        if not batches:
            raise UserError(f"{self.files[0]}: no records")
        labels = np.concatenate(batches)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise UserError(f"{self.files[0]}: label is not one integer >= 0 a record")
        return labels.astype(np.int32)


def write_class_folders(root: str, output: Union[str, os.PathLike], shards: int = 1) -> dict[str, int]:
    """Write class folders (`rpg_ms.data.class_folders`) as MindRecord files; images are copied byte by byte.

    Args:
        root: folder with `train/CLASS/*` and `val/CLASS/*`; classes are numbered in the order of their names.
        output: folder to write to, made if it is missing.
        shards: files for each part.

    Returns `{part: images written}`; raises a UserError as reading class folders does, for an unreadable image, and if
    `output` has such files already.
    """
    output = Path(output)
    listings = dict(zip(PARTS, class_folders.load(root)))
    present = sorted(file.name for part in PARTS for file in output.glob(f"{part}.mindrecord*"))
    if present:
        raise UserError(f"{output} already has {present[0]}; choose another folder, or remove it")
    output.mkdir(parents=True, exist_ok=True)
    try:
        for part, listing in listings.items():
            _write(output / f"{part}.mindrecord", listing, shards)
    except BaseException as error:
        for part in PARTS:  # the first part alone is good for nothing, and in the way of another try
            for file in output.glob(f"{part}.mindrecord*"):
                file.unlink()
        if isinstance(error, RuntimeError):
            raise UserError(f"{output}: cannot be written: {_reason(error)}") from None
        raise
    return {part: len(listing.files) for part, listing in listings.items()}


def _write(file: Path, listing: class_folders.Listing, shards: int) -> None:
    writer = FileWriter(str(file), shard_num=shards)
    writer.add_schema(SCHEMA, f"images of {len(listing.classes)} classes")
    for image, label in zip(listing.files, listing.labels):
        path = os.fsdecode(image)
        class_folders.read_image(path, path)  # better now than in the middle of a training run
        writer.write_raw_data([{"image": Path(path).read_bytes(), "label": int(label)}])
    writer.commit()


def _reason(error: Exception) -> str:
    """What MindSpore's error says, without the frame around it and the C++ call stack."""
    found = re.search(r"^\[ERROR\] (.*)", str(error), re.MULTILINE)
    return one_line(found.group(1) if found else str(error))[:200]

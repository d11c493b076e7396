import os
import subprocess
import sys

import numpy as np
import pytest
from mindspore.mindrecord import FileWriter

import image_files
from conftest import PROJECT
from rpg_ms.config import DataConfig
from rpg_ms.data.datasets import load_dataset
from rpg_ms.data.mindrecord import write_class_folders
from rpg_ms.data.pipeline import TrainSamples, batches
from rpg_ms.errors import UserError


def load(root, name="mindrecord", **keys):
    return load_dataset(DataConfig(name=name, root=str(root), image_size=16, **keys), 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return image_files.class_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def records(folders, tmp_path):
    write_class_folders(folders, tmp_path)
    return tmp_path


@pytest.mark.parametrize("shards", [1, 3, 12])
def test_the_same_images_and_labels_as_the_class_folders(folders, tmp_path, shards):
    assert write_class_folders(folders, tmp_path / "out", shards) == {"train": 18, "val": 6}
    files, records = load(folders, "imagenet"), load(tmp_path / "out")
    assert records.classes == 3
    contents = lambda images: sorted((images.image(i).tobytes(), int(images.labels[i])) for i in range(len(images)))
    assert contents(records.train) == contents(files.train) and contents(records.test) == contents(files.test)
    again = [records.train.image(i).tobytes() for i in (11, 3, 11)]
    assert again[0] == again[2] != again[1]


def test_worker_processes_read_what_this_one_reads(records):
    dataset = load(records)
    dataset.train.image(0)  # opens the files here before the workers are forked
    samples = TrainSamples(dataset.train, dataset.train_transform, 6, 1, 0, 9)
    wanted, found = (
        [tuple(array.asnumpy() for array in batch.values()) for batch in batches(samples, 6, workers)]
        for workers in (1, 2)
    )
    assert len(wanted) == len(found) == 9
    assert all(np.array_equal(a, b) for one, other in zip(wanted, found) for a, b in zip(one, other))


def test_the_script(folders, tmp_path):
    run = lambda *arguments: subprocess.run(
        [sys.executable, str(PROJECT / "scripts/make_mindrecord.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    result = run(folders, tmp_path, "--shards", 2)
    assert result.returncode == 0 and result.stdout == "train: 18 images\nval: 6 images\n", result.stderr
    assert len(load(tmp_path).train) == 18
    result = run(folders, tmp_path)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "already has train.mindrecord0" in result.stderr


def test_a_full_disk_is_an_error_of_one_line(folders, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("Exception thrown\n[ERROR] Failed to write, no space left\n---\nC++ call stack")

    monkeypatch.setattr(FileWriter, "commit", full)
    with pytest.raises(UserError, match="out: cannot be written: Failed to write, no space left$"):
        write_class_folders(folders, tmp_path / "out")


def test_a_failed_conversion_is_not_in_the_way_of_the_next(tmp_path):
    root = image_files.class_folders(tmp_path / "folders")
    image = next((root / "val").rglob("*.JPEG"))
    content = image.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(UserError, match=image.name):
        write_class_folders(root, tmp_path / "out", shards=2)
    assert not list((tmp_path / "out").iterdir())
    image.write_bytes(content)
    assert write_class_folders(root, tmp_path / "out", shards=2) == {"train": 18, "val": 6}
    assert len(load(tmp_path / "out").train) == 18


@pytest.mark.parametrize(
    "damage, words",
    [
        ("none", ["data.root", "no train.mindrecord", "make_mindrecord.py"]),
        ("no index", ["train.mindrecord lacks its index"]),
        ("not one", ["train.mindrecord: not a MindRecord file"]),
        ("schema", ["train.mindrecord: has data, label a record"]),
        ("no root", ["data.root: not set", "train.mindrecord"]),
        ("image", ["train.mindrecord: record 0: not a readable image"]),
    ],
)
def test_what_is_wrong_with_the_files_is_named(records, damage, words):
    train = records / "train.mindrecord"
    if damage in ("none", "schema", "image"):
        train.unlink()
        (records / "train.mindrecord.db").unlink()
    if damage in ("schema", "image"):
        writer = FileWriter(str(train))
        column = "image" if damage == "image" else "data"
        writer.add_schema({column: {"type": "bytes"}, "label": {"type": "int32"}}, "")
        writer.write_raw_data([{column: b"no image", "label": 2}])
        writer.commit()
    elif damage == "no index":
        (records / "train.mindrecord.db").unlink()
    elif damage == "not one":
        train.write_bytes(b"x" * 5000)
    with pytest.raises(UserError) as error:
        root = None if damage == "no root" else str(records)
        dataset = load_dataset(DataConfig(name="mindrecord", root=root), 0)
        dataset.train.image(0)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)

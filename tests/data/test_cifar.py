"""The binary layout of CIFAR, also as MindSpore's own reader sees it."""

import mindspore.dataset as ds
import numpy as np
import pytest

from image_files import cifar10
from rpg_ms.config import DataConfig
from rpg_ms.data import cifar
from rpg_ms.data.datasets import load_dataset
from rpg_ms.errors import UserError


def cifar100(root, n=30):
    for name, seed in (("train", 0), ("test", 1)):
        records = np.random.default_rng(seed).integers(0, 256, (n, 3074), np.uint8)
        records[:, 0], records[:, 1] = np.arange(n) % 20, np.arange(n) % 100
        records.tofile(root / f"{name}.bin")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_pixels_labels_and_order_are_those_of_mindspores_reader(tmp_path, name):
    """MindSpore reads files of 10,000 records only."""
    if name == "cifar10":
        cifar10(tmp_path, 10_000)
        reader, label = ds.Cifar10Dataset(str(tmp_path), "test", num_samples=50, shuffle=False), "label"
    else:
        cifar100(tmp_path, 10_000)
        reader, label = ds.Cifar100Dataset(str(tmp_path), "test", num_samples=50, shuffle=False), "fine_label"
    test = load_dataset(DataConfig(name=name, root=str(tmp_path)), 0).test
    assert len(test) == 10_000
    for i, row in enumerate(reader.create_dict_iterator(num_epochs=1, output_numpy=True)):
        assert np.array_equal(np.asarray(test.image(i)), row["image"]) and test.labels[i] == row[label]
    assert i == 49


def test_training_images_of_the_five_files_in_order(tmp_path):
    records = cifar10(tmp_path)
    train = load_dataset(DataConfig(name="cifar10", root=str(tmp_path)), 0).train
    assert train.labels.tolist() == records[:, 0].tolist() and train.labels.dtype == np.int32
    for i in range(100):
        assert np.array_equal(np.asarray(train.image(i)).transpose(2, 0, 1).ravel(), records[i, 1:])


def test_the_archives_own_folder_may_be_left_out_of_the_path(tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    cifar10(tmp_path / "cifar-10-batches-bin")
    inside, above = (
        cifar.load(cifar.CIFAR10, str(root), "train") for root in (tmp_path / "cifar-10-batches-bin", tmp_path)
    )
    assert np.array_equal(inside[0], above[0]) and len(above[1]) == 100


def test_customary_shape_and_augmentation(tmp_path):
    cifar10(tmp_path)
    dataset = load_dataset(DataConfig(name="cifar10", root=str(tmp_path)), 0)
    assert (dataset.classes, dataset.channels, dataset.size) == (10, 3, 32)
    assert len(dataset.class_names) == 10 and dataset.class_names[3] == "cat"
    crop = dataset.train_transform[0].function
    assert (crop.size, crop.padding) == ((32, 32), (4, 4, 4, 4))
    assert len(dataset.train_transform) == 3 and len(dataset.test_transform) == 1


@pytest.mark.parametrize("root", [None, "nowhere"])
@pytest.mark.parametrize(
    "name, files", [("cifar10", ["data_batch_5.bin", "test_batch.bin"]), ("cifar100", ["train.bin", "test.bin"])]
)
def test_absent_data_is_named_with_where_to_get_it(name, files, root):
    with pytest.raises(UserError) as error:
        load_dataset(DataConfig(name=name, root=root), 0)
    message = str(error.value)
    for word in ["data.root", *files, "https://www.cs.toronto.edu/~kriz/cifar.html", "binary.tar.gz"]:
        assert word in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "damaged: 0 bytes"),
        (bytes(3072), "damaged: 3072 bytes"),
        (bytes([10]) + bytes(3072), "label 10 is not in 0"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, words):
    cifar10(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(UserError, match=f"data_batch_3.bin: {words}"):
        load_dataset(DataConfig(name="cifar10", root=str(tmp_path)), 0)

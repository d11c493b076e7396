"""The shipped subset, and full data given as idx files."""

import gzip
import hashlib
import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import PROJECT
from rpg_ms.data import fashion_mnist
from rpg_ms.errors import UserError

# sha256 of the pixels and labels, computed from the original idx files.
SUBSET = {
    "train": (
        12000,
        "13e619eeda219042c38e7dfde755199f21508068fbc3f3eb290bc254c26acaec",
        "e258f152e4d23eb622cedb4a86073d49d38fd044d66b3eb7689bf537e3798f99",
    ),
    "test": (
        4000,
        "766a4be527de792b955e64ba65b1c122ec2c0570449e5a74f2b846049da21074",
        "5e863a298f521f1643918a5d0584889044aca5bd3770f98e44266bb1cf0a833d",
    ),
}


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def idx(array):
    """The bytes of an idx file: 0, 0, 8 for uint8, the dimensions, the data."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def full(tmp_path):
    """A folder in the layout of the original release: 40 train, 20 test images of noise, labels cycling."""
    rng = np.random.default_rng(0)
    for (images, labels), count in zip(fashion_mnist.IDX_FILES.values(), (40, 20)):
        pixels = rng.integers(0, 256, (count, 28, 28), np.uint8)
        (tmp_path / f"{images}.gz").write_bytes(gzip.compress(idx(pixels)))
        (tmp_path / f"{labels}.gz").write_bytes(gzip.compress(idx(np.arange(count, dtype=np.uint8) % 10)))
    return tmp_path


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_subset_is_the_one_chosen(part):
    count, images_sha256, labels_sha256 = SUBSET[part]
    images, labels = fashion_mnist.load(None, part)
    assert (images.shape, images.dtype) == ((count, 28, 28), np.uint8)
    assert (labels.shape, labels.dtype) == ((count,), np.int32)
    assert np.bincount(labels).tolist() == [count // 10] * len(fashion_mnist.CLASSES)
    assert (sha256(images), sha256(labels.astype(np.uint8))) == (images_sha256, labels_sha256)


def test_the_subset_images_stand_upright():
    images, labels = fashion_mnist.load(None, "test")
    trousers = images[labels == fashion_mnist.CLASSES.index("trouser")].mean(axis=0)
    # Trousers are tall and narrow: their columns at the side are empty, their rows at top and bottom are not.
    assert trousers[:, [0, -1]].mean() < 1 < 50 < trousers[[0, -1]].max()


def test_no_image_is_in_both_parts():
    train, test = (fashion_mnist.load(None, part)[0] for part in ("train", "test"))
    train, test = ({image.tobytes() for image in part} for part in (train, test))
    assert not train & test


def test_full_data_gzipped_or_not(full):
    images, labels = fashion_mnist.load(str(full), "train")
    assert images.shape == (40, 28, 28) and labels.tolist() == list(range(10)) * 4
    for packed in full.glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    again, labels_again = fashion_mnist.load(str(full), "train")
    assert (again == images).all() and (labels_again == labels).all()
    assert len(fashion_mnist.load(str(full), "test")[0]) == 20


def test_missing_files_are_named_with_where_to_get_them(full):
    (full / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError) as error:
        fashion_mnist.load(str(full), "train")
    message = str(error.value)
    assert str(full) in message and "t10k-labels-idx1-ubyte.gz" in message and "\n" not in message
    assert "train-images" not in message and "https://github.com/zalandoresearch/fashion-mnist" in message


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="nowhere lacks train-images-idx3.*t10k-labels-idx1"):
        fashion_mnist.load(str(tmp_path / "nowhere"), "test")


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@given(data=st.data())
def test_a_damaged_file_is_named(tmp_path_factory, name, data):
    root = tmp_path_factory.mktemp("damaged")
    contents = {
        "train-images-idx3-ubyte": idx(np.zeros((3, 28, 28), np.uint8)),
        "train-labels-idx1-ubyte": idx(np.zeros(3, np.uint8)),
    }
    for good in fashion_mnist.IDX_FILES["train"] + fashion_mnist.IDX_FILES["test"]:
        (root / good).write_bytes(contents.get(good, b""))
    content = contents[name]
    (root / name).unlink()
    damage = data.draw(st.sampled_from(["cut", "longer", "type", "gzip cut", "not gzip"]))
    if damage == "cut":
        (root / name).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif damage == "longer":
        (root / name).write_bytes(content + b"\0")
    elif damage == "type":
        (root / name).write_bytes(b"\0\0\x0d" + content[3:])
    elif damage == "gzip cut":
        packed = gzip.compress(content)
        (root / f"{name}.gz").write_bytes(packed[: data.draw(st.integers(0, len(packed) - 1))])
    else:
        (root / f"{name}.gz").write_bytes(content)
    with pytest.raises(UserError, match=name):
        fashion_mnist.load(str(root), "train")


@pytest.mark.parametrize(
    "name, wrong, message",
    [
        ("train-images-idx3-ubyte", np.zeros((40, 32, 32), np.uint8), "not images of 28 x 28"),
        ("train-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8), "holds no images"),
        ("train-labels-idx1-ubyte", np.zeros(39, np.uint8), "for 40 images"),
        ("train-labels-idx1-ubyte", np.full(40, 10, np.uint8), "label 10 is not in 0 to 9"),
    ],
)
def test_arrays_that_do_not_fit(full, name, wrong, message):
    (full / f"{name}.gz").write_bytes(gzip.compress(idx(wrong)))
    with pytest.raises(UserError, match=f"{name}.*{message}"):
        fashion_mnist.load(str(full), "train")


def test_the_subset_script_takes_the_first_of_each_class(full, tmp_path_factory, monkeypatch):
    file = PROJECT / "scripts/make_fashion_mnist_subset.py"
    spec = importlib.util.spec_from_file_location("subset", file)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    output = tmp_path_factory.mktemp("subset")
    monkeypatch.setattr(script, "PER_CLASS", {"train": 2, "test": 1})
    monkeypatch.setattr("sys.argv", ["make_fashion_mnist_subset.py", str(full), str(output)])
    script.main()
    monkeypatch.setattr(fashion_mnist, "SUBSET", output)
    for part, count in (("train", 20), ("test", 10)):
        images, labels = fashion_mnist.load(str(full), part)
        chosen_images, chosen_labels = fashion_mnist.load(None, part)
        # The labels cycle through 0 … 9, so the first of each class are the first of the file.
        assert (chosen_images == images[:count]).all() and (chosen_labels == labels[:count]).all()

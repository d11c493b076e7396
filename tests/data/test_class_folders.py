import os

import numpy as np
import pytest
from PIL import Image

import image_files
from rpg_ms.config import DataConfig
from rpg_ms.data import class_folders
from rpg_ms.data.datasets import check_images, load_dataset
from rpg_ms.data.transforms import apply
from rpg_ms.errors import UserError


def load(root, **keys):
    return load_dataset(DataConfig(name="imagenet", root=str(root), **keys), 0)


def test_every_image_once_with_the_class_of_its_folder_sorted_by_name(tmp_path):
    root = image_files.class_folders(tmp_path)
    (root / "train/n01/below").mkdir()
    Image.fromarray(image_files.noise(7)).save(root / "train/n01/below/deep.png")
    (root / "train/n01/notes.txt").write_text("not an image")
    (root / "train/list.txt").write_text("not a class")
    dataset = load(root)
    files = sorted((root / "train").rglob("*.JPEG")) + [root / "train/n01/below/deep.png"]
    assert (dataset.classes, dataset.channels, dataset.size) == (3, 3, 224)
    assert dataset.class_names == ("n01", "n02", "n10")
    train = dataset.train
    found = {(train.image(i).tobytes(), int(train.labels[i])) for i in range(len(train))}
    label = lambda file: ["n01", "n02", "n10"].index(file.relative_to(root).parts[1])
    wanted = {(Image.open(file).convert("RGB").tobytes(), label(file)) for file in files}
    assert found == wanted and len(dataset.train) == len(files) == 19
    assert dataset.train.labels.tolist() == sorted(dataset.train.labels.tolist())
    assert dataset.train.labels.dtype == np.int32


def test_a_limit_leaves_images_of_every_class(tmp_path):
    root = image_files.class_folders(tmp_path)
    dataset = load(root, limit=6)
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 2, 2] and dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert load(root, limit=100).train.labels.tolist() == load(root).train.labels.tolist()


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1", "I;16"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image = Image.new(mode, (9, 7)) if mode == "I;16" else Image.fromarray(image_files.noise(0)).convert(mode)
    image.save(file)
    assert class_folders.read_image(file, str(file)).mode == "RGB"


def deep(top=65536, channels=1):
    return np.random.default_rng(0).integers(0, top, (6, 8, channels)).astype(np.uint16)


def read(file):
    return np.asarray(class_folders.read_image(file, str(file)))


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_become_the_eight_highest_in_either_byte_order(tmp_path, order):
    pixels = deep()
    assert np.array_equal(read(image_files.tiff(tmp_path / "x.tif", pixels, order=order)), (pixels >> 8).repeat(3, 2))
    colours = deep(channels=3)
    file = image_files.tiff(tmp_path / "c.tif", colours, order=order, photometric=2)
    assert np.array_equal(read(file), colours >> 8)


def test_other_depths_and_scales_of_grey(tmp_path):
    pixels = deep(4096)
    assert np.array_equal(read(image_files.tiff(tmp_path / "x.tif", pixels, bits=12)), (pixels >> 4).repeat(3, 2))
    file = image_files.tiff(tmp_path / "i.tif", deep(), photometric=0)  # 0 is white
    assert np.array_equal(read(file), 255 - (deep() >> 8).repeat(3, 2))
    (tmp_path / "x.pgm").write_bytes(b"P5\n8 6\n4095\n" + pixels.astype(">u2").tobytes())
    assert np.abs(read(tmp_path / "x.pgm") - pixels / 4095 * 255).max() < 1
    Image.fromarray(deep()[..., 0]).save(tmp_path / "x.png")
    assert np.array_equal(read(tmp_path / "x.png"), (deep() >> 8).repeat(3, 2))


@pytest.mark.parametrize(
    "pixels, sample_format, words",
    [
        (deep().astype(np.int16), 2, "16-bit signed numbers"),
        (deep().astype(np.int32), 2, "32-bit signed numbers"),
        (deep().astype(np.int8), 2, "8-bit signed numbers"),
        (deep().astype(np.float32) / 65535, 3, "32-bit floating-point numbers"),
    ],
)
def test_pixels_of_unknown_scale_are_refused(tmp_path, pixels, sample_format, words):
    for order in "<>":
        file = image_files.tiff(tmp_path / "x.tif", pixels, order=order, sample_format=sample_format)
        with pytest.raises(UserError, match=f"x.tif: not a readable image: its pixels are {words}, of which"):
            read(file)


def test_layouts_that_pillow_misreads_or_knows_no_scale_for_are_refused(tmp_path):
    file = image_files.tiff(tmp_path / "x.tif", deep(channels=3), photometric=2, planar=2)
    with pytest.raises(UserError, match="x.tif: not a readable image: its channels have 16 bits and lie one after"):
        read(file)
    (tmp_path / "x.ppm").write_bytes(b"Pf\n8 6\n-1.0\n" + deep().astype("<f4").tobytes())  # floating-point PFM
    with pytest.raises(UserError, match="x.ppm: not a readable image: its pixels are PPM numbers of Pillow's mode F"):
        read(tmp_path / "x.ppm")


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_images_of_eight_bits_are_what_pillow_makes_of_them(tmp_path, mode):
    file = tmp_path / ("x.png" if mode in ("P", "LA", "RGBA") else "x.tif")
    Image.fromarray(image_files.noise(0)).convert(mode).save(file)
    with Image.open(file) as image:
        assert image.mode == mode
        assert np.array_equal(read(file), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("augment", ["auto", "none", "crop_flip", "random_resized_crop", "randaugment"])
@pytest.mark.parametrize("image_size", [None, 16])
def test_images_of_all_sizes_come_out_alike(tmp_path, augment, image_size):
    dataset = load(image_files.class_folders(tmp_path, train=2), augment=augment, image_size=image_size)
    size = image_size or 224
    assert dataset.size == size
    for images, transform in ((dataset.train, dataset.train_transform), (dataset.test, dataset.test_transform)):
        for i in range(len(images)):
            out = apply(transform, images.sample(i))["image"]
            assert (out.shape, out.dtype) == ((3, size, size), np.float32)


def test_the_test_transform_is_the_centre_of_the_resized_image(tmp_path):
    dataset = load(image_files.class_folders(tmp_path), image_size=224)
    image = Image.fromarray(image_files.noise(3, 300, 400))
    resize, crop = (transform.function for transform in dataset.test_transform[:2])
    assert resize(image).size == (341, 256)  # the shorter side 256
    wanted = image.resize((341, 256), Image.Resampling.BILINEAR).crop((58, 16, 282, 240))
    assert np.array_equal(np.asarray(crop(resize(image))), np.asarray(wanted))


@pytest.mark.parametrize(
    "damage, words",
    [
        ("no train", ["data.root", "no folder train", "train/CLASS/*.JPEG"]),
        ("no classes", ["train has no class folders"]),
        ("empty class", ["n02 has no images"]),
        ("class only in train", ["class n10 has a folder in train but none in val"]),
        ("no root", ["data.root: not set", "train/ and val/"]),
    ],
)
def test_what_is_wrong_with_the_folders_is_named(tmp_path, damage, words):
    root = image_files.class_folders(tmp_path / "data")
    if damage == "no train":
        (root / "train").rename(root / "training")
    elif damage == "no classes":
        (root / "train").rename(root / "training")
        (root / "train").mkdir()
    elif damage == "empty class":
        for file in (root / "train/n02").iterdir():
            file.unlink()
    elif damage == "class only in train":
        (root / "val/n10").rename(root / "n10")
    with pytest.raises(UserError) as error:
        load_dataset(DataConfig(name="imagenet", root=None if damage == "no root" else str(root)), 0)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_a_link_that_leads_back_does_not_repeat_images(tmp_path):
    root = image_files.class_folders(tmp_path / "data")
    expected = class_folders.list_images(root, "train").labels
    (root / "train/n01/loop").symlink_to(root / "train/n01")
    (tmp_path / "more").mkdir()
    (root / "train/n01/n01_1.JPEG").rename(tmp_path / "more/n01_1.JPEG")
    (root / "train/n01/linked").symlink_to(tmp_path / "more")
    assert np.array_equal(class_folders.list_images(root, "train").labels, expected)


def test_names_that_begin_with_a_dot_are_passed_over(tmp_path):
    root = image_files.class_folders(tmp_path)
    expected = [class_folders.list_images(root, part).files.tolist() for part in ("train", "val")]
    for folder in ("train/.ipynb_checkpoints", "train/n01/.ipynb_checkpoints"):
        (root / folder).mkdir()
        Image.fromarray(image_files.noise(7)).save(root / folder / "n01_1-checkpoint.JPEG")
    (root / "val/n01/._n01_1.JPEG").write_bytes(b"\0\5\x16\7 of macOS")
    (root / "val/.DS_Store").write_bytes(b"")
    train, test = class_folders.load(root)
    assert [train.files.tolist(), test.files.tolist()] == expected and train.classes == ("n01", "n02", "n10")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    root = image_files.class_folders(tmp_path)
    (root / "train/n01/locked").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match="n01/locked: cannot be read: Permission denied"):
        class_folders.list_images(root, "train")


@pytest.mark.parametrize("content", [b"", b"hello", "truncated", "png", "removed"])
def test_an_unreadable_image_is_named(tmp_path, content):
    dataset = load(image_files.class_folders(tmp_path))
    file = tmp_path / "train/n01/n01_2.JPEG"
    if content == "truncated":
        file.write_bytes(file.read_bytes()[:600])
    elif content == "png":
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    elif content == "removed":
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match="n01_2.JPEG: not a readable image") as error:
        dataset.train.image(2)
    assert "\n" not in str(error.value)
    dataset.train.image(1)


def test_a_check_reads_the_images_of_both_parts_once(tmp_path, capsys):
    dataset = load(image_files.class_folders(tmp_path), validation=0.25)  # of 18 training images; val/ is not used
    for file in ("train/n01/n01_2.JPEG", "train/n10/n10_5.JPEG", "val/n01/n01_0.JPEG"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(UserError, match="^2 of 18 images cannot be read, those named above"):
        check_images(dataset)
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.partition(": ")[0] for line in lines) == [
        f"{tmp_path}/train/n01/n01_2.JPEG",
        f"{tmp_path}/train/n10/n10_5.JPEG",
    ]
    dataset = load(tmp_path, limit=2)  # of four images the third, val/n01/n01_0.JPEG, cannot be read
    assert check_images(dataset, 1, 2) == 2
    with pytest.raises(UserError, match="^1 of 2 images"):
        check_images(dataset, 0, 2)

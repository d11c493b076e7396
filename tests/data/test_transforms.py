import random

import numpy as np
import pytest
from mindspore.dataset import vision
from PIL import Image

from image_files import noise
from rpg_ms.config import SCHEMAS
from rpg_ms.data.datasets import ImageSet
from rpg_ms.data.pipeline import TrainSamples
from rpg_ms.data.rand_augment import OPERATIONS, RandAugment
from rpg_ms.data.transforms import Normalise, apply, transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR = dict(customary="crop_flip", size=32, native_size=32, padding=4, mean=MEAN, std=STD)


@pytest.mark.parametrize("mean, std", [(MEAN, STD), ((0.286,), (0.353,))])
def test_normalise_gives_the_numbers_of_mindspores_operators(mean, std):
    image = Image.fromarray(noise(0, 30, 41) if len(mean) == 3 else noise(0, 30, 41)[:, :, 0])
    wanted = vision.Normalize(mean, std, is_hwc=False)(vision.ToTensor()(image))
    found = Normalise(mean, std)(image)
    assert found.dtype == np.float32 and np.array_equal(found, wanted)


def test_the_crop_pads_with_zeros_before_normalisation():
    train, _ = transforms("crop_flip", **CIFAR)
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    values, shifts = set(), set()
    for seed in range(300):
        random.seed(seed)
        np.random.seed(seed)
        out = apply(train, {"image": white})["image"]
        values |= set(out[0].ravel().tolist())
        shifts.add((int((out[0] > 0).any(0).sum()), int((out[0] > 0).any(1).sum())))
    black, bright = -np.float32(0.485) / np.float32(0.229), (1 - np.float32(0.485)) / np.float32(0.229)
    assert sorted(values) == pytest.approx([black, bright])
    assert {columns for columns, _ in shifts} == {rows for _, rows in shifts} == {28, 29, 30, 31, 32}


@pytest.mark.parametrize("augment", SCHEMAS["data", "augment"]["enum"])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_depends_on_seed_epoch_and_image_only(augment, channels):
    pixels = [noise(i, 32, 32) if channels == 3 else noise(i, 32, 32)[:, :, 0] for i in range(12)]
    images = ImageSet(lambda i: Image.fromarray(pixels[i]), np.arange(12, dtype=np.int32))
    make = lambda: transforms(augment, **{**CIFAR, "mean": MEAN[:channels], "std": STD[:channels]})[0]
    train = make()
    forwards = {}
    samples = TrainSamples(images, train, 4, 5, 0, 30)
    for i in range(120):
        image, label = samples[i].values()
        forwards[i // 12, int(label)] = image
    random.seed(99)
    np.random.seed(99)
    late = TrainSamples(images, make(), 4, 5, 9, 30)
    for i in reversed(range(len(late))):
        image, label = late[i].values()
        assert np.array_equal(image, forwards[(i + 36) // 12, int(label)])
    variants = len({forwards[epoch, 0].tobytes() for epoch in range(10)})
    assert variants == 1 if augment == "none" else variants > 5
    other_seed = TrainSamples(images, train, 4, 6, 0, 3)
    changed = sum(
        not np.array_equal(image, forwards[0, int(label)])
        for image, label in (other_seed[i].values() for i in range(12))
    )
    assert changed == 0 if augment == "none" else changed > 6


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_each_operation_of_randaugment(name, mode):
    """Size and mode stay; the image changes; and the stronger the more, where strength means anything."""
    y, x = np.mgrid[:64, :64]
    ramps = np.stack([4 * x, 2 * (x + y), 4 * y], -1) + np.random.default_rng(0).integers(-9, 10, (64, 64, 3))
    image = Image.fromarray(np.clip(ramps, 20, 235).astype(np.uint8)).convert(mode)
    fill = (124, 116, 104) if mode == "RGB" else 124

    def change(strength):
        random.seed(1)
        out = OPERATIONS[name](image, strength, fill)
        assert out.size == image.size and out.mode == mode
        return np.abs(np.asarray(out, int) - np.asarray(image, int)).mean()

    if name in ("auto_contrast", "equalize", "invert"):
        assert change(0.9) > 1
    elif name == "color" and mode == "L":
        assert change(0.9) == 0  # grey has no colour
    elif name == "posterize":
        assert 0 < change(0.0) < change(0.5) < change(1.0)
    else:
        assert change(0.0) == 0 < change(0.3) < change(0.9)


def test_posterize_keeps_fewer_bits_the_stronger():
    operation = OPERATIONS["posterize"]
    image = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    counts = [len(np.unique(operation(image, strength, 0))) for strength in (0, 0.3, 0.5, 0.9, 1)]
    assert counts == [16, 8, 4, 2, 2]


def test_randaugment_applies_each_of_two_operations_half_the_time():
    image = Image.fromarray(noise(0))
    augment = RandAugment((124, 116, 104))
    random.seed(0)
    untouched = sum(augment(image) is image for _ in range(2000)) / 2000
    assert abs(untouched - 0.25) < 0.04

import json
import random

import numpy as np
import pytest
from PIL import Image

import shapes
from rpg_ms.config import DataConfig
from rpg_ms.data.coco import Picture
from rpg_ms.data.detection_samples import (
    ALL_EIGHT,
    CROWD,
    MASK_SIDE,
    DetectionDataset,
    Keys,
    Letterbox,
    Mirror,
    Rows,
    Targets,
    inside,
)
from rpg_ms.data.pipeline import TrainSamples, batches
from rpg_ms.data.transforms import apply
from rpg_ms.errors import UserError


def dataset(**keys):
    return DetectionDataset(DataConfig(**{"name": "nuclei", **keys}), masks=True, seed=0)


def test_the_nuclei_that_come_with_the_package():
    nuclei = dataset()
    assert (len(nuclei.train), len(nuclei.test)) == (130, 37)
    assert sum(len(picture.annotations) for picture in nuclei.test.pictures) == 1008
    for part in (nuclei.train, nuclei.test):
        for picture in part.pictures:
            areas = [one.mask(picture.height, picture.width).sum() for one in picture.annotations]
            assert areas == [one.area for one in picture.annotations]
    pixels = np.stack([np.asarray(nuclei.train.sample(i)["image"]) for i in range(130)]) / 255
    assert pixels.mean() == pytest.approx(nuclei.row.mean[0], abs=0.01)
    assert pixels.std() == pytest.approx(nuclei.row.std[0], abs=0.01)


def test_a_part_is_read_when_it_is_asked_for(tmp_path):
    root = shapes.write(tmp_path / "only_val", counts=(("val", 4),))
    lazy = dataset(root=str(root))
    assert len(lazy.test) == 4
    with pytest.raises(UserError, match="instances_train.json"):
        lazy.train  # noqa: B018
    held_out = dataset(validation=0.1)
    assert len(held_out.train) == 117 and len(held_out.test) == 13
    files = {picture.file for picture in (*held_out.train.pictures, *held_out.test.pictures)}
    assert len(files) == 130 and "_all_train" in vars(held_out) and all("/train/" in file for file in files)


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"name": "nuclie"}, "data.name: 'nuclie' is not one of nuclei, coco .*did you mean nuclei"),
        ({"augment": "crop_flip"}, "data.augment: crop_flip is not one of auto, none"),
        ({"name": "coco"}, "data.root: not set"),
    ],
)
def test_mistakes(keys, words):
    with pytest.raises(UserError, match=words):
        dataset(**keys).test  # noqa: B018


def example(rng, height=48, width=64, objects=4):
    """A sample as `Targets` makes it, with the full masks."""
    pixels, masks, labels = shapes.picture(rng, height, width, objects)
    boxes = [(np.argwhere(mask).min(0)[::-1], np.argwhere(mask).max(0)[::-1] + 1) for mask in masks]
    return {
        "image": Image.fromarray(pixels),
        "boxes": np.array([np.concatenate(box) for box in boxes], np.float32),
        "labels": np.array(labels, np.int32),
        "masks": np.array(masks, np.uint8),
        "picture": Picture("", height, width, ()),
        "index": np.int32(0),
    }


@pytest.mark.parametrize("method", ALL_EIGHT)
def test_image_boxes_and_masks_move_together(method):
    rng = np.random.default_rng(1)
    sample = example(rng)
    random.seed(0)
    moved = [Mirror(method)(sample) for _ in range(20)]
    changed = [one for one in moved if one is not sample]
    assert 3 < len(changed) < 17
    one = changed[0]
    assert np.array_equal(np.asarray(one["image"]), np.asarray(sample["image"].transpose(method)))
    for before, mask, box in zip(sample["masks"], one["masks"], one["boxes"]):
        assert np.array_equal(mask, np.asarray(Image.fromarray(before).transpose(method)))
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def painted(sample, size, valid):
    """Masks of a letterboxed sample painted back by their boxes, at pixel centres: bool `[n, size, size]`."""
    y, x = np.mgrid[:size, :size] + 0.5
    out = []
    for box, mask in zip(sample["boxes"], sample["masks"]):
        columns = (x - box[0]) / (box[2] - box[0]) * MASK_SIDE
        rows = (y - box[1]) / (box[3] - box[1]) * MASK_SIDE
        within = (columns >= 0) & (columns < MASK_SIDE) & (rows >= 0) & (rows < MASK_SIDE)
        cells = [np.clip(values, 0, MASK_SIDE - 1).astype(int) for values in (rows, columns)]
        out.append(mask[cells[0], cells[1]].astype(bool) & within)
    return np.array(out)


@pytest.mark.parametrize(
    "shape, size, valid", [((48, 64), 64, (48, 64)), ((48, 64), 128, (96, 128)), ((64, 48), 32, (32, 24))]
)
def test_letterboxing_keeps_the_shape_of_things(shape, size, valid):
    sample = example(np.random.default_rng(2), *shape)
    made = Letterbox(size)(sample)
    assert made["valid"].tolist() == list(valid) and made["image"].size == valid[::-1]
    assert made["boxes"] == pytest.approx(sample["boxes"] * valid[0] / shape[0])
    for mask, before in zip(painted(made, size, valid), sample["masks"]):
        scaled = np.asarray(Image.fromarray(before).resize(valid[::-1], Image.Resampling.NEAREST)).astype(bool)
        mask = mask[: valid[0], : valid[1]]
        # At the rim a pixel may be the neighbour's: the centres are others.
        assert (mask & scaled).sum() / (mask | scaled).sum() > 0.85


def test_what_jitter_cuts_off_is_cut_off_everywhere():
    """Painted back, each mask is the picture's own where it is seen, and the box is tight around it."""
    cut = dropped = 0
    for seed in range(30):
        sample = example(np.random.default_rng(seed), 64, 64, 5)
        random.seed(seed)
        made = Letterbox(64, 0.6)(sample)
        height, width = made["valid"].astype(int)
        assert made["image"].size == (width, height) and max(height, width) <= 64
        assert len(made["boxes"]) == len(made["labels"]) == len(made["masks"])
        assert (made["boxes"] >= 0).all() and (made["boxes"] <= (width, height) * 2).all()
        dropped += len(sample["labels"]) - len(made["labels"])
        pixels = np.asarray(made["image"]).astype(int)
        for mask in painted(made, 64, None)[:, :height, :width]:
            assert mask.any()
            core = pixels[mask]
            if len(core) < 100:  # of thin ones all is rim
                continue
            assert (np.abs(core - np.median(core, 0)).max(1) < 40).mean() > 0.6, "one colour but for the rim"
            cut += mask[-1].any() or mask[:, -1].any()
    assert dropped > 0 and cut > 0


def test_a_mask_inside_its_box_is_sampled_at_the_centres():
    mask = np.zeros((20, 30), np.uint8)
    mask[4:11, 7:14] = np.tri(7, dtype=np.uint8)
    seen = inside(mask, np.array([7.0, 4, 14, 11]))
    assert np.array_equal(seen, np.kron(np.tri(7), np.ones((8, 8))))


def test_rows_are_padded_and_of_too_many_crowds_go_first():
    rng = np.random.default_rng(0)
    sample = Letterbox(64)(example(rng, 64, 64, 6))
    count = len(sample["labels"])
    padded = Rows(10)(sample)
    assert padded["labels"].tolist() == [*sample["labels"], *[0] * (10 - count)]
    assert not padded["boxes"][count:].any() and padded["masks"].shape == (10, MASK_SIDE, MASK_SIDE)
    sample["labels"][1] = CROWD
    random.seed(0)
    drawn = [Rows(3)(sample)["labels"].tolist() for _ in range(20)]
    assert CROWD not in np.array(drawn) and len({tuple(one) for one in drawn}) > 1
    assert CROWD in Rows(count)(sample)["labels"]
    empty = Rows(2)(Letterbox(64)({**sample, "boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "masks": []}))
    assert empty["boxes"].shape == (2, 4) and not empty["labels"].any()


def test_crowds_and_empty_boxes(tmp_path):
    root = shapes.write(tmp_path / "shapes")
    file = root / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["bbox"][2] = 0
    file.write_text(json.dumps(content))
    part = dataset(root=str(root)).test
    made = Targets(masks=True)(part.sample(0))
    wanted = [one.category for one in part.pictures[0].annotations]
    assert made["labels"].tolist() == [CROWD, *wanted[2:]]


def test_keys_are_uniform_and_below_one():
    np.random.seed(0)
    keys = Keys(100_000)({})["keys"]
    assert keys.dtype == np.float32 and keys.min() >= 0 and keys.max() < 1
    assert np.histogram(keys, 10, (0, 1))[0] == pytest.approx(10_000, rel=0.05)


def test_batches_do_not_depend_on_where_they_begin_nor_on_workers():
    nuclei = dataset(limit=12)

    def made(first, workers):
        transform = nuclei.train_transform(16, 50, 0.3)
        samples = TrainSamples(nuclei.train, transform, 2, 0, first, 8)
        return [{name: one.asnumpy() for name, one in batch.items()} for batch in batches(samples, 2, workers)]

    whole = made(0, 1)
    assert list(whole[0]) == ["image", "valid", "boxes", "labels", "masks", "keys"]
    assert whole[0]["image"].shape == (2, 3, 256, 256) and whole[0]["masks"].shape == (2, 16, 56, 56)
    types = [one.dtype.name for one in whole[0].values()]
    assert types == ["float32", "float32", "float32", "int32", "uint8", "float32"]
    for other in (made(5, 1), made(0, 2)[5:]):
        for one, two in zip(whole[5:], other):
            assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(whole[0]["keys"], whole[1]["keys"])


def test_test_images_are_the_same_with_and_without_normalisation():
    nuclei = dataset(limit=2)
    raw = apply(nuclei.raw_transform(), nuclei.test.sample(0))["image"]
    made = apply(nuclei.test_transform(), nuclei.test.sample(0))["image"]
    mean, std = (np.float32(one)[:, None, None] for one in (nuclei.row.mean, nuclei.row.std))
    assert raw.dtype == np.float32 and made == pytest.approx((raw / 255 - mean) / std, abs=1e-4)

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

import shapes
from rpg_ms.data.coco import read_part, run_lengths
from rpg_ms.errors import UserError


@pytest.fixture
def root(tmp_path):
    return shapes.write(tmp_path / "shapes", sizes=((64, 48), (40, 64)))


def edit(root, change):
    """Rewrite the training part's JSON file by `change`."""
    file = root / "instances_train.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_masks_of_all_kinds_are_read_exactly(root):
    part = read_part(root, "train", masks=True)
    assert len(part) == 8 and part.categories == {1: "disc", 2: "square", 3: "triangle"}
    rng = np.random.default_rng(0)
    for i, picture in enumerate(part.pictures):
        pixels, masks, labels = shapes.picture(rng, picture.height, picture.width, 3)
        assert np.array_equal(np.asarray(part.sample(i)["image"]), pixels)
        assert [one.category for one in picture.annotations] == labels
        for one, mask in zip(picture.annotations, masks):
            assert np.array_equal(one.mask(picture.height, picture.width), mask)


def test_polygons_are_those_of_pycocotools_holes_and_pieces_included(root):
    polygons = [[2.0, 3.0, 20.5, 4.0, 11.0, 30.0], [30.0, 30.0, 40.0, 30.0, 40.0, 40.0, 30.0, 40.0]]
    edit(root, lambda content: content["annotations"][0].update(segmentation=polygons))
    mask = read_part(root, "train", masks=True).pictures[0].annotations[0].mask(64, 48)
    wanted = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 64, 48)))
    assert np.array_equal(mask, wanted) and mask[35, 35] and mask[10, 11] and not mask[10, 30]


def test_a_crowd_is_known_as_one_and_boxes_do_without_masks(root):
    edit(root, lambda content: content["annotations"][0].update(iscrowd=1))
    assert read_part(root, "train", masks=True).pictures[0].annotations[0].crowd
    edit(root, lambda content: [one.pop("segmentation") for one in content["annotations"]])
    assert read_part(root, "train", masks=False).pictures[0].annotations[0].encoded(64, 48) is None
    with pytest.raises(UserError, match="annotation id 0: segmentation is neither polygons nor run lengths"):
        read_part(root, "train", masks=True)


def test_cocos_own_names_are_found(root, tmp_path):
    (root / "annotations").mkdir()
    (root / "instances_train.json").rename(root / "annotations/instances_train2017.json")
    with pytest.raises(UserError, match="has no folder train2017 with the images of instances_train2017.json"):
        read_part(root, "train", masks=True)
    (root / "train").rename(root / "train2017")
    assert len(read_part(root, "train", masks=True)) == 8
    (root / "instances_train.json").write_text("{}")
    with pytest.raises(UserError, match="more than one: .*instances_train2017.json, .*instances_train.json"):
        read_part(root, "train", masks=True)
    with pytest.raises(UserError, match="wanted is one file instances_val.json"):
        read_part(tmp_path, "val", masks=True)


def first(**values):
    return lambda content: content["annotations"][0].update(values)


def counts(text):
    return first(segmentation={"size": [64, 48], "counts": text})


@pytest.mark.parametrize(
    "change, words",
    [
        (first(category_id=9), "annotation id 0: category_id 9 is not one of the categories"),
        (lambda content: content["annotations"][0].pop("category_id"), "annotation id 0: category_id is missing"),
        (lambda content: content["annotations"].append({"bbox": []}), r"annotation \d+: image_id is missing"),
        (lambda content: content["annotations"].append(7), r"annotation \d+: not a mapping"),
        (first(image_id=99), "annotation id 0: image_id 99 is not one of the images"),
        (first(bbox=[40, 3, 20, 4]), "annotation id 0: the box 40, 3, 20, 4 .* is not inside its image of 48 x 64"),
        (first(bbox=[4, 3, -2, 4]), "annotation id 0: the box"),
        (first(bbox=[4, 3, float("nan"), 4]), "annotation id 0: bbox is not four finite numbers"),
        (first(bbox=[4, 3, 2]), "annotation id 0: bbox is not four finite numbers"),
        (first(segmentation=[[1, 2, 3, 4]]), "annotation id 0: a polygon of 2 points"),
        (first(segmentation=[[1, 2, 3, "x", 5, 6]]), "annotation id 0: a polygon is not pairs of finite numbers"),
        (first(segmentation=[]), "annotation id 0: segmentation is neither"),
        (first(iscrowd=2), "annotation id 0: iscrowd 2 is not 0 or 1"),
        (counts("zzzzzzzzzz"), "annotation id 0: counts are not run lengths"),
        (counts([64 * 48, 1]), "annotation id 0: its run lengths sum up to 3073, not 3072 pixels"),
        (counts([-1, 64 * 48 + 1]), "annotation id 0: counts are not run lengths"),
        (first(segmentation={"size": [48, 64], "counts": [64 * 48]}), r"annotation id 0: size \[48, 64\] is not"),
        (lambda content: content["images"][0].update(file_name="gone.png"), "image id 10: .*gone.png is missing"),
        (lambda content: content["images"][0].update(file_name="../val/000.png"), "leads out of"),
        (lambda content: content["images"][0].update(id=11), "image 1: id 11 is given twice"),
        (lambda content: content.pop("categories"), "categories is missing"),
        (lambda content: content["categories"].clear(), "holds no categories"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_annotation(root, change, words):
    edit(root, change)
    with pytest.raises(UserError, match=f"instances_train.json: .*{words}") as error:
        read_part(root, "train", masks=True)
    assert "\n" not in str(error.value)


def test_damaged_files(root):
    file = root / "train/000.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:60])
    part = read_part(root, "train", masks=True)
    with pytest.raises(UserError, match="000.png: not a readable image"):
        part.sample(0)
    file.write_bytes((root / "train/001.png").read_bytes())
    with pytest.raises(UserError, match="000.png: 64 x 40 pixels; .*instances_train.json says 48 x 64"):
        part.sample(0)
    json_file = root / "instances_train.json"
    json_file.write_text(json_file.read_text()[:-200])
    with pytest.raises(UserError, match="instances_train.json: not JSON"):
        read_part(root, "train", masks=True)


def test_compressed_run_lengths_of_random_masks():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.3, 1.0):
        mask = np.asfortranarray(rng.random((70, 300)) < share, np.uint8)
        text = coco_mask.encode(mask)["counts"].decode()
        values = [i % 2 for i, run in enumerate(run_lengths(text)) for _ in range(run)]
        assert np.array_equal(np.reshape(values, mask.shape, "F"), mask)
        assert run_lengths(text[:-1] + "o") is None, "it goes on beyond its end"

import json

import numpy as np
import pytest

import shapes
from rpg_ms.data.coco import mask_functions, read_part
from rpg_ms.data.detection_samples import Letterbox
from rpg_ms.tasks.average_precision import PIECE, AveragePrecision, Found, _gather, found_objects
from rpg_ms.training.distributed import ALONE, World

ALL = {"mask_ap": 100, "mask_ap50": 100, "box_ap": 100, "box_ap50": 100}


@pytest.fixture
def part(tmp_path):
    root = shapes.write(tmp_path / "shapes", counts=(("val", 6),), sizes=((64, 48), (40, 64), (96, 96)), objects=4)
    file = root / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 12]  # an image without any
    file.write_text(json.dumps(content))
    return read_part(root, "val", masks=True)


def truth(picture, score=0.9):
    """The true objects but crowds, as if they had been found."""
    return [
        Found(
            one.category,
            score,
            (one.box[0], one.box[1], one.box[0] + one.box[2], one.box[1] + one.box[3]),
            one.encoded(picture.height, picture.width)["counts"],
        )
        for one in picture.annotations
        if not one.crowd
    ]


def measured(part, found, masks=True, world=ALONE):
    one = AveragePrecision(part, masks)
    for index, some in found.items():
        one.add(index, some)
    return one.figures(world)


def test_the_truth_fed_back_is_perfect(part):
    found = {i: truth(picture) for i, picture in enumerate(part.pictures)}
    assert measured(part, found) == pytest.approx(ALL)
    assert measured(part, found, masks=False) == pytest.approx({"box_ap": 100, "box_ap50": 100})


def test_what_is_found_in_a_crowd_does_not_count_against_it(part):
    found = {i: truth(picture) for i, picture in enumerate(part.pictures)}
    crowd = part.pictures[0].annotations[0]
    assert crowd.crowd
    x, y, width, height = crowd.box
    half = np.zeros((64, 48), np.uint8, "F")
    half[: int(y + height / 2)] = crowd.mask(64, 48)[: int(y + height / 2)]
    piece = Found(crowd.category, 0.99, (x, y, x + width, y + height / 2), mask_functions().encode(half)["counts"])
    found[0].append(piece)
    assert measured(part, found) == pytest.approx(ALL)
    found[2] = [piece]  # the image without any object
    assert measured(part, found)["box_ap"] < 100


def test_nothing_found_and_the_wrong_class(part):
    assert measured(part, {}) == dict.fromkeys(ALL, 0)
    wrong = {
        i: [Found(one.label % 3 + 1, one.score, one.box, one.counts) for one in truth(picture)]
        for i, picture in enumerate(part.pictures)
    }
    assert measured(part, wrong)["mask_ap"] < 10


def test_masks_and_boxes_are_measured_apart(part):
    found = {i: truth(picture) for i, picture in enumerate(part.pictures)}
    grown = {
        i: [Found(one.label, one.score, tuple(np.add(one.box, (0, 0, 6, 6))), one.counts) for one in some]
        for i, some in found.items()
    }
    figures = measured(part, grown)
    assert figures["mask_ap"] == pytest.approx(100) and figures["box_ap"] < 90


@pytest.mark.parametrize("size", [64, 128])
def test_the_letterbox_is_undone(part, size):
    """What a perfect network would return for the letterboxed images, at their own size again."""
    for picture, number in zip(part.pictures, range(6)):
        objects = [one for one in picture.annotations if not one.crowd]
        boxes = np.array([one.box for one in objects], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        sample = {
            **part.sample(number),
            "boxes": boxes.astype(np.float32),
            "labels": np.array([one.category for one in objects], np.int32),
            "masks": np.array([one.mask(picture.height, picture.width) for one in objects], np.uint8),
        }
        made = Letterbox(size)(sample)
        count = len(made["labels"])
        rows = [np.zeros((count + 5, *shape), np.float32) for shape in ((4,), (), (), (28, 28))]  # 5 of padding
        rows[0][:count], rows[1][:count], rows[2][:count] = made["boxes"], 0.9, made["labels"]
        rows[3][:count] = made["masks"].reshape(count, 28, 2, 28, 2).mean((2, 4))
        found = found_objects(picture.height, picture.width, size, *rows)
        assert [one.label for one in found] == [one.category for one in objects]
        for one, wanted in zip(found, objects):
            x, y, width, height = wanted.box
            assert one.box == pytest.approx((x, y, x + width, y + height), abs=0.01)
            mask = mask_functions().decode({"size": [picture.height, picture.width], "counts": one.counts})
            wanted = wanted.mask(picture.height, picture.width)
            if wanted.sum() > 60:  # of the rim of a hidden object, 28 cells a side keep little
                assert (mask & wanted).sum() / (mask | wanted).sum() > 0.75


class OneOf(World):
    """One of several processes, all of whose gathered values are known beforehand."""

    def __init__(self, rank, values):
        super().__init__(rank, len(values))
        self.values, self.calls = values, 0

    def gather(self, value):
        gathered = np.stack([values[self.calls] for values in self.values])
        assert np.array_equal(gathered[self.rank], value)
        self.calls += 1
        return gathered


class Recorder(World):
    """A process that says it is alone, and keeps what it sends."""

    def __init__(self):
        super().__init__(0, 1)
        self.sent = []

    def gather(self, value):
        self.sent.append(np.asarray(value))
        return np.asarray(value)[None]


def test_every_image_counts_once_at_any_number_of_processes(part):
    rng = np.random.default_rng(0)
    found = {
        i: [Found(one.label, round(float(rng.random()), 1), one.box, one.counts) for one in truth(picture)]
        + [Found(1, 0.5, (0.0, 0.0, 9.0, 9.0), truth(part.pictures[i])[0].counts if truth(part.pictures[i]) else b"")]
        for i, picture in enumerate(part.pictures)
        if i != 2
    }
    alone = measured(part, found)
    assert 0 < alone["mask_ap"] < 100
    halves = [{i: some for i, some in found.items() if i % 2 == rank} for rank in (0, 1)]
    # What each process sends: texts of different lengths, padded to the longest.
    parts = []
    for half in halves:
        one = AveragePrecision(part, masks=True)
        for index, some in half.items():
            one.add(index, some)
        parts.append([np.array(one._numbers).tobytes(), b"".join(one._counts)])
    sent = []
    for rank in (0, 1):
        values = []
        for k in (0, 1):
            longest = max(len(parts[0][k]), len(parts[1][k]))
            padded = np.zeros(longest, np.uint8)
            padded[: len(parts[rank][k])] = np.frombuffer(parts[rank][k], np.uint8)
            values += [np.int64(len(parts[rank][k])), padded]
        sent.append(values)
    for rank in (0, 1):
        assert measured(part, halves[rank], world=OneOf(rank, sent)) == alone


def test_long_texts_go_in_pieces():
    text = np.random.default_rng(0).integers(0, 256, 2 * PIECE + 7, np.uint8).tobytes()
    recorder = Recorder()
    assert _gather(recorder, text) == [text] and _gather(recorder, b"") == [b""]
    assert [one.size for one in recorder.sent] == [1, PIECE, PIECE, 7, 1]

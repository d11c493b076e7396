import json
import re
import shutil
from fnmatch import fnmatchcase

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

import shapes
from doors import door, last_json, refused
from rpg_ms.config import load_config
from rpg_ms.errors import UserError
from rpg_ms.tasks import TASKS, create_task, figures_of
from rpg_ms.training import build
from rpg_ms.training.distributed import ALONE

TINY = """
task: detection
model: {name: maskrcnn_resnet_small, width: 0.34}
data: {name: nuclei, root: shapes, image_size: 64}
detection:
  boxes_per_image: 8
  scale_jitter: 0.2
  fpn_channels: 16
  hidden: 32
  anchor_sizes: [8, 16, 32, 64]
  pre_nms_proposals: 32
  proposals: 32
  rois_per_image: 16
  detections: 12
train: {epochs: 3, batch_size: 2, log_every: 2, eval_batch_size: 2, clip_norm: 10, eval_every: 3}
optimizer: {name: adam, lr: 2.0e-3, weight_decay: 0}
pruning: {method: rpg, density: 0.2, update_every: 3, prune_until: 0.6, freeze_after: 0.7, alpha: 0.3}
rank: {lambda: 0.5, delta: 0.1}
device_target: CPU
"""
STEPS = 3 * 4
PREDICTORS = [
    "rpn.head.cls_logits",
    "rpn.head.bbox_pred",
    "roi_heads.box_predictor.cls_score",
    "roi_heads.box_predictor.bbox_pred",
    "roi_heads.mask_predictor.mask_fcn_logits",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detection")
    shapes.write(folder / "shapes", sizes=((64, 64), (48, 64)))
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def config(folder, *overrides):
    return load_config(folder / "tiny.yaml", [f"data.root={folder / 'shapes'}", *overrides])


def test_classes_are_the_ids_and_the_background(folder):
    assert create_task(config(folder), ALONE).classes == 4
    assert create_task(config(folder, "model.num_classes=91"), ALONE).classes == 91
    with pytest.raises(UserError, match="model.num_classes: 3 is less than 4: the background and the ids"):
        create_task(config(folder, "model.num_classes=3"), ALONE)


def test_a_batch_of_zeros_is_like_a_batch(folder):
    task = create_task(config(folder), ALONE)
    assert task.steps_per_epoch == 4
    batch, zeros = next(iter(task.train_batches(0, 1))), task.zero_batch(2)
    assert list(batch) == list(zeros)
    for name, zero in zeros.items():
        assert batch[name].shape == zero.shape and batch[name].asnumpy().dtype == zero.dtype, name
    assert batch["keys"].shape[1] == task.network().keys


@pytest.mark.parametrize("masks", [True, False])
def test_the_predictors_stay_dense_unless_told_otherwise(folder, masks):
    some = config(folder, f"model.masks={str(masks).lower()}")
    assert some.pruning.exclude == TASKS["detection"].exclude  # as the run's config.yaml shows
    task = create_task(some, ALONE)
    network, found = build.build_network(some, task)
    excluded = [name.rpartition(".")[0] for name, why in found.skipped.items() if why.startswith("excluded")]
    assert sorted(excluded) == sorted(PREDICTORS[: 5 if masks else 4])
    for name, _ in network.cells_and_names():  # what the network itself says of them
        if any(fnmatchcase(name, pattern) for pattern in network.predictors):
            assert name in excluded
    assert [figure.name for figure in figures_of(some)] == ["mask_ap", "mask_ap50", "box_ap", "box_ap50"][
        0 if masks else 2 :
    ]
    assert load_config(folder / "tiny.yaml", ["pruning.exclude=[]"]).pruning.exclude == ()
    assert load_config(folder / "tiny.yaml", ["pruning.exclude=[backbone.*]"]).pruning.exclude == ("backbone.*",)


@pytest.mark.parametrize(
    "task, override, words",
    [
        ("detection", "train.mixup=0.8", "--set: train.mixup: 0.8 is for task: classification, not for detection"),
        ("detection", "train.label_smoothing=0.1", "train.label_smoothing: 0.1 is for task: classification"),
        ("detection", "model.pool_padding=mindcv", "model.pool_padding: 'mindcv' is for task: classification"),
        ("classification", "detection.hidden=32", "--set: detection.hidden: 32 is for task: detection"),
        ("classification", "model.masks=false", "--set: model.masks: false is for task: detection"),
    ],
)
def test_a_task_refuses_the_keys_of_the_other(tmp_path, task, override, words):
    (tmp_path / "x.yaml").write_text(f"task: {task}\n")
    with pytest.raises(UserError, match=f"^{re.escape(words)}" if words.startswith("--") else words):
        load_config(tmp_path / "x.yaml", [override])
    assert load_config(tmp_path / "x.yaml").task == task


class Seer(ms.nn.Cell):
    """A network that finds the objects it was told of, whatever image it is shown: for the first two images."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = [ms.Tensor(output) for output in outputs]

    def construct(self, images, valid):
        return tuple(self.outputs)


def test_evaluation_takes_what_the_network_returns_back_to_the_images(folder):
    """All test images in one batch, so that their true objects can be returned."""
    task = create_task(config(folder, "train.eval_batch_size=4"), ALONE)
    transform = task.dataset.train_transform(8, 1, 0.0)
    transform = [one for one in transform if type(one).__name__ != "Mirror"]
    from rpg_ms.data.transforms import apply

    rows = [apply(transform, task.dataset.test.sample(i)) for i in range(4)]
    boxes, labels, masks = (np.stack([row[name] for row in rows]) for name in ("boxes", "labels", "masks"))
    masks = masks.reshape(4, 8, 28, 2, 28, 2).mean((3, 5)).astype(np.float32)
    scores = (0.9 * (labels > 0)).astype(np.float32)
    figures = task.evaluate(Seer(boxes, scores, labels, masks))
    assert figures["box_ap"] == pytest.approx(100) and figures["mask_ap50"] > 90
    assert list(figures) == [figure.name for figure in TASKS["detection"].figures]


LONG = 900  # seconds for a process on a busy machine


@pytest.fixture(scope="module")
def run(folder):
    result = door("train.py", "--config", "tiny.yaml", "--output_dir", "whole", cwd=folder, timeout=LONG)
    summary = last_json(result)
    assert summary["steps"] == STEPS and summary["nonzero"] == round(0.2 * summary["prunable"])
    return summary


def test_a_run_that_was_cut_off_goes_on_to_the_bit(folder, run):
    """What a run leaves that ended after its second epoch, as a checkpoint is written each."""
    whole, cut = folder / "whole", folder / "cut"
    (cut / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", f"checkpoints/step-{STEPS - 4:09d}.ckpt"):
        shutil.copy(whole / name, cut / name)
    resumed = last_json(door("train.py", "--config", "tiny.yaml", "--resume", "cut", cwd=folder, timeout=LONG))
    assert {**resumed, "seconds": 0} == {**run, "seconds": 0}
    assert (cut / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    one, two = (ms.load_checkpoint(str(path / "last.ckpt")) for path in (whole, cut))
    for name, value in one.items():
        if isinstance(value, ms.Tensor):
            assert np.array_equal(value.asnumpy(), two[name].asnumpy()), name


def test_a_checkpoint_is_evaluated_on_a_folder_with_test_images_alone(folder, run):
    (folder / "others").mkdir()
    shutil.copytree(folder / "shapes/val", folder / "others/val")
    shutil.copy(folder / "shapes/instances_val.json", folder / "others")
    arguments = ["--config", "whole/config.yaml", "--checkpoint_path", "whole/last.ckpt"]
    figures = last_json(door("eval.py", *arguments, "--set", "data.root=others", cwd=folder, timeout=LONG))
    assert {**figures, "seconds": 0} == {**run, "seconds": 0}
    refused(
        door("train.py", "--config", "tiny.yaml", "--set", "data.root=others", "--output_dir", "none", cwd=folder),
        "data.root: others: wanted is one file instances_train.json",
    )


def test_predictions_for_pictures_of_any_size(folder, run):
    pictures = folder / "mine/below"
    pictures.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for i, (height, width) in enumerate([(50, 90), (64, 64)]):
        Image.fromarray(shapes.picture(rng, height, width, 3)[0]).save(pictures / f"{i}.png")
    Image.fromarray(rng.integers(0, 255, (30, 20), np.uint8)).save(folder / "0.png")  # grey, of the same name
    arguments = ["--config", "whole/config.yaml", "--checkpoint_path", "whole/last.ckpt", "--output", "out"]
    arguments += ["--set", "detection.score_threshold=0.01"]
    line = last_json(door("predict", "mine", "0.png", *arguments, cwd=folder, timeout=LONG))
    assert line == {"predictions": "out/predictions.json", "images": 3}
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["0-2.png", "0.png", "1.png", "predictions.json"]
    document = json.loads((folder / "out/predictions.json").read_text())
    assert document["task"] == "detection" and document["num_classes"] == 4
    assert [one["picture"] for one in document["images"]] == ["0.png", "1.png", "0-2.png"]
    assert any(one["objects"] for one in document["images"])
    for one in document["images"]:
        for found in one["objects"]:
            x1, y1, x2, y2 = found["box"]
            assert 0 <= x1 <= x2 <= one["width"] and 0 <= y1 <= y2 <= one["height"]
            assert found["name"] == shapes.CLASSES[found["class"] - 1] and 0.01 < found["score"] <= 1
            assert found["mask"]["size"] == [one["height"], one["width"]]
        scores = [found["score"] for found in one["objects"]]
        assert scores == sorted(scores, reverse=True)


def test_an_exported_detector_is_compared_detection_by_detection(folder, run):
    """In ONNX, by another runtime: the file is verified on 64 images before it gets its name."""
    arguments = ["--config", "whole/config.yaml", "--checkpoint_path", "whole/last.ckpt", "--file_name", "net"]
    arguments += ["--set", "detection.score_threshold=0.01"]
    printed = last_json(door("export.py", "--file_format", "ONNX", *arguments, cwd=folder, timeout=LONG))
    assert 0 <= printed["max_abs_difference"] < 5e-5 * 64 and (folder / "net.onnx").exists()
    refused(door("export.py", "--softmax", "--file_format", "ONNX", *arguments, cwd=folder, timeout=LONG), "--softmax")


def test_detections_are_aligned_by_class_and_place(folder):
    task = create_task(config(folder), ALONE)
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 60, (1, 5, 4)).astype(np.float32)
    scores, labels = np.float32([[0.9, 0.8, 0.8, 0.3, 0]]), np.int32([[1, 2, 1, 1, 0]])
    masks = rng.random((1, 5, 28, 28)).astype(np.float32)
    expected = task.expected_outputs((boxes, scores, labels, masks), False)
    assert not any(one[0, 4].any() for one in expected)  # padding
    order = [2, 1, 0, 3, 4]  # another runtime swaps two of nearly the same score
    found = tuple(one[:, order] for one in expected)
    assert all(np.array_equal(a, b) for a, b in zip(task.aligned(found, expected), expected))
    lost = tuple(np.concatenate([one[:, 1:], 0 * one[:, :1]], 1) for one in expected)
    assert (task.decisions(task.aligned(lost, expected)) != task.decisions(expected)).sum() == 1

import json

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from doors import door, refused
from rpg_ms.commands.predict import earlier_files, image_files, picture_names
from rpg_ms.config import Config, DataConfig, TrainConfig
from rpg_ms.errors import UserError
from rpg_ms.tasks import create_task
from rpg_ms.training.distributed import ALONE


def test_files_and_folders_are_taken_in_order(tmp_path):
    (tmp_path / "b/c").mkdir(parents=True)
    for name in ("b/2.PNG", "b/c/1.jpg", "b/notes.txt", "a.tif"):
        (tmp_path / name).write_bytes(b"")
    found = image_files([str(tmp_path / "b"), str(tmp_path / "a.tif")])
    assert found == [str(tmp_path / name) for name in ("b/2.PNG", "b/c/1.jpg", "a.tif")]
    with pytest.raises(UserError, match="gone.png: no such file or folder"):
        image_files([str(tmp_path / "gone.png")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no images"):
        image_files([str(tmp_path / "empty")])


def test_no_two_pictures_have_one_name():
    assert picture_names(["a/x.png", "b/x.jpg", "x-2.png", "x.gif"]) == ["x.png", "x-2.png", "x-2-2.png", "x-3.png"]


def test_only_an_earlier_prediction_is_replaced(tmp_path):
    assert earlier_files(tmp_path / "new") == [] and earlier_files(tmp_path) == ["predictions.json"]
    (tmp_path / "x.png").write_bytes(b"somebody's")
    with pytest.raises(UserError, match="holds x.png, which is not of an earlier prediction"):
        earlier_files(tmp_path)
    document = {"images": [{"picture": "x.png"}, {"picture": "../y.png"}]}
    (tmp_path / "predictions.json").write_text(json.dumps(document))
    assert earlier_files(tmp_path) == ["predictions.json", "x.png", "y.png"]
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(UserError, match="holds notes.txt"):
        earlier_files(tmp_path)
    (tmp_path / "predictions.json").write_text("[1]")
    with pytest.raises(UserError, match="predictions.json is not of an earlier prediction"):
        earlier_files(tmp_path)


def test_an_image_that_cannot_be_read_ends_it_before_anything_is_written(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    arguments = ["--config", "quickstart", "--checkpoint_path", "x.ckpt", "--output", "new"]
    refused(door("predict", "bad.png", *arguments, cwd=tmp_path), "bad.png: not a readable image")
    assert not (tmp_path / "new").exists()


def test_the_classes_of_a_picture_of_any_size():
    """Of the dataset's own images the prediction is that of its test images."""
    task = create_task(Config(data=DataConfig(limit=8), train=TrainConfig(batch_size=8)), ALONE)
    ms.set_seed(0)
    network = task.network().set_train(False)
    outputs = network(ms.Tensor(task.inputs(3))).asnumpy()
    (wanted,) = task.expected_outputs((outputs,), softmax=True)
    for i in range(3):
        image = task.dataset.test.image(i).convert("RGB")
        found = task.predict(network, image)["classes"]
        assert len(found) == 5 and [one["class"] for one in found] == np.argsort(-wanted[i])[:5].tolist()
        assert found[0]["probability"] == pytest.approx(wanted[i].max(), rel=1e-5)
        assert found[0]["name"] == task.dataset.class_names[found[0]["class"]]
        drawn = task.draw(image, {"classes": found})
        assert drawn.width >= 256 and drawn.height > drawn.width, "enlarged, with a line of text below"
    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 300, 3), np.uint8))
    assert len(task.predict(network, large)["classes"]) == 5

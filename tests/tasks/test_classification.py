import json
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

import image_files
from conftest import PROJECT
from doors import TINY, door, refused
from rpg_ms.config import Config, DataConfig, TrainConfig
from rpg_ms.errors import UserError
from rpg_ms.models import create_model
from rpg_ms.tasks import create_task
from rpg_ms.training.distributed import ALONE

FOLDERS = """
model: {name: cifar_resnet8}
data: {name: imagenet, root: data, image_size: 16, workers: 2}
train: {epochs: 2, batch_size: 6, eval_batch_size: 6, mixup: 0.8, cutmix: 1.0, label_smoothing: 0.1}
pruning: {method: rpg, density: 0.2, update_every: 2}
device_target: CPU
"""


def task(**train):
    return create_task(Config(data=DataConfig(limit=64), train=TrainConfig(batch_size=8, **train)), ALONE)


def test_mixed_batches_have_shares_for_labels_and_go_on_in_mid_run():
    mixing = task(mixup=0.8, cutmix=1.0)
    whole = [batch["label"].asnumpy() for batch in mixing.train_batches(0, 12)]
    late = [batch["label"].asnumpy() for batch in mixing.train_batches(5, 12)]
    assert whole[0].shape == (8, 10) and whole[0].dtype == np.float32
    assert np.array_equal(whole[5:], late)
    assert next(iter(mixing.test_batches()))["label"].dtype == ms.int32
    assert next(iter(task().train_batches(0, 1)))["label"].dtype == ms.int32


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_shares_is_their_cross_entropy(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((8, 10)).astype(np.float32)
    shares = rng.dirichlet(np.ones(10), 8).astype(np.float32)
    loss = task(label_smoothing=smoothing).with_loss(nn.Identity())(ms.Tensor(logits), ms.Tensor(shares))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = -(((1 - smoothing) * shares + smoothing / 10) * log_p).sum(1).mean()
    assert float(loss.asnumpy()) == pytest.approx(wanted, rel=1e-5)


def test_evaluations_of_a_network_that_goes_on_changing():
    """One compiled cell serves them all; it must see new weights, training between them, and other networks."""
    one = task(eval_batch_size=10**6)
    assert next(iter(one.test_batches()))["image"].shape[0] == 64, "no padding beyond the images"
    networks = []
    for seed in (0, 1):
        ms.set_seed(seed)
        networks.append(create_model("cifar_resnet8", 10, 1))
    for _ in range(2):
        for network in networks:
            logits = network.set_train(False)(ms.Tensor(one.inputs(64))).asnumpy()
            correct = np.mean(logits.argmax(1) == one.dataset.test.labels)
            network.set_train(True)
            assert one.evaluate(network)["top1"] == 100 * correct
            assert one.evaluate(network)["top1"] == 100 * correct
            network.linear.bias.set_data(ms.Tensor(np.eye(10, dtype=np.float32)[5] * 1e6))
            assert one.evaluate(network)["top1"] == 100 * np.mean(one.dataset.test.labels == 5)
            network.linear.bias.set_data(ms.Tensor(np.random.default_rng(0).standard_normal(10), ms.float32))


def test_an_odd_batch_cannot_be_mixed():
    with pytest.raises(UserError, match="train.batch_size: 7 is odd"):
        create_task(Config(data=DataConfig(limit=64), train=TrainConfig(batch_size=7, cutmix=1.0)), ALONE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    image_files.class_folders(folder / "data")
    (folder / "folders.yaml").write_text(FOLDERS)
    return folder


def test_training_on_class_folders_with_workers_and_mixing(folders):
    result = door("train.py", "--config", "folders.yaml", "--output_dir", "out", cwd=folders)
    assert result.returncode == 0, result.stderr[-2000:]
    summary = json.loads((folders / "out/summary.json").read_text())
    assert summary["steps"] == 6 and summary["nonzero"] == round(0.2 * summary["prunable"])


def test_an_unreadable_image_ends_training_with_one_line(folders):
    file = folders / "data/train/n02/n02_3.JPEG"
    before = file.read_bytes()
    file.write_bytes(before[:100])
    result = door("train.py", "--config", "folders.yaml", "--output_dir", "broken", cwd=folders)
    file.write_bytes(before)
    refused(
        result, "data/train/n02/n02_3.JPEG: not a readable image", "had come to step", "no checkpoint yet", status=1
    )


@pytest.mark.parametrize(
    "choice, words",
    [
        ("data.root=null", ["data.root: not set"]),
        ("data.root=data/train", ["data/train has no folder train"]),
        ("data.augment=flip", ["data.augment", "crop_flip"]),
        ("train.mixup=-1", ["train.mixup", ">= 0"]),
    ],
)
def test_mistakes(folders, choice, words):
    refused(door("train.py", "--config", "folders.yaml", "--set", choice, cwd=folders), *words)


def test_the_benchmark_of_the_pipeline(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    result = subprocess.run(
        [
            sys.executable,
            str(PROJECT / "scripts/benchmark_data.py"),
            "--config",
            "tiny.yaml",
            "--workers",
            "1",
            "2",
            "--seconds",
            "0.3",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["workers"] for line in lines] == [1, 2]
    for line in lines:
        ratio = line["pipeline_images_per_s"] / line["step_images_per_s"]
        assert line["ratio"] == pytest.approx(ratio, rel=0.05, abs=0.01)
        assert line["together_images_per_s"] > 0

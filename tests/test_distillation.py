"""Training with a teacher, through the front doors."""

import json
import shutil

import mindspore as ms
import numpy as np
import pytest

from doors import TINY, door, killed_door, last_json, refused

TEACH = ["model.pretrained=dense/last.ckpt", "distill.weight=0.7", "checkpoint.every_steps=5"]


def train(out, *settings):
    return ["train.py", "--config", "tiny.yaml", "--output_dir", out, "--set", "data.limit=256", *settings]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation")
    (folder / "tiny.yaml").write_text(TINY)
    last_json(door(*train("dense", "pruning.method=dense", "pruning.alpha=0", "rank.lambda=0"), cwd=folder))
    last_json(door(*train("taught", *TEACH), cwd=folder))
    return folder


def arrays(file):
    return {name: value.asnumpy() for name, value in ms.load_checkpoint(str(file)).items() if name != "rpg_state"}


def test_the_teacher_is_no_part_of_the_run(folder):
    summary = json.loads((folder / "taught/summary.json").read_text())
    assert summary["nonzero"] == round(0.2 * summary["prunable"])
    assert not [name for name in arrays(folder / "taught/last.ckpt") if "teacher" in name]
    start = json.loads((folder / "taught/metrics.jsonl").read_text().splitlines()[0])
    assert start["event"] == "start" and len(start["teacher"]) == 64


def test_resumes_to_the_bit_and_with_the_same_teacher_alone(folder):
    moment = "rpg_ms.training.checkpoint _link before 2"
    killed_door(moment, *train("killed", *TEACH), "--resume", "auto", cwd=folder)
    shutil.copytree(folder / "killed", folder / "other")
    last_json(door(*train("killed", *TEACH), "--resume", "killed", cwd=folder))
    wanted, found = arrays(folder / "taught/last.ckpt"), arrays(folder / "killed/last.ckpt")
    assert wanted.keys() == found.keys()
    assert all(array.tobytes() == found[name].tobytes() for name, array in wanted.items())
    assert (folder / "taught/metrics.jsonl").read_bytes() == (folder / "killed/metrics.jsonl").read_bytes()

    (folder / "dense/last.ckpt").rename(folder / "kept.ckpt")
    shutil.copy(folder / "taught/last.ckpt", folder / "dense/last.ckpt")
    try:
        refused(door(*train("other", *TEACH), "--resume", "other", cwd=folder), "distill.teacher", "not the file")
    finally:
        (folder / "kept.ckpt").replace(folder / "dense/last.ckpt")


def test_a_teacher_of_another_network_changes_what_is_learnt(folder):
    last_json(door(*train("plain", "model.pretrained=dense/last.ckpt", "checkpoint.every_steps=5"), cwd=folder))
    plain, taught = arrays(folder / "plain/last.ckpt"), arrays(folder / "taught/last.ckpt")
    assert any(not np.array_equal(plain[name], taught[name]) for name in plain)
    result = door(
        *train("misfit", "distill.weight=0.5", "distill.teacher=dense/last.ckpt", "distill.model=cifar_vgg19"),
        cwd=folder,
    )
    refused(result, "distill.teacher", "dense/last.ckpt")
    refused(door(*train("none", "distill.weight=0.5"), cwd=folder), "distill.teacher: null stands for model.pretrained")
    assert not (folder / "none").exists()

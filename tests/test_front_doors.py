"""A real tiny run through the three doors, and everything a user can get wrong."""

import fcntl
import json
import os
import shutil
import stat

import mindspore as ms
import numpy as np
import pytest
import yaml

import image_files
from doors import STEPS, TINY, door, last_json, refused
from packed_arrays import same
from rpg_ms.weights import read_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: `folder` with tiny.yaml and the run in `out`."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(TINY)
    result = door("train.py", "--config", "tiny.yaml", "--output_dir", "out", "--seed", 3, cwd=folder)
    assert last_json(result) == json.loads((folder / "out/summary.json").read_text())
    assert "Traceback" not in result.stderr
    return folder


def test_run_folder(run):
    summary = json.loads((run / "out/summary.json").read_text())
    lines = [json.loads(line) for line in (run / "out/metrics.jsonl").read_text().splitlines()]
    assert summary["steps"] == STEPS and summary["seconds"] > 0
    assert summary["nonzero"] == round(0.2 * summary["prunable"])
    assert summary["density"] == summary["nonzero"] / summary["prunable"]
    assert 30 < summary["top1"] <= 100  # chance is 10
    values = ms.load_checkpoint(str(run / "out/last.ckpt"))
    matrices = [
        values[name[:-5]].asnumpy().reshape(len(values[name]), -1)
        for name in values
        if name.endswith(".weight_mask") and ":" not in name
    ]
    assert summary["rank"] == pytest.approx(
        np.mean([100 * np.linalg.matrix_rank(matrix) / min(matrix.shape) for matrix in matrices])
    )
    events = {
        event: [line for line in lines if line["event"] == event]
        for event in ("start", "train", "topology", "evaluation")
    }
    assert [line["density"] for line in events["start"]] == [1.0]
    assert [line["step"] for line in events["train"]] == list(range(4, STEPS + 1, 4))
    assert [line["step"] for line in events["topology"]] == list(range(3, 34, 3))
    assert [line["step"] for line in events["evaluation"]] == [16, 32, 48]
    densities = [line["density"] for line in events["topology"]]
    assert densities == sorted(densities, reverse=True)
    for line in events["topology"]:
        assert sum(line["layer_nonzero"]) == line["nonzero"] and -1 <= line["rank_loss"] < 0
    assert events["topology"][-1]["nonzero"] == summary["nonzero"]
    assert events["evaluation"][-1]["top1"] == summary["top1"]
    config = yaml.safe_load((run / "out/config.yaml").read_text())
    assert config["seed"] == 3 and config["output_dir"] == "out" and config["pruning"]["schedule"] == "exponential"


def test_checkpoint_holds_weights_masks_optimizer_and_step(run):
    values = ms.load_checkpoint(str(run / "out/last.ckpt"))
    masks = [name for name in values if name.endswith(".weight_mask") and ":" not in name]
    assert len(masks) == 8
    for name in masks:
        mask, weight = values[name].asnumpy(), values[name[:-5]].asnumpy()
        moment = values["optimizer:moments." + name[:-5]].asnumpy()
        assert not weight[~mask].any() and not moment[~mask].any() and moment.any()
    assert values["optimizer:global_step"].asnumpy().tolist() == [STEPS]
    assert json.loads(values["rpg_state"])["step"] == STEPS


def test_eval_repeats_the_figure_to_the_digit(run):
    summary = json.loads((run / "out/summary.json").read_text())
    for config in ("tiny.yaml", "out/config.yaml"):
        figures = last_json(door("eval.py", "--config", config, "--checkpoint_path", "out/last.ckpt", cwd=run))
        assert figures == summary


def export(run, file_format, name, *options, checkpoint="out/last.ckpt"):
    shared = ["--config", "tiny.yaml", "--checkpoint_path", checkpoint, "--file_format", file_format]
    return door("export.py", *shared, "--file_name", name, *options, cwd=run)


@pytest.mark.parametrize("options", [[], ["--dynamic_batch"]], ids=["fixed", "dynamic"])
def test_export_mindir(run, options):
    report = last_json(export(run, "MINDIR", "exported/net", *options))
    summary = json.loads((run / "out/summary.json").read_text())
    assert report["max_abs_difference"] <= 1e-5
    assert [report[key] for key in ("top1", "density", "nonzero")] == [
        summary[key] for key in ("top1", "density", "nonzero")
    ]
    assert sorted(os.listdir(run / "exported")) == ["net.mindir", "net.mindir.json"]
    assert stat.S_IMODE((run / "exported").stat().st_mode) & 0o055, "closed for other users"
    from mindspore import nn

    net = nn.GraphCell(ms.load(str(run / "exported/net.mindir")))
    assert net(ms.Tensor(np.zeros((1, 1, 28, 28), np.float32))).shape == (1, 10)
    if options == ["--dynamic_batch"]:
        assert net(ms.Tensor(np.zeros((5, 1, 28, 28), np.float32))).shape == (5, 10)
    weights = {p.name: p.asnumpy() for p in net.get_parameters()}
    values = ms.load_checkpoint(str(run / "out/last.ckpt"))
    for name in values:
        if name.endswith(".weight_mask"):
            assert np.array_equal(weights[name[:-5]], values[name[:-5]].asnumpy())


def test_export_onnx(run):
    import onnxruntime

    report = last_json(export(run, "ONNX", "onnx/net.onnx", "--batch_size", 8, "--normalize_input", "--softmax"))
    beside = json.loads((run / "onnx/net.onnx.json").read_text())
    summary = json.loads((run / "out/summary.json").read_text())
    assert report["top1"] == beside["top1"] == summary["top1"] and report["max_abs_difference"] <= 1e-5
    assert report["nonzero_multiply_adds"] < 0.5 * report["multiply_adds"]
    session = onnxruntime.InferenceSession(str(run / "onnx/net.onnx"))
    outputs = session.run(None, {"images": np.full(beside["input_shape"], 255, np.float32)})[0]
    assert outputs.shape == (8, beside["classes"]) and np.allclose(outputs.sum(1), 1)


def test_export_packed(run):
    """A packed file is the checkpoint in a tenth of its bytes: evaluated and exported as that."""
    report = last_json(export(run, "PACKED", "net"))
    summary = json.loads((run / "out/summary.json").read_text())
    assert report["nonzero"] == summary["nonzero"] and report["density"] == summary["density"]
    size = (run / "out/last.ckpt").stat().st_size
    assert report["bytes"] == (run / "net.packed").stat().st_size < 0.2 * size
    assert summary == last_json(door("eval.py", "--config", "tiny.yaml", "--checkpoint_path", "net.packed", cwd=run))
    values = ms.load_checkpoint(str(run / "out/last.ckpt"))
    assert same(
        {name: value.asnumpy() for name, value in values.items() if isinstance(value, ms.Tensor) and ":" not in name},
        read_weights(run / "net.packed"),
    )
    report = last_json(export(run, "MINDIR", "from_packed/net", checkpoint="net.packed"))
    assert report["density"] == summary["density"] and report["max_abs_difference"] <= 1e-5


def test_air_is_for_ascend(run):
    refused(export(run, "AIR", "net"), "AIR", "Ascend")


def test_a_folder_is_no_name_for_an_exported_file(run):
    for file_format in ("MINDIR", "PACKED"):
        refused(export(run, file_format, "exported/"), "--file_name: 'exported/' names a folder")


def test_evaluation_on_images_of_the_training_is_refused(run):
    """The run held nothing out, so every held-out image of an evaluation is one that it was trained on."""
    for name, more in (("eval.py", []), ("export.py", ["--file_name", "x"])):
        refused(
            door(
                name,
                "--config",
                "out/config.yaml",
                "--checkpoint_path",
                "out/last.ckpt",
                *more,
                "--set",
                "data.validation=0.25",
                cwd=run,
            ),
            "last.ckpt: would be evaluated on images that it was "
            "trained on: data.validation is 0.25, in training it was 0.0;",
        )


def test_held_out_images_depend_on_the_seed(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    held_out = [
        "--set",
        "data.validation=0.25",
        "train.epochs=1",
        "pruning.method=dense",
        "pruning.alpha=0",
        "rank.lambda=0",
        "schedule.warmup_epochs=0",
    ]
    summary = last_json(
        door("train.py", "--config", "tiny.yaml", "--output_dir", "out", "--seed", 3, *held_out, cwd=tmp_path)
    )
    evaluation = ["eval.py", "--config", "tiny.yaml", "--checkpoint_path", "out/last.ckpt"]
    assert last_json(door(*evaluation, "--seed", 3, *held_out, cwd=tmp_path)) == summary
    refused(door(*evaluation, *held_out, cwd=tmp_path), "seed is 0, in training it was 3;")
    assert last_json(door(*evaluation, *held_out, "data.validation=0", cwd=tmp_path))["top1"] != summary["top1"]


def test_second_run_in_the_same_folder_loses_nothing(run):
    before = {file.name: file.read_bytes() for file in (run / "out").iterdir() if file.is_file()}
    refused(door("train.py", "--config", "tiny.yaml", "--output_dir", "out", cwd=run), "output_dir: out", "--overwrite")
    assert {file.name: file.read_bytes() for file in (run / "out").iterdir() if file.is_file()} == before


@pytest.mark.parametrize(
    "damage, words",
    [
        ("missing", ["no such checkpoint"]),
        ("folder", ["a directory"]),
        ("empty", ["an empty file"]),
        ("truncated", ["truncated"]),
        ("flipped", ["checksum is wrong"]),
        ("text", ["not a checkpoint"]),
        ("foreign", ["not found: conv1.weight", "not used: x"]),
    ],
)
def test_bad_checkpoints(run, tmp_path, damage, words):
    path = tmp_path / "bad.ckpt"
    whole = (run / "out/last.ckpt").read_bytes()
    if damage == "folder":
        path.mkdir()
    elif damage == "foreign":
        ms.save_checkpoint([{"name": "x", "data": ms.Tensor([1.0, 2.0])}], str(path), crc_check=True)
    elif damage != "missing":
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        path.write_bytes(
            {"empty": b"", "truncated": whole[:-1000], "flipped": bytes(flipped), "text": b"hello"}[damage]
        )
    refused(door("eval.py", "--config", "tiny.yaml", "--checkpoint_path", path, cwd=run), "bad.ckpt", *words)


def test_checkpoint_of_another_network(run):
    result = door(
        "eval.py",
        "--config",
        "tiny.yaml",
        "--set",
        "model.name=cifar_resnet20",
        "--checkpoint_path",
        "out/last.ckpt",
        cwd=run,
    )
    refused(result, "another network", "cifar_resnet8", "72 parameters differ")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--config", "tiny.yaml", "--set", "pruning.density=1.5"], ["pruning.density", "1.5", "(0, 1]"]),
        (["--config", "tiny.yaml", "--set", "pruning.densty=0.5"], ["pruning.densty", "density"]),
        (["--config", "tiny.yaml", "--set", "model.name=resnet5O"], ["model.name", "resnet50"]),
        (["--config", "tiny.yaml", "--set", "data.name=fashion"], ["data.name", "fashion_mnist"]),
        (["--config", "tiny.yaml", "--set", "data.root=nowhere"], ["nowhere"]),
        (
            ["--config", "tiny.yaml", "--set", "pruning.update_every=50"],
            ["pruning.update_every", "50", "cannot|no update"],
        ),
        (["--config", "tiny.yaml", "--set", "pruning.density=0.00001"], ["pruning.density"]),
        (["--config", "tiny.yaml", "--set", "train.batch_size=4096"], ["train.batch_size"]),
        (["--config", "tiny.yaml", "--set", "pruning.exclude=[nolayer]"], ["pruning.exclude", "nolayer"]),
        (["--config", "tiny.yaml", "--device_target", "Ascend"], ["device_target", "Ascend", "CPU"]),
        (["--config", "tiny.yaml", "--output_dir", "/proc/nowhere"], ["/proc/nowhere"]),
        (["--config", "tiny.yaml", "--output_dir", "tiny.yaml"], ["tiny.yaml"]),
        (["--config", "tiny.yaml", "--seed", "many"], ["--seed"]),
        (["--config", "tiny.yaml", "--frobnicate"], ["--frobnicate"]),
    ],
    ids=lambda value: value[-1].split("=")[0].strip("-") if value and value[0].startswith("--") else "",
)
def test_mistakes_in_training(run, arguments, words):
    result = door("train.py", *arguments, cwd=run)
    if "cannot|no update" in words:
        words = [word for word in words if "|" not in word] + ["no update can reach"]
    refused(result, *words)
    assert "mindspore" not in result.stdout.lower()


def test_mindspores_compile_cache_is_refused(run):
    refused(
        door("train.py", "--config", "tiny.yaml", cwd=run, MS_COMPILER_CACHE_ENABLE="1"), "MS_COMPILER_CACHE_ENABLE"
    )


def test_overwrite_takes_away_a_link_and_not_what_it_leads_to(run, tmp_path):
    shutil.copytree(run / "out", tmp_path / "out")
    shutil.copy(run / "tiny.yaml", tmp_path)
    (tmp_path / "out/checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "out/checkpoints").symlink_to(tmp_path / "elsewhere")
    there = sorted(os.listdir(tmp_path / "elsewhere"))
    last_json(
        door(
            "train.py",
            "--config",
            "tiny.yaml",
            "--output_dir",
            "out",
            "--overwrite",
            "--set",
            "train.epochs=1",
            "schedule.warmup_epochs=0",
            cwd=tmp_path,
        )
    )
    assert sorted(os.listdir(tmp_path / "elsewhere")) == there and not (tmp_path / "out/checkpoints").is_symlink()


@pytest.mark.parametrize("flag", [["--overwrite"], ["--resume", "auto"]], ids=" ".join)
def test_two_processes_in_one_folder(run, tmp_path, flag):
    shutil.copytree(run / "out", tmp_path / "out")
    shutil.copy(run / "tiny.yaml", tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with open(tmp_path / "out/metrics.jsonl", "ab") as metrics:
        fcntl.lockf(metrics, fcntl.LOCK_EX)  # as a run holds it
        refused(
            door("train.py", "--config", "tiny.yaml", "--output_dir", "out", "--seed", 3, *flag, cwd=tmp_path),
            "out",
            "another process",
        )
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_check_data_names_every_unreadable_image_before_the_run_begins(tmp_path):
    root = image_files.class_folders(tmp_path / "images")
    config = tmp_path / "x.yaml"
    config.write_text(
        f"data: {{name: imagenet, root: {root}, image_size: 16}}\nmodel: {{name: cifar_resnet8}}\n"
        "train: {epochs: 1, batch_size: 6}\npruning: {method: dense}\ndevice_target: CPU\n"
    )
    arguments = ("train.py", "--config", config, "--output_dir", "out", "--check_data")
    damaged = [root / "train/n01/n01_2.JPEG", root / "val/n10/n10_0.JPEG"]
    whole = [file.read_bytes() for file in damaged]
    damaged[0].write_bytes(whole[0][:600])
    damaged[1].write_bytes(b"")
    result = door(*arguments, cwd=tmp_path)
    *names, last = result.stderr.splitlines()
    assert result.returncode == 2 and last.startswith("train.py: error: 2 of 24 images cannot be read")
    assert sorted(line.partition(": not a readable image: ")[0] for line in names) == list(map(str, damaged))
    assert not (tmp_path / "out").exists()
    for file, content in zip(damaged, whole):
        file.write_bytes(content)
    result = door(*arguments, cwd=tmp_path)
    assert last_json(result)["steps"] == 3 and result.stdout.startswith("all 24 images can be read\n")


def test_one_folder_under_two_names_is_one_folder(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    for name in ("a/", "./a", tmp_path / "a", "b"):
        refused(
            door("train.py", "--config", "tiny.yaml", "--resume", name, "--output_dir", "a", cwd=tmp_path),
            f"{name} is not the folder of a run: it has no config.yaml",
        )

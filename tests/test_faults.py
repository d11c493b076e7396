"""What goes wrong under way is one clear line, and nothing that was there is lost."""

import json
import os
import subprocess
import sys
import time

import mindspore as ms
import numpy as np

import image_files
from conftest import PROJECT
from doors import TINY, door, last_json, refused


def test_loss_that_is_not_finite_names_step_rate_and_last_good_checkpoint(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = [
        "--config",
        "tiny.yaml",
        "--set",
        "optimizer.lr=1e18",
        "pruning.method=dense",
        "pruning.alpha=0",
        "rank.lambda=0",
        "schedule.warmup_epochs=2",
        "train.log_every=100",
    ]
    result = door("train.py", *arguments, "--output_dir", "early", cwd=tmp_path)
    refused(
        result,
        "not finite" if "not finite" in result.stderr else "the loss is",
        "step",
        "learning rate",
        "there is no checkpoint yet",
        status=1,
    )


def test_last_good_checkpoint_is_good(tmp_path):
    """Weights that blow up in the last step before a checkpoint must not take the place of good ones."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = [
        "--config",
        "tiny.yaml",
        "--output_dir",
        "out",
        "--set",
        "pruning.method=gmp",
        "pruning.alpha=0",
        "rank.lambda=0",
        "optimizer.lr=1.0e+6",
        "schedule.warmup_epochs=2.9",
        "checkpoint.every_steps=1",
        "train.epochs=3",
        "checkpoint.keep=100",
    ]
    result = door("train.py", *arguments, cwd=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr[-2000:]
    line = result.stderr.strip().splitlines()[-1]
    assert "last good checkpoint" in line
    values = ms.load_checkpoint(str(tmp_path / "out/last.ckpt"))
    assert all(
        np.isfinite(value.asnumpy()).all()
        for name, value in values.items()
        if name != "rpg_state" and value.asnumpy().dtype.kind == "f"
    )
    assert f"of step {json.loads(values['rpg_state'])['step']}" in line


def test_disk_full_loses_nothing(tmp_path):
    """A limit on the size of files stands for a full disk: the checkpoint cannot be written."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    code = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); sys.argv = sys.argv[1:]; "
        "sys.path.insert(0, __import__('os').path.dirname(sys.argv[0])); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(PROJECT / "train.py"), "--config", "tiny.yaml", "--output_dir", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=dict(os.environ),
    )
    refused(result, "cannot be written", "no checkpoint yet", status=1)
    assert not list((tmp_path / "out").rglob("*.tmp*"))  # no half-written file is left
    last_json(door("train.py", "--config", "tiny.yaml", "--output_dir", "out", "--resume", "auto", cwd=tmp_path))


def test_a_shorter_last_batch_is_left_out(tmp_path):
    """1,000 images in batches of 64: 15 steps an epoch, and 40 images sit out, others each epoch."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    summary = last_json(
        door(
            "train.py",
            "--config",
            "tiny.yaml",
            "--output_dir",
            "out",
            "--set",
            "data.limit=1000",
            "train.epochs=1",
            "pruning.update_every=2",
            cwd=tmp_path,
        )
    )
    assert summary["steps"] == 15


def test_output_folder_whose_name_is_too_long(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    result = door("train.py", "--config", "tiny.yaml", "--output_dir", "a" * 300, cwd=tmp_path)
    refused(result, "output_dir", "too long")


FOLDERS = """
model: {name: cifar_resnet8}
data: {name: imagenet, root: data, image_size: 16}
train: {epochs: 1000, batch_size: 6, log_every: 1}
pruning: {method: dense}
checkpoint: {every_steps: 1}
device_target: CPU
"""


def lines(folder):
    metrics = folder / "out/metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def begun(folder, *arguments, config=TINY):
    """train.py under way: it has logged some lines."""
    (folder / "tiny.yaml").write_text(config)
    before = lines(folder)
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "train.py"), "--config", "tiny.yaml", "--output_dir", "out", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )
    deadline = time.monotonic() + 200
    while lines(folder) < before + 4:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()[-2000:]
        time.sleep(0.05)
    return process


def refused_process(process, *words):
    err = process.communicate(timeout=100)[1]
    refused(subprocess.CompletedProcess(process.args, process.returncode, "", err), *words, status=1)


def test_a_dead_worker_of_the_loader(tmp_path):
    process = begun(
        tmp_path, "--set", "data.workers=2", "model.width=0.25", "train.epochs=1000", "checkpoint.every_steps=4"
    )
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
        os.kill(int(children.read().split()[0]), 9)
    refused_process(
        process,
        "data.workers: worker",
        "SIGKILL",
        "had come to step",
        "last good checkpoint is out/last.ckpt",
        "--resume out goes on",
    )


def test_a_stdout_that_goes_away(tmp_path):
    process = begun(tmp_path, "--set", "checkpoint.every_steps=4")
    process.stdout.close()
    process.stdout = None
    refused_process(
        process,
        "standard output cannot be written: Broken pipe",
        "last good checkpoint is out/last.ckpt",
        "--resume out goes on",
    )


def test_a_stdout_that_is_full():
    """What waits in the buffer until the end is written there as well, and said to be lost."""
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, str(PROJECT / "eval.py"), "--help"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    refused(result, "eval.py: error: standard output cannot be written: No space left on device", status=1)


def test_a_damaged_image_is_met_midway(tmp_path):
    """The run goes on from its checkpoint when the image is mended."""
    image_files.class_folders(tmp_path / "data")
    file = tmp_path / "data/train/n02/n02_3.JPEG"
    whole = file.read_bytes()
    process = begun(tmp_path, config=FOLDERS)
    file.write_bytes(whole[:100])
    refused_process(
        process,
        "n02_3.JPEG: not a readable image",
        "had come to step",
        "last good checkpoint is out/last.ckpt",
        "--resume out goes on",
    )
    file.write_bytes(whole)
    process = begun(tmp_path, "--resume", "out", config=FOLDERS)
    process.terminate()
    assert "stopped by SIGTERM" in process.communicate(timeout=100)[1]


def test_more_steps_than_can_be(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    result = door("train.py", "--config", "tiny.yaml", "--set", "train.epochs=2147483647", cwd=tmp_path)
    refused(result, "train.epochs: 2147483647 epochs of 16 steps are 34359738352 steps, more than 10000000")


def test_a_sink_larger_than_anything(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    last_json(
        door(
            "train.py",
            "--config",
            "tiny.yaml",
            "--set",
            "train.sink_size=2147483647",
            "train.log_every=2147483647",
            "train.epochs=1",
            "pruning.method=dense",
            "pruning.alpha=0",
            "rank.lambda=0",
            cwd=tmp_path,
        )
    )

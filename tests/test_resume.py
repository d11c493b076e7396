"""Interrupted and resumed runs end as if nothing had happened, to the bit."""

import json
import os
import shutil
import signal

import mindspore as ms
import numpy as np
import pytest

from doors import TINY, door, killed_door, last_json, refused
from rpg_ms.training.checkpoint import Checkpoints
from rpg_ms.training.distributed import ALONE

# Everything that has a state: momentum, average, micro-batches, augmentation, mid-epoch steps.
OPTIONS = [
    "train.ema_decay=0.9",
    "train.micro_batches=2",
    "data.augment=auto",
    "checkpoint.every_steps=5",
    "data.workers=1",
    "train.clip_norm=5.0",
]


def train(cwd, out, *arguments):
    return ["train.py", "--config", "tiny.yaml", "--output_dir", out, "--set", *OPTIONS, *arguments]


def content(folder):
    """What must be equal: all arrays of the checkpoint, the metrics' bytes, the summary but for the clock."""
    values = ms.load_checkpoint(str(folder / "last.ckpt"))
    state = json.loads(values.pop("rpg_state"))
    state.pop("seconds")
    summary = json.loads((folder / "summary.json").read_text())
    summary.pop("seconds")
    arrays = {name: value.asnumpy() for name, value in values.items()}
    return arrays, state, summary, (folder / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "tiny.yaml").write_text(TINY)
    last_json(door(*train(folder, "whole"), cwd=folder))
    return folder


def assert_same(uninterrupted, out):
    wanted, found = content(uninterrupted / "whole"), content(uninterrupted / out)
    assert found[1:] == wanted[1:]
    assert found[0].keys() == wanted[0].keys()
    for name, array in wanted[0].items():
        assert array.tobytes() == found[0][name].tobytes(), name
    assert {"optimizer:moments.conv1.weight", "average:conv1.weight", "conv1.weight_mask"} <= wanted[0].keys()


def test_killed_at_any_moment(uninterrupted):
    """One run, killed five times: before its first checkpoint, while redrawing masks, while writing a checkpoint,
    between the checkpoint and its link, and by a polite SIGTERM.
    """
    moments = [
        "rpg_ms.pruning.pruner update_topology before 1",
        "rpg_ms.cells.train_step set_topology after 25",
        "mindspore save_checkpoint after 2",
        "rpg_ms.training.checkpoint _link before 2",
    ]
    for moment in moments:
        result = killed_door(moment, *train(uninterrupted, "out", "--resume", "auto"), cwd=uninterrupted)
        assert result.returncode == -signal.SIGKILL, (moment, result.stderr[-1000:])
    result = killed_door(
        "rpg_ms.pruning.pruner update_topology after 2",
        *train(uninterrupted, "out"),
        "--resume",
        "out",
        signal="SIGTERM",
        cwd=uninterrupted,
    )
    refused(result, "SIGTERM", "last.ckpt", "--resume", status=143)
    assert not (uninterrupted / "out/summary.json").exists()
    last_json(door(*train(uninterrupted, "out"), "--resume", "out", cwd=uninterrupted))
    assert_same(uninterrupted, "out")
    # Once finished, there is nothing to go on with: the summary is printed again, and nothing changes.
    before = {
        path.name: path.stat().st_mtime_ns
        for path in (uninterrupted / "out").iterdir()
        if path.name not in ("config.yaml",)
    }
    summary = last_json(door(*train(uninterrupted, "out"), "--resume", "out", cwd=uninterrupted))
    assert summary == json.loads((uninterrupted / "out/summary.json").read_text())
    assert before == {
        path.name: path.stat().st_mtime_ns
        for path in (uninterrupted / "out").iterdir()
        if path.name not in ("config.yaml",)
    }


def test_damaged_checkpoint_is_named_and_the_one_before_used(uninterrupted):
    out = uninterrupted / "damaged"
    shutil.copytree(uninterrupted / "whole", out)
    (out / "summary.json").unlink()
    files = sorted(os.listdir(out / "checkpoints"))
    assert len(files) == 2  # the newest two are kept
    newest = out / "checkpoints" / files[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    result = door(*train(uninterrupted, "damaged"), "--resume", "damaged", cwd=uninterrupted)
    last_json(result)
    assert files[-1] in result.stdout + result.stderr and f"after step {int(files[0][5:-5])}" in result.stdout
    assert_same(uninterrupted, "damaged")


@pytest.mark.parametrize("keep, steps", [(1, [60]), (2, [50, 60])])
def test_a_damaged_checkpoint_does_not_displace_whole_ones(tmp_path, monkeypatch, keep, steps):
    """That of step 100 is damaged: the run went on after step 50, and was stopped at step 60."""
    monkeypatch.setattr("rpg_ms.training.checkpoint.save", lambda path, *_: path.write_bytes(b""))
    checkpoints = Checkpoints(tmp_path, 2, ALONE)
    for step in 50, 100:
        checkpoints.save(None, None, {"step": step}, False)
    Checkpoints(tmp_path, keep, ALONE).save(None, None, {"step": 60}, False)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [f"step-{step:09d}.ckpt" for step in steps]


def test_all_checkpoints_damaged(uninterrupted):
    out = uninterrupted / "hopeless"
    shutil.copytree(uninterrupted / "whole", out)
    (out / "summary.json").unlink()
    for path in (out / "checkpoints").iterdir():
        path.write_bytes(b"junk")
    result = door(*train(uninterrupted, "hopeless"), "--resume", "hopeless", cwd=uninterrupted)
    assert result.returncode == 2 and "no whole checkpoint left" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_changed_configuration(uninterrupted):
    arguments = [*train(uninterrupted, "whole"), "optimizer.lr=0.2", "data.workers=2"]
    refused(
        door(*arguments, "--resume", "whole", cwd=uninterrupted), "optimizer.lr (was 0.1, now 0.2)", "--allow_changes"
    )
    arguments = [*train(uninterrupted, "whole"), "data.workers=2", "--resume", "whole"]
    last_json(door(*arguments, cwd=uninterrupted))  # what does not change the result is free
    refused(door(*train(uninterrupted, "nowhere"), "--resume", "nowhere", cwd=uninterrupted), "nowhere")


@pytest.mark.parametrize(
    "change, lacking",
    [
        ("optimizer.name=adam", "optimizer:"),
        ("train.amp_level=O2", "scaler:"),
        ("pruning={method: st3, alpha: 0}", "optimizer:moments.latent"),
    ],
)
def test_what_no_checkpoint_has_a_state_for_cannot_change(uninterrupted, change, lacking):
    """Not even with --allow_changes, and the run is left as it was."""
    whole = uninterrupted / "whole"
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    refused(
        door(*train(uninterrupted, "whole", change), "--resume", "whole", "--allow_changes", cwd=uninterrupted),
        f"holds no {lacking}",
        "the run began with another",
    )
    assert before == {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "changes",
    [
        ["pruning.density=0.05"],
        ["pruning.method=gmp", "pruning.alpha=0", "rank.lambda=0", "pruning.density=0.19", "train.epochs=4"],
    ],
    ids=["at the end", "beyond T_prune"],
)
def test_a_target_that_no_update_is_left_to_reach(uninterrupted, changes):
    whole = uninterrupted / "whole"
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    refused(
        door(*train(uninterrupted, "whole", *changes), "--resume", "whole", "--allow_changes", cwd=uninterrupted),
        "pruning.density: 0.",
        "after step 48",
        "no topology update is left",
    )
    assert before == {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}


def test_lost_files(uninterrupted):
    """Without config.yaml nobody knows what the checkpoint was trained with; without metrics.jsonl the run goes on."""
    shutil.copytree(uninterrupted / "whole", uninterrupted / "lost")
    for name in ("config.yaml", "summary.json"):
        (uninterrupted / "lost" / name).unlink()
    arguments = [*train(uninterrupted, "lost"), "optimizer.lr=0.2", "--resume", "auto"]
    refused(door(*arguments, cwd=uninterrupted), "lost holds a run without config.yaml", "--allow_changes")
    refused(
        door(*arguments, "--allow_changes", "--set", "optimizer.name=adam", cwd=uninterrupted),
        "holds no optimizer:",
        "the run began with another optimizer",
    )
    (uninterrupted / "lost/metrics.jsonl").unlink()
    last_json(door(*arguments, "--allow_changes", cwd=uninterrupted))
    assert b"\0" not in (uninterrupted / "lost/metrics.jsonl").read_bytes()


def test_killed_between_the_last_checkpoint_and_the_summary(uninterrupted):
    out = uninterrupted / "no_summary"
    shutil.copytree(uninterrupted / "whole", out)
    (out / "summary.json").unlink()
    last_json(door(*train(uninterrupted, "no_summary"), "--resume", "no_summary", cwd=uninterrupted))
    assert_same(uninterrupted, "no_summary")


def test_changed_length(uninterrupted):
    """Of the data, which its key does not tell; and of a finished run, on purpose."""
    out = uninterrupted / "length"
    shutil.copytree(uninterrupted / "whole", out)
    arguments = [*train(uninterrupted, "length"), "--resume", "length", "--allow_changes"]
    refused(door(*arguments, "--set", "train.epochs=2", cwd=uninterrupted), "step 48", "32")
    assert last_json(door(*arguments, "--set", "train.epochs=4", cwd=uninterrupted))["steps"] == 64
    # The best checkpoint is chosen anew: it might have had another density.
    assert json.loads(ms.load_checkpoint(str(out / "best.ckpt"))["rpg_state"])["step"] == 64
    (out / "summary.json").unlink()
    path = out / "config.yaml"
    path.write_text(path.read_text().replace("epochs: 4", "epochs: 3"))  # as if each epoch had become shorter
    refused(door(*arguments[:-1], cwd=uninterrupted), "began with 64 steps in all, now it would have 48")


def test_folder_without_a_run(uninterrupted):
    (uninterrupted / "empty").mkdir()
    refused(
        door(*train(uninterrupted, "empty"), "--resume", "empty", cwd=uninterrupted), "empty is not the folder of a run"
    )
    refused(door(*train(uninterrupted, "empty"), "--resume", "other", cwd=uninterrupted), "different folders")


def test_best_checkpoint_is_the_best_at_target_density(uninterrupted):
    lines = [json.loads(line) for line in (uninterrupted / "whole/metrics.jsonl").read_text().splitlines()]
    at_target = [line for line in lines if line["event"] == "evaluation" and line["step"] >= 27]
    best = max(at_target, key=lambda line: line["top1"])
    state = json.loads(ms.load_checkpoint(str(uninterrupted / "whole/best.ckpt"))["rpg_state"])
    assert (state["step"], state["best"]) == (best["step"], best["top1"])


def test_average_is_exactly_as_sparse_and_can_be_evaluated_and_exported(uninterrupted):
    values = ms.load_checkpoint(str(uninterrupted / "whole/last.ckpt"))
    masks = [name for name in values if name.endswith("weight_mask")]
    assert masks
    for name in masks:
        mask, average = values[name].asnumpy(), values["average:" + name[:-5]].asnumpy()
        assert not average[~mask].any()
        assert not np.array_equal(average, values[name[:-5]].asnumpy())
    summary = json.loads((uninterrupted / "whole/summary.json").read_text())
    arguments = ["--config", "whole/config.yaml", "--checkpoint_path", "whole/last.ckpt", "--ema"]
    assert last_json(door("eval.py", *arguments, cwd=uninterrupted))["top1"] == summary["top1_ema"]
    report = last_json(door("export.py", *arguments, "--file_name", "average", cwd=uninterrupted))
    assert report["density"] == summary["density"] and report["max_abs_difference"] <= 1e-5

"""Many devices, as CPU processes under msrun: what the ranks agree on, and how a real run ends."""

import json
import os
import re
import signal

import numpy as np
import pytest

import distributed_worker
from conftest import PROJECT
from doors import TINY
from jobs import copied, finish, launch, marked, wait_for
from rpg_ms.config import load_config
from rpg_ms.errors import UserError
from rpg_ms.tasks import create_task
from rpg_ms.training import build, checkpoint
from rpg_ms.training.distributed import ALONE, join

EVAL = """
data: {name: fashion_mnist, limit: 101}
train: {batch_size: 8, eval_batch_size: 16}
device_target: CPU
"""


@pytest.fixture(scope="module", params=[(2, "graph"), (4, "pynative")], ids=["2 ranks graph", "4 ranks pynative"])
def ranks(request, tmp_path_factory):
    """What each rank of a job saw: a list of dicts."""
    size, mode = request.param
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "eval.yaml").write_text(EVAL)
    worker = (
        f"import sys; sys.path.insert(0, {str(PROJECT / 'tests')!r})\n"
        f"sys.argv[1:] = [{mode!r}, {str(folder)!r}]\n"
        "import distributed_worker; distributed_worker.main()\n"
    )
    status, out, err = finish(launch(copied(folder / "project", worker), folder / "eval.yaml", size, cwd=folder))
    assert status == 0, err[-3000:]
    assert out == "printed by rank 0\n"
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(size)]


def test_gathered_values_are_exact(ranks):
    size = len(ranks)
    every = range(size)
    expected = [
        np.array([[2**62 + rank, -1] for rank in every]),
        np.array([np.pi * (rank + 1) for rank in every]),
        np.array([[[rank == 1]] for rank in every]),
        np.float32([[-0.0, np.nan, 1e-45]] * size),
    ]
    for seen in ranks:
        assert seen["size"] == size
        assert seen["gathered"] == [value.tobytes().hex() for value in expected]


def test_different_weights_become_those_of_rank_0(ranks):
    assert len({seen["own"] for seen in ranks}) == len(ranks)
    assert {seen["broadcast"] for seen in ranks} == {ranks[0]["own"]}


def test_weights_and_masks_stay_equal_on_all_ranks(ranks):
    for seen in ranks:
        assert seen["trained"] == ranks[0]["trained"]
    assert len({str(masks) for masks in ranks[0]["trained"]["masks"]}) == 3  # dense, and two updates


def test_rank_gradients_that_differ_between_the_ranks_part_nothing(ranks):
    assert len(set(ranks[0]["other_rounding"])) == 5
    for seen in ranks:
        assert seen["other_rounding"] == ranks[0]["other_rounding"]


def test_ranks_follow_one_rank_with_the_global_batch(ranks):
    together, alone = ranks[0]["trained"], ranks[0]["alone"]
    np.testing.assert_allclose(together["losses"], alone["losses"], rtol=1e-5)
    assert together["masks"] == alone["masks"]
    for ours, theirs in zip(together["weights"], alone["weights"]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_divergence_is_noticed_by_every_rank(ranks):
    size = len(ranks)
    assert {seen["agreed"] for seen in ranks} == {ranks[0]["trained"]["digests"][-1]}
    for seen in ranks:
        assert seen["divergence"] == (
            f"weights or masks differ between the ranks after step 6: rank 1 of {size} against rank 0"
        )


def test_ranks_that_go_on_after_different_steps_are_told(ranks):
    size = len(ranks)
    for seen in ranks:
        assert seen["other_steps"] == (
            f"steps: {', '.join(['5', '0'] + ['5'] * (size - 2))}, on ranks 0 to {size - 1}; "
            "every node must be able to read the run's folder"
        )


def test_statistics_are_averaged_and_weights_are_not(ranks):
    for rank, seen in enumerate(ranks):
        assert seen["moving_mean"] == [(len(ranks) - 1) / 2, 5.0] and seen["gamma"] == [rank, 5.0]


def test_evaluation_counts_every_image_once_at_any_size(ranks, tmp_path):
    (tmp_path / "eval.yaml").write_text(EVAL)
    alone = distributed_worker.evaluate(tmp_path / "eval.yaml", ALONE)
    assert len(alone["labels"]) == 101 and 0 < alone["top1"] < 100
    for seen in ranks:
        assert seen["evaluation"]["top1"] == alone["top1"]
        assert seen["evaluation"]["steps_per_epoch"] == 101 // (8 * len(ranks))
    assert sorted(sum((seen["evaluation"]["labels"] for seen in ranks), [])) == sorted(alone["labels"])


def test_a_run_on_two_ranks(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = ["--output_dir", "out", "--set", "train.batch_size=64", "--set", "train.epochs=1"]
    status, out, err = finish(launch(PROJECT, "tiny.yaml", 2, *arguments, cwd=tmp_path, LOG_DIR="logs"))
    assert status == 0, err[-3000:]
    summary = json.loads(out.splitlines()[-1])
    assert summary == json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["steps"] == 1024 // (2 * 64) and summary["nonzero"] == round(0.2 * summary["prunable"])
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "topology"] == [3]
    assert all(len(line["digest"]) == 32 for line in lines if line["event"] == "topology")
    assert [line["step"] for line in lines if line["event"] == "train"] == [4, 8]
    assert "top1" not in (tmp_path / "logs/worker_1.log").read_text()
    # The checkpoint holds what was evaluated.
    task = create_task(load_config(tmp_path / "tiny.yaml"), ALONE)
    network, found = build.build_network(task.config, task)
    checkpoint.load_network(tmp_path / "out/last.ckpt", network, found)
    assert task.evaluate(network)["top1"] == summary["top1"] and found.nonzero == summary["nonzero"]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["divergence", "SIGKILL", "SIGINT", "SIGTERM"])
def test_a_real_run_that_ends_early(tmp_path, end):
    (tmp_path / "tiny.yaml").write_text(TINY)
    tamper = """
import os, sys
import numpy as np
sys.path.insert(0, {project!r})
from rpg_ms.pruning import pruner
honest = pruner.update_topology
def tampering(*args):
    layers = [(weight.copy(), mask) for weight, mask in honest(*args)]
    if os.environ["RANK_ID"] == "1":
        layers[0][0][layers[0][1]] *= np.float32(1.0001)
    return layers
if {divergence}:
    pruner.update_topology = tampering
import runpy
runpy.run_path({train!r}, run_name="__main__")
"""
    project = copied(
        tmp_path / "project",
        tamper.format(project=str(PROJECT), train=str(PROJECT / "train.py"), divergence=end == "divergence"),
    )
    arguments = ["--output_dir", "out", "--set", "train.epochs=1000"]
    process = launch(project, "tiny.yaml", 2, *arguments, cwd=tmp_path, LOG_DIR="logs")
    metrics = tmp_path / "out/metrics.jsonl"
    if end != "divergence":
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, process)
        rank1 = marked(process, "RANK_ID=1", "MS_ROLE=MS_WORKER", str(tmp_path / "project/train.py"))
    if end == "SIGKILL":
        os.kill(rank1[0], signal.SIGKILL)
    elif end in ("SIGINT", "SIGTERM"):
        process.send_signal(getattr(signal, end))
    status, _, err = finish(process)
    if end == "divergence":
        assert status == 2 and err.count("\n") == 2, err
        assert "differ between the ranks after step 3: rank 1 of 2 against" in err
        assert not (tmp_path / "out/summary.json").exists()
    else:
        assert status == {"SIGKILL": 137, "SIGINT": 130, "SIGTERM": 143}[end], err
        assert end != "SIGKILL" or "rank 1 failed with status 137" in err
        if end == "SIGTERM":  # all ranks agreed on a step, and wrote its checkpoint
            found = re.search(r"stopped by SIGTERM after step (\d+) of", err)
            assert found and (tmp_path / f"out/checkpoints/step-{int(found[1]):09d}.ckpt").exists(), err


def test_ranks_without_msrun_do_not_train_alone(monkeypatch):
    monkeypatch.delenv("MS_ROLE", raising=False)
    monkeypatch.setenv("RANK_SIZE", "8")
    with pytest.raises(
        UserError, match="^RANK_SIZE: 8 ranks, but not started by msrun; scripts/run_distribute_train.sh"
    ):
        join()
    monkeypatch.setenv("RANK_SIZE", "1")
    assert join() is ALONE

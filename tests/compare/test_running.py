"""What a comparison runs, and that it goes on wherever it was cut off."""

import json
import os
import signal

import pytest

from comparisons import CONFIG, NETWORK, compare_fakes, fake_command, in_a_group_of_its_own, planned, run_fakes
from doors import command, door, refused
from rpg_ms.compare.results import draw, page, table
from rpg_ms.compare.running import reason


def test_dry_run_lists_and_leaves_nothing(project):
    (project / "runs/rpg_d0.2_s0").mkdir(parents=True)
    run_fakes(planned("gmp"))
    before = sorted(project.rglob("*"))
    result = door(
        "compare",
        "--config",
        "a.yaml",
        "--methods",
        "rpg",
        "gmp",
        "--densities",
        "0.2",
        "--output_dir",
        "runs",
        "--dry_run",
        cwd=project,
    )
    assert result.returncode == 0 and sorted(project.rglob("*")) == before
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["missing", "finished"]


def test_a_failing_run_does_not_stop_the_others(project, monkeypatch, capfd):
    runs = planned("gmp", "bad=gmp", "rpg")
    monkeypatch.setenv("TROUBLE", """if "bad" in folder.name: sys.exit("rpg-ms train: error: out of luck")""")
    failures, documents = run_fakes(runs)
    assert failures == {runs[1].folder: "out of luck (exit status 1)"}
    statuses = [[run["status"] for run in document["runs"]] for document in documents]
    assert statuses[2] == ["finished", "failed", "missing"], "written after every run"
    assert statuses[-1] == ["finished", "failed", "finished"]
    assert capfd.readouterr().out.splitlines() == [
        "[1/3] gmp at 80 % sparsity, seed 0: top-1 accuracy 70.00 %, 1.0 min",
        "[2/3] bad at 80 % sparsity, seed 0: failed: out of luck (exit status 1)",
        "[3/3] rpg at 80 % sparsity, seed 0: top-1 accuracy 70.00 %, 1.0 min",
    ]
    assert "| bad | failed | – |" in page(documents[-1])
    assert "bad at 80 % sparsity, seed 0, failed: out of luck (exit status 1)" in page(documents[-1])
    # The second time only the one that failed is run, and its log goes on.
    monkeypatch.delenv("TROUBLE")
    before = [(run.folder / "summary.json").stat().st_mtime_ns for run in (runs[0], runs[2])]
    failures, documents = run_fakes(planned("gmp", "bad=gmp", "rpg"))
    assert not failures and {run["status"] for run in documents[-1]["runs"]} == {"finished"}
    assert before == [(run.folder / "summary.json").stat().st_mtime_ns for run in (runs[0], runs[2])]
    assert (runs[1].folder / "train.log").read_text().count("at work on bad_d0.2_s0") == 2
    assert (runs[0].folder / "train.log").read_text().count("at work on") == 1
    # Runs without checkpoint are named, and no reason not to end well.
    problems = draw(runs, project)
    assert len(problems) == 3 and all("no last.ckpt" in problem for problem in problems)


def test_failures_are_an_exit_status(project):
    result = compare_fakes("gmp", TROUBLE="sys.exit(3)")
    refused(result, "1 of 1 runs failed", "runs/results.md", status=1)
    assert "| gmp | failed | – |" in result.stdout


@pytest.mark.parametrize(
    "printed, status, said",
    [
        ("loss 1\nrpg-ms train: error: the disk is full\n", 1, "the disk is full (exit status 1)"),
        (
            "Traceback\n  File x\nRuntimeError: broken\n\n----\n- C++ Call Stack\n----\na.cc:1\n",
            1,
            "RuntimeError: broken (exit status 1)",
        ),
        ("epoch 1\n", -signal.SIGKILL, "epoch 1 (killed by SIGKILL)"),
        ("", 7, "it printed nothing (exit status 7)"),
    ],
)
def test_reason_of_a_failure(printed, status, said):
    assert reason(printed, status) == said


STOP = """
if folder.name == "gmp_d0.2_s1":
    def leave(*_):
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            (folder / "checkpoint").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, leave)
    {send}
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "number, send",
    [(signal.SIGINT, "os.killpg(0, signal.SIGINT)"), (signal.SIGTERM, "os.kill(os.getppid(), signal.SIGTERM)")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_stopped(project, number, send):
    """Ctrl-C reaches the whole group, but the run hears of SIGTERM only, and can write its checkpoint."""
    result = compare_fakes("gmp", "rpg", "--seeds", "0", "1", TROUBLE=STOP.format(send=send))
    refused(result, number.name, "runs/results.md", "the same command goes on", status=128 + number)
    assert [line.rpartition(": ")[2] for line in result.stdout.splitlines()] == [
        "top-1 accuracy 70.00 %, 1.0 min",
        "top-1 accuracy 70.00 %, 1.0 min",
        "stopped",
    ]
    assert (project / "runs/gmp_d0.2_s1/checkpoint").exists() and not (project / "runs/rpg_d0.2_s1").exists()
    runs = json.loads((project / "runs/results.json").read_text())["runs"]
    assert [run["status"] for run in runs] == ["finished", "finished", "cut off", "missing"]


def test_two_comparisons_in_one_folder(project):
    trouble = f"import subprocess; sys.exit(subprocess.call({fake_command('gmp')!r}))"
    assert compare_fakes("gmp", TROUBLE=trouble).returncode == 1
    assert "another comparison" in (project / "runs/gmp_d0.2_s0/train.log").read_text()


def test_killed_and_run_again(tmp_path):
    """Two methods with two seeds. They are one method under two names, so that their runs must end alike; one
    is killed with the whole comparison at its second checkpoint."""
    (tmp_path / "tinynet.py").write_text(NETWORK)
    (tmp_path / "a.yaml").write_text(CONFIG)
    line = command(
        "compare",
        "--config",
        "a.yaml",
        "--methods",
        "gmp",
        "twin=gmp,pruning.schedule=cubic",
        "--densities",
        "0.2",
        "--seeds",
        "0",
        "1",
        "--output_dir",
        "runs",
        "--results",
        "table",
    )
    runs = tmp_path / "runs"

    result = in_a_group_of_its_own(line, tmp_path, {"KILL": "twin_d0.2_s0"})
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert sorted(path.parent.name for path in runs.glob("*/summary.json")) == ["gmp_d0.2_s0"]
    assert (runs / "twin_d0.2_s0/last.ckpt").exists()
    assert json.loads((tmp_path / "table/results.json").read_text())["runs"][0]["status"] == "finished"
    before = (runs / "gmp_d0.2_s0/summary.json").stat().st_mtime_ns

    result = in_a_group_of_its_own(line, tmp_path, {})
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "there already" in lines[0] and not any("there already" in line for line in lines[1:])
    assert (runs / "gmp_d0.2_s0/summary.json").stat().st_mtime_ns == before
    assert "going on after step 8 of 16" in (runs / "twin_d0.2_s0/train.log").read_text()
    for seed in (0, 1):
        metrics = [(runs / f"{label}_d0.2_s{seed}/metrics.jsonl").read_bytes() for label in ("gmp", "twin")]
        assert metrics[0] == metrics[1]

    document = json.loads((tmp_path / "table/results.json").read_text())
    for run in document["runs"]:
        summary = json.loads((runs / f"{run['label']}_d0.2_s{run['seed']}/summary.json").read_text())
        assert (run["top1"], run["rank"]) == (summary["top1"], summary["rank"])
    names = [f"{run['label']} {run['seed']}" for run in document["runs"]]
    assert names == ["gmp 0", "twin 0", "gmp 1", "twin 1"]
    for run in document["runs"]:
        assert (run["nonzero"], run["steps"], run["environment"]) == (round(0.2 * run["prunable"]), 16, 0)
    assert document["environments"][0]["versions"]["mindspore"] not in ("", "unknown")
    assert {"results.json", "results.csv", "runs.csv", "results.md", "report.html"} <= set(
        os.listdir(tmp_path / "table")
    )
    assert result.stdout.rstrip().endswith(table(document, "en"))

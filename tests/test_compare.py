"""The comparison: what it refuses, what it counts, and that it goes on wherever it was cut off."""

import csv
import json
import os
import signal
import subprocess

import pytest

from conftest import PROJECT
from doors import command, door, environment, refused
from rpg_ms.compare.grid import Entry, parse_entry, plan
from rpg_ms.compare.results import collect, csv_text, draw, means, page, section, table
from rpg_ms.compare.running import reason, run_missing
from rpg_ms.errors import UserError

# A network of one layer, whose steps take milliseconds. With KILL set to a run's folder name it kills the
# comparison and all it started once the run has written its second checkpoint.
NETWORK = """
import os, signal, sys
from mindspore import nn
from rpg_ms.training.checkpoint import Checkpoints

def build_net():
    return nn.SequentialCell(nn.Flatten(), nn.Dense(784, 10))

if os.path.basename(sys.argv[-1]) == os.environ.get("KILL"):
    honest = Checkpoints.save

    def save(self, *args):
        honest(self, *args)
        if len(self._newest_first()) > 1:
            os.killpg(0, signal.SIGKILL)

    Checkpoints.save = save
"""
CONFIG = """
model: {name: "tinynet:build_net"}
data: {name: fashion_mnist, limit: 256, augment: none}
train: {epochs: 1, batch_size: 16, log_every: 4}
pruning: {method: rpg, update_every: 3, prune_until: 0.6, freeze_after: 0.7}
checkpoint: {every_steps: 4}
device_target: CPU
"""

# In place of `rpg-ms train`: runs the code in TROUBLE, then is finished, top-1 70 + seed.
FAKE = """
import argparse, json, os, signal, sys, time
from pathlib import Path
from rpg_ms.config import add_shared_arguments, dump_config, load_config
del sys.argv[1]
parser = argparse.ArgumentParser()
add_shared_arguments(parser)
parser.add_argument("--resume", choices=["auto"], required=True)
args = parser.parse_args()
folder = Path(args.output_dir)
config = load_config(args.config, args.set, seed=args.seed, output_dir=args.output_dir)
(folder / "config.yaml").write_text(dump_config(config))
print("at work on", folder.name)
exec(os.environ.get("TROUBLE", ""))
summary = {"top1": 70 + args.seed, "density": 0.2, "nonzero": 2, "prunable": 10, "steps": 4, "seconds": 60.0}
(folder / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a configuration, where `python -m rpg_ms` is the package's but for a `train` that only pretends."""
    (tmp_path / "a.yaml").write_text(CONFIG)
    (tmp_path / "rpg_ms").mkdir()
    (tmp_path / "rpg_ms/__init__.py").write_text(
        f"{(PROJECT / 'rpg_ms/__init__.py').read_text()}\n__path__.append({str(PROJECT / 'rpg_ms')!r})\n"
    )
    (tmp_path / "rpg_ms/__main__.py").write_text(
        f"import sys\nif sys.argv[1] == 'train':\n    exec({FAKE!r})\nelse:\n"
        "    from rpg_ms.commands import main\n    main()\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(*methods, seeds=(0,), settings=()):
    return plan("a.yaml", [parse_entry(method) for method in methods], [0.2], seeds, "runs", settings)


def run_fakes(runs):
    documents = []
    failures, stopped_by = run_missing(
        runs, "runs", lambda failures: documents.append(collect(runs, failures, "rpg-ms compare", "a.yaml", []))
    )
    assert stopped_by is None
    return failures, documents


def fake_command(*methods):
    return command("compare", "--config", "a.yaml", "--densities", "0.2", "--output_dir", "runs", "--methods", *methods)


def compare_fakes(*methods, **variables):
    return in_a_group_of_its_own(fake_command(*methods), ".", variables)


def in_a_group_of_its_own(line, cwd, variables):
    return subprocess.run(
        line, cwd=cwd, env=environment(**variables), start_new_session=True, capture_output=True, text=True, timeout=120
    )


# ----------------------------------------------------------------------------------------------------
# What is asked for
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, entry",
    [
        ("rpg", Entry("rpg", "rpg")),
        ("plain=gmp", Entry("plain", "gmp")),
        (
            "RPG λ/2=rpg,rank.lambda=0.25,pruning.alpha=0.1",
            Entry("RPG λ/2", "rpg", ("rank.lambda=0.25", "pruning.alpha=0.1")),
        ),
        (
            "x=gmp,schedule.milestones=[0.5,0.75],pruning.exclude=[a, b]",
            Entry("x", "gmp", ("schedule.milestones=[0.5,0.75]", "pruning.exclude=[a, b]")),
        ),
    ],
)
def test_method_entries(text, entry):
    assert parse_entry(text) == entry


@pytest.mark.parametrize(
    "text, words",
    [
        ("rgp", ["'rgp' is not one of rpg, "]),
        ("a=", ["'' is not one of"]),
        ("=rpg", ["LABEL=METHOD"]),
        ("a\nb=rpg", ["LABEL=METHOD"]),
        ("rpg,rank.lambda=0", ["label", "LABEL=rpg,rank.lambda=0"]),
        ("a=rpg,rank.lambda", ["'rpg,rank.lambda' is not one of"]),
        ("a=rpg,seed=1", ["seed is given by --seeds"]),
        ("a=rpg,pruning={density: 0.1}", ["pruning.method is given by --methods"]),
        ("a=rpg,data.validation=0.5", ["data.validation", "--set, for all methods"]),
    ],
)
def test_method_entries_refused(text, words):
    with pytest.raises(UserError) as error:
        parse_entry(text)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--methods", "rpg", "rgp"], ["'rgp' is not one of rpg, "]),
        (["--methods", "rpg", "gmp", "rpg=gmp"], ["label: rpg is given twice"]),
        (["--methods", "a b=rpg", "a_b=gmp"], ["same folder", "a_b_d0.2_s0"]),
        (["--methods", "rpg", "--densities", "0.1", "1.5"], ["--densities: 1.5 is not in (0, 1]"]),
        (["--methods", "rpg", "--densities", "nan"], ["--densities: nan"]),
        (["--methods", "rpg", "--densities", "0.1", "0.10"], ["--densities: 0.1 is given twice"]),
        (["--methods", "rpg", "--seeds", "1", "1"], ["--seeds: 1 is given twice"]),
        (["--methods", "rpg", "--seeds", "-1"], ["seed", "-1"]),
        (["--methods", "rpg", "--set", "pruning . method=gmp"], ["--set", "method is given by --methods"]),
        (["--methods", "rpg", "--set", "output_dir=x"], ["output_dir is given by --output_dir"]),
        (["--methods", "rpg", "--set", "rank.lamda=1"], ["--set: rank.lamda", "lambda"]),
        (["--methods", "rpg", "x=gmp,pruning.alpha=0.3"], ["x: ", "pruning.alpha"]),
        (["--methods", "rpg", "--results", "a.yaml/x"], ["--results: a.yaml/x cannot be written"]),
        (["--methods", "rpg", "--output_dir", "a.yaml"], ["--output_dir: a.yaml cannot be written"]),
    ],
    ids=lambda value: " ".join(value[1:]) if value[0].startswith("--") else "",
)
def test_mistakes_are_found_before_the_first_run(project, arguments, words):
    result = door("compare", "--config", "a.yaml", "--densities", "0.2", *arguments, cwd=project)
    refused(result, *words)
    assert not result.stdout and not list(project.rglob("config.yaml"))


def test_cells(project):
    runs = planned("gmp", "λ .5/x=rpg,rank.lambda=0.5", "dense", seeds=(3, 4), settings=["rank.lambda=0.1"])
    found = [(run.folder.name, run.config.pruning.method, run.config.rank.lambda_) for run in runs[:3]]
    assert found == [("gmp_d0.2_s3", "gmp", 0.1), ("λ_.5_x_d0.2_s3", "rpg", 0.5), ("dense_d1_s3", "dense", 0.1)]
    assert [run.config.seed for run in runs] == [3, 3, 3, 4, 4, 4]
    assert [run.config.pruning.density for run in runs[:3]] == [0.2, 0.2, 1.0]


def test_a_method_keeps_its_own_values(project):
    """A file made for RPG does not turn the other methods into mixtures of theirs and RPG's values."""
    (project / "a.yaml").write_text(
        CONFIG.replace("pruning: {", "rank: {lambda: 3.0, delta: 0.4}\npruning: {schedule: exponential, alpha: 0.2, ")
    )

    def values(run):
        pruning, rank = run.config.pruning, run.config.rank
        return (
            pruning.schedule,
            pruning.alpha,
            rank.lambda_,
            rank.delta,
            pruning.update_every,
            pruning.prune_until,
            pruning.freeze_after,
        )

    assert [values(run) for run in planned("rpg", "gmp", "rigl", "st3", "both=rigl,rank.lambda=3.0")] == [
        ("exponential", 0.2, 3.0, 0.4, 3, 0.6, 0.7),
        ("cubic", 0.0, 0.0, 0.1, 3, 0.6, 0.7),
        ("constant", 0.3, 0.0, 0.1, 3, 0.75, 0.75),
        ("cubic", 0.0, 0.0, 0.1, 1, 0.5, 1.0),
        ("constant", 0.3, 3.0, 0.1, 3, 0.75, 0.75),
    ]
    assert values(planned("rigl", settings=["pruning.alpha=0.5"])[0])[1] == 0.5


def test_clipping_is_a_methods_own_only_where_it_comes_with_one(project):
    clips = lambda *methods: [run.config.train.clip_norm for run in planned(*methods)]
    assert clips("st3", "rpg", "gmp") == [3.0, None, None]
    (project / "a.yaml").write_text(CONFIG.replace("train: {", "train: {clip_norm: 100.0, "))
    assert clips("rpg", "gmp", "st3") == [100.0, 100.0, 3.0]
    (project / "a.yaml").write_text(
        CONFIG.replace("train: {", "train: {clip_norm: 3.0, ").replace(
            "pruning: {method: rpg", "pruning: {method: st3, alpha: 0"
        )
    )
    assert clips("st3", "rpg", "gmp") == [3.0, None, None]


def test_what_a_file_counts_in_its_own_updates_stays_with_it(project):
    (project / "a.yaml").write_text(CONFIG.replace("pruning: {", "pruning: {warmup_updates: 1, "))
    runs = planned("rpg", "gmp", "granet", "rigl", "set", "one_shot", "st3")
    assert [run.config.pruning.warmup_updates for run in runs] == [1, 1, 1, 0, 0, 0, 0]
    assert planned("granet", settings=["pruning.warmup_updates=2"])[0].config.pruning.warmup_updates == 2


def test_run_of_another_configuration(project):
    run_fakes(planned("gmp"))
    with pytest.raises(UserError, match=r"gmp_d0.2_s0/config.yaml: .* optimizer.lr \(was 0.1, now 0.2\)"):
        planned("gmp", settings=["optimizer.lr=0.2"])
    planned("gmp", settings=["data.workers=2"])  # does not change the result
    (project / "runs/gmp_d0.2_s0/config.yaml").unlink()
    with pytest.raises(UserError, match="without config.yaml"):
        planned("gmp")
    (project / "runs/gmp_d0.2_s0/summary.json").rename(project / "runs/gmp_d0.2_s0/last.ckpt")  # one cut off
    with pytest.raises(UserError, match="without config.yaml"):
        planned("gmp")
    (project / "runs/gmp_d0.2_s0/last.ckpt").rename(project / "runs/gmp_d0.2_s0/metrics.jsonl")  # killed as it began
    planned("gmp")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("summary.json", "", "summary.json: not JSON"),
        ("summary.json", "{}", "summary.json: top1 is missing"),
        ("environment.json", "{", "environment.json: not JSON"),
        ("environment.json", "{}", "environment.json: machine is missing"),
    ],
)
def test_damaged_files_are_named(project, name, content, words):
    run_fakes(planned("gmp"))
    (project / "runs/gmp_d0.2_s0" / name).write_text(content)
    for arguments in [], ["--dry_run"]:
        refused(
            door(
                "compare",
                "--config",
                "a.yaml",
                "--methods",
                "gmp",
                "--densities",
                "0.2",
                "--output_dir",
                "runs",
                *arguments,
                cwd=project,
            ),
            f"runs/gmp_d0.2_s0/{words}",
        )


def test_names_that_no_file_can_have(project):
    for arguments, words in [
        (["--methods", f"{'x' * 300}=gmp"], "File name too long"),
        (["--methods", "gmp", "--output_dir", "x" * 300], "File name too long"),
        (["--methods", "gmp", "--results", b"r\xff"], "not UTF-8 text"),
    ]:
        line = [*command("compare", "--config", "a.yaml", "--densities", "0.2"), *arguments]
        refused(in_a_group_of_its_own(line, project, {}), words)


def test_a_terminal_that_lacks_a_letter(project):
    result = compare_fakes("λ=gmp", "--dry_run", PYTHONIOENCODING="latin-1")
    assert result.returncode == 0 and "\\u03bb at 80 % sparsity" in result.stdout, result.stderr


# ----------------------------------------------------------------------------------------------------
# What is run
# ----------------------------------------------------------------------------------------------------


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


# ----------------------------------------------------------------------------------------------------
# What is written
# ----------------------------------------------------------------------------------------------------


def made_up(**changes):
    """A document of hand-made runs: three methods, two densities, up to three seeds."""

    def run(label, density, seed, top1=None, minutes=1.0, **more):
        figures = (
            {"status": "missing"}
            if top1 is None
            else {
                "status": "finished",
                "top1": top1,
                "density": density,
                "nonzero": 1,
                "prunable": 9,
                "steps": 5,
                "seconds": 60 * minutes,
                "environment": 0,
            }
        )
        if label == "c" and top1 is not None:  # a|b is of an earlier version, whose summaries had no rank
            figures["rank"] = 50 + 10 * seed
        return {
            "label": label,
            "method": "gmp",
            "settings": ["rank.lambda=0", "a.b=[1, 2]"],
            "target_density": density,
            "seed": seed,
            **figures,
            **more,
        }

    document = {
        "command": "rpg-ms compare --config x.yaml",
        "config": "x.yaml",
        "settings": [],
        "evaluated_on": "test",
        "date": "2024-02-29",
        "environments": [
            {
                "machine": {"cpu": "Some CPU", "cores": 2, "memory_gb": 8, "platform": "Linux"},
                "versions": {"python": "3.11.7", "mindspore": "2.7.0"},
            }
        ],
        "runs": [
            run("a|b", 0.02, 0, 90.0, 2),
            run("a|b", 0.02, 1, 92.0, 3),
            run("a|b", 0.02, 2, 94.0, 4),
            run("a|b", 0.005, 0, 80.123, 3),
            run("c", 0.02, 0, 91.0),
            run("c", 0.02, 2, 95.0),
            run("c", 0.02, 1, status="failed", reason="out of luck"),
            run("c", 0.005, 0, 80.121),
            run("d", 0.02, 0, status="failed", reason="x"),
            run("d", 0.005, 0),
        ],
    }
    return {**document, **changes}


TABLE = r"""
| method | 98 % | 99.5 % | minutes per run |
| --- | --- | --- | --- |
| a\|b | 92.00 ± 2.00 (3) | **80.12** (1) | 3.0 |
| c | **93.00 ± 2.83** (2), 1 failed | **80.12** (1) | 1.0 |
| d | failed | – | – |
"""


def test_table():
    assert table(made_up(), "en") == TABLE.strip()
    chinese = table(made_up(), "cn")
    assert chinese == TABLE.strip().replace("method", "方法").replace("minutes per run", "每次运行分钟数").replace(
        "failed", "失败"
    )
    assert "**" not in table(made_up(runs=made_up()["runs"][:4]), "en"), "the best of one"


def test_ranks_are_shown_where_every_run_has_one():
    ranked = [run for run in made_up()["runs"] if run["label"] != "a|b"]
    assert "| method | 98 % | 99.5 % |\n| --- | --- | --- |\n| c | 60.00 ± 14.14 (2) | 50.00 (1) |\n\n" in section(
        made_up(runs=ranked)
    )
    assert "| method | 98 % |\n| --- | --- |\n| c | 60.00 ± 14.14 (2) |\n\n" in section(
        made_up(runs=ranked + [run for run in made_up()["runs"] if run["label"] == "a|b"][3:])
    )
    assert section(made_up()).count("method") == 1


def test_page_names_where_when_and_how():
    text = page(made_up())
    for word in ("Some CPU", "2 cores", "8 GB", "mindspore 2.7.0", "2024-02-29", "`rpg-ms compare --config x.yaml`"):
        assert word in text and word not in section(made_up())
    assert "test images" in section(made_up())
    assert "validation images" in section(made_up(evaluated_on="validation"))


def test_csv_of_means():
    lines = {
        (line["label"], line["target_density"]): line
        for line in csv.DictReader(csv_text(means(made_up())).splitlines())
    }
    assert len(lines) == 6
    three, two, none = lines["a|b", "0.02"], lines["c", "0.02"], lines["d", "0.005"]
    assert (three["seeds"], three["top1_mean"], three["top1_std"], three["seconds_mean"]) == ("3", "92.0", "2.0", "180")
    assert three["settings"] == "rank.lambda=0 a.b=[1, 2]"
    assert (two["seeds"], two["failed"], two["top1_mean"], two["top1_std"]) == ("2", "1", "93.0", "2.8284")
    assert (two["rank_mean"], two["rank_std"], three["rank_mean"], three["rank_std"]) == ("60", "14.1421", "", "")
    assert lines["c", "0.005"]["top1_std"] == lines["c", "0.005"]["rank_std"] == ""
    assert (none["seeds"], none["top1_mean"], none["seconds_mean"]) == ("0", "", "")


def test_csv_of_runs():
    lines = list(csv.DictReader(csv_text(made_up()["runs"], ("environment", "reason")).splitlines()))
    assert len(lines) == 10
    assert (lines[1]["top1"], lines[1]["settings"]) == ("92.0", "rank.lambda=0 a.b=[1, 2]")
    assert (lines[6]["status"], lines[6]["reason"], lines[6]["top1"]) == ("failed", "out of luck", "")


# ----------------------------------------------------------------------------------------------------
# Real runs
# ----------------------------------------------------------------------------------------------------


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

"""The recipes of docs/extending.md do what the page says: their code is put where it says and trained with."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from conftest import PROJECT

PAGE = (PROJECT / "docs/extending.md").read_text(encoding="utf-8")
CONFIG = """
task: top_five
model: {name: "my_nets:two_convolutions"}
data: {name: npz, root: images}
train: {epochs: 2, batch_size: 32}
pruning: {method: movement_erk, density: 0.1, update_every: 2}
device_target: CPU
"""


def code(heading):
    """The Python of a section, a text for every fenced block."""
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)[1]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def add(file, table, row, function=""):
    """Put a row into a table of a module, and a function before it."""
    text, count = re.subn(
        rf"(?m)^({table}\b.*= {{)$",
        lambda opening: f"{function}\n\n{opening[0]}\n{row}",
        file.read_text(encoding="utf-8"),
    )
    assert count == 1, f"{file} has no table {table}"
    file.write_text(text, encoding="utf-8")


@pytest.fixture
def project(tmp_path):
    """A copy of the package with everything that the page adds to it, and data to train on."""
    package = tmp_path / "rpg_ms"
    shutil.copytree(PROJECT / "rpg_ms", package, ignore=shutil.ignore_patterns("__pycache__"))
    for door in ("train.py", "export.py"):
        shutil.copy(PROJECT / door, tmp_path)
    for heading, file, table in (
        ("A score", "pruning/scores.py", "SCORES"),
        ("A dataset", "data/datasets.py", "DATASETS"),
    ):
        function, row = code(heading)
        add(package / file, table, row, function)
    add(package / "pruning/methods.py", "METHODS", *code("A method"))
    for heading, file, table, module in (
        ("A task", "tasks/__init__.py", "TASKS", "tasks/top_five.py"),
        ("An export format", "deploy/formats.py", "FORMATS", "deploy/npz.py"),
    ):
        text, row = code(heading)
        (package / module).write_text(text, encoding="utf-8")
        add(package / file, table, row)
    (tmp_path / "my_nets.py").write_text(*code("A network"), encoding="utf-8")
    (tmp_path / "my.yaml").write_text(CONFIG)
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        np.savez(
            tmp_path / f"images/{part}.npz",
            labels=rng.integers(0, 10, 256),
            images=rng.integers(0, 256, (256, 28, 28), np.uint8),
        )
    return tmp_path


def run(project, *arguments):
    """Run a command of the copy; the JSON in its last line."""
    result = subprocess.run([sys.executable, *arguments], cwd=project, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_a_score_a_method_a_network_a_dataset_a_task_and_an_export_format(project):
    summary = run(project, "train.py", "--config", "my.yaml", "--output_dir", "run")
    assert summary["nonzero"] == round(0.1 * summary["prunable"])
    assert summary["prunable"] == 16 * 9 + 32 * 16 * 9 + 32 * 7 * 7 * 10
    assert 0 < summary["top5"] < 100 and "top1" not in summary
    updates = [
        line
        for line in map(json.loads, (project / "run/metrics.jsonl").read_text().splitlines())
        if line.get("drop_fraction")
    ]
    assert updates[-1]["grown"] > 0

    printed = run(
        project,
        "export.py",
        "--config",
        "run/config.yaml",
        "--checkpoint_path",
        "run/last.ckpt",
        "--file_format",
        "NPZ",
        "--file_name",
        "network",
    )
    with np.load(project / "network.npz") as file:
        nonzero = sum(np.count_nonzero(file[name]) for name in file if name.endswith("weight_mask"))
    assert nonzero == printed["nonzero"] == summary["nonzero"]

"""The READMEs and docs/ are current, complete and alike, and what they name is there."""

import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from functools import cache

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from mindspore.dataset import NumpySlicesDataset

from conftest import PROJECT
from networks import Net, WithLoss
from rpg_ms.compare.results import section, table
from rpg_ms.config import load_config, reference_table
from rpg_ms.errors import UserError

SCRIPT = runpy.run_path(str(PROJECT / "scripts/update_docs.py"))
updated = SCRIPT["updated"]
TEXTS = {name: (PROJECT / name).read_text(encoding="utf-8") for name in SCRIPT["FILES"]}
ENGLISH, CHINESE = TEXTS["README.md"], TEXTS["README_CN.md"]

# Every command that the texts show, by its beginning, and the test that runs it or one that differs in its values
# alone. Those "by hand" were run as a new user would. MSRUN tests only the command line, for want of the devices.
MSRUN = "tests/training/test_launch.py"
COMMANDS = {
    "bash scripts/quickstart.sh": "tests/test_scripts.py",
    "bash scripts/test.sh": "by hand",
    "bash scripts/run_distribute_train.sh": MSRUN,
    "NODE_COUNT=2 NODE_RANK=0": MSRUN,
    "NODE_COUNT=2 NODE_RANK=1": MSRUN,
    "pip install -e .": "by hand",
    "pip install -e '.[onnx]'": "by hand",
    "pip install -e '.[detection]'": "by hand",
    "rpg-ms recipes": "by hand",
    "rpg-ms train --config maskrcnn_small_nuclei_80": "by hand",
    "rpg-ms predict": "tests/test_predict.py",
    "python eval.py": "tests/tasks/test_detection.py",
    "rpg-ms train --config quickstart --output_dir": "by hand",
    "rpg-ms train --config quickstart --resume": "tests/test_resume.py",
    "rpg-ms eval": "tests/test_front_doors.py",
    "rpg-ms export": "tests/test_front_doors.py",
    "rpg-ms convert": "tests/weights/test_pruned_elsewhere.py",
    "rpg-ms report": "tests/report/test_report.py",
    "rpg-ms compare": "tests/compare/test_running.py",
    "python scripts/benchmark.py": "by hand",
    "python scripts/benchmark_data.py": "tests/test_benchmarks.py",
    "python scripts/benchmark_runtimes.py": "tests/test_benchmarks.py",
    "python scripts/update_docs.py": "tests/test_readme.py",
    ".venv/bin/ruff": "by hand",
}


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text):
    """The commands of the fenced bash blocks, continued lines joined, comments left out."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"#.*", "", line).strip() for line in lines) if line]


# ----------------------------------------------------------------------------------------------------
# What is generated
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
def test_generated_parts_are_current(name):
    language = "cn" if name == "README_CN.md" else "en"
    assert updated(TEXTS[name], language, PROJECT / "results") == TEXTS[name], "run python scripts/update_docs.py"


def test_every_experiment_and_every_key_has_a_place():
    experiments = {file.parent.name for file in (PROJECT / "results").glob("*/results.json")} - {"speed"}
    assert set(re.findall("<!-- results (.*) -->", TEXTS["docs/results.md"])) == experiments
    assert reference_table().strip() in TEXTS["docs/configuration.md"]
    assert "<!-- speed -->" in TEXTS["docs/performance.md"]


def test_results_are_written_between_their_marks(tmp_path):
    run = {
        "label": "rpg",
        "method": "rpg",
        "settings": [],
        "target_density": 0.02,
        "seed": 0,
        "status": "finished",
        "top1": 88.154,
        "seconds": 90.0,
    }
    document = {
        "command": "rpg-ms compare",
        "config": "x.yaml",
        "settings": [],
        "evaluated_on": "test",
        "date": "2024-02-29",
        "environments": [],
        "runs": [run],
    }
    (tmp_path / "small").mkdir()
    (tmp_path / "small/results.json").write_text(json.dumps(document))
    for kind, content in (("results", section(document)), ("accuracy", table(document, "cn"))):
        text = updated(f"before\n<!-- {kind} small -->\n<!-- /{kind} small -->\nafter\n", "cn", tmp_path)
        assert text == f"before\n<!-- {kind} small -->\n{content}\n<!-- /{kind} small -->\nafter\n"
        assert "| rpg | 88.15 (1) | 1.5 |" in content
        assert updated(text.replace("88.15", "88.16"), "cn", tmp_path) == text, "what disagrees is found"
    with pytest.raises(UserError, match="large.* no data"):
        updated("<!-- results large -->\n<!-- /results large -->\n", "en", tmp_path)
    with pytest.raises(UserError, match="not closed"):
        updated("<!-- results small -->\n", "en", tmp_path)


# ----------------------------------------------------------------------------------------------------
# What is written by hand
# ----------------------------------------------------------------------------------------------------


def test_the_readmes_say_the_same_on_at_most_150_lines():
    for what in (r"(?ms)^```\w*\n.*?^```", r"(?m)^#+(?= )", "<!--.*?-->", r"\]\((docs/.*?|results/.*?|http.*?)\)"):
        assert re.findall(what, ENGLISH) == re.findall(what, CHINESE), what
    assert set(re.findall("`[^`\n]+`", ENGLISH)) == set(re.findall("`[^`\n]+`", CHINESE))
    numbers = [Counter(re.findall(r"\d+(?:[.,]\d+)*", text)) for text in (ENGLISH, CHINESE)]
    assert numbers[0] == numbers[1]
    assert max(ENGLISH.count("\n"), CHINESE.count("\n")) <= 150


def test_no_line_of_the_chinese_one_breaks_within_a_sentence():
    """Markdown makes a blank of a line break, which Chinese does not have between its characters."""
    chinese = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
    prose = re.sub(r"```.*?```|^[|#>-].*?$", "\n", CHINESE, flags=re.DOTALL | re.MULTILINE)
    assert re.findall(rf".*{chinese}\n{chinese}.*", prose) == []


@pytest.mark.parametrize("name", ["docs/results.md", "docs/export.md"])
def test_measured_numbers_stand_in_results(name):
    """A number with two decimals or more, outside the generated tables, is one of results/ as it is shown there."""
    data = "\n".join(file.read_text(encoding="utf-8") for file in sorted((PROJECT / "results").rglob("*.md")))
    data += (PROJECT / "results/deploy/results.jsonl").read_text(encoding="utf-8")
    prose = re.sub(r"(?s)<!-- (\S+ \S+) -->.*?<!-- /\1 -->|```.*?```", "", TEXTS[name])
    numbers = set(re.findall(r"(?<![\d.])\d+\.\d\d+(?![\d.])", prose)) - {"1.10"}
    assert all(re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", data) for number in numbers), numbers
    assert numbers


@pytest.mark.parametrize("name", [*TEXTS, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_what_is_named_is_there(name):
    text = (PROJECT / name).read_text(encoding="utf-8")
    folder = (PROJECT / name).parent
    for link in re.findall(r"\]\((?!https?:)([^)]*)\)", text):
        path, _, heading = link.partition("#")
        assert (folder / path).is_file(), link
        if heading:
            titles = re.findall(r"(?m)^#+ (.*)$", (folder / path).read_text(encoding="utf-8"))
            assert heading in [title.lower().replace(" ", "-") for title in titles], link
    for file in re.findall(r"(?:scripts|config|rpg_ms|tests)/[\w/]+\.(?:py|sh|yaml)", text):
        assert (PROJECT / file).is_file(), file


def test_every_command_is_run_somewhere():
    shown = [
        line for name in [*TEXTS, "CONTRIBUTING.md"] for line in commands((PROJECT / name).read_text(encoding="utf-8"))
    ]
    assert [line for line in shown if not line.startswith(tuple(COMMANDS))] == []
    assert [known for known in COMMANDS if not any(line.startswith(known) for line in shown)] == []
    assert all(where == "by hand" or (PROJECT / where).is_file() for where in COMMANDS.values())


@pytest.mark.parametrize("name", TEXTS)
def test_keys_and_configurations_of_commands_are_there(name):
    keys = {key for line in reference_table().splitlines() for key in re.findall(r"^\| `([\w.]+)`", line)}
    for line in commands(TEXTS[name]):
        assert set(re.findall(r"\b[a-z]+\.[a-z_]+(?==)", line)) <= keys, line
        for recipe in re.findall(r"--config (\w+)(?= )", line):
            assert (PROJECT / f"config/{recipe}.yaml").is_file(), line


@pytest.mark.parametrize("command", ["train", "eval", "export", "convert", "report", "compare", "recipes", "predict"])
def test_options_of_commands_are_there(command):
    shown = [line for name in TEXTS for line in commands(TEXTS[name]) if line.startswith(f"rpg-ms {command}")]
    described = subprocess.run(
        [sys.executable, "-m", "rpg_ms", command, "--help"], cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    assert shown and {option for line in shown for option in re.findall(r"(?<= )--\w+", line)} <= set(
        re.findall(r"--\w+", described)
    )


@pytest.mark.parametrize("file", sorted((PROJECT / "config").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_configuration_loads(file):
    load_config(file)


# ----------------------------------------------------------------------------------------------------
# The Python
# ----------------------------------------------------------------------------------------------------


@cache
def images_and_labels():
    rng = np.random.default_rng(0)
    return rng.standard_normal((8, 2, 6, 6)).astype(np.float32), rng.integers(0, 3, 8).astype(np.int32)


def scope(**more):
    """What the Python of a text takes for granted."""
    ms.set_context(mode=ms.GRAPH_MODE)
    network = Net()
    return {
        "network": network,
        "network_with_loss": WithLoss(network),
        "optimizer": nn.Momentum(network.trainable_params(), 0.01, 0.9),
        **more,
    }


def assert_pruned(layers, density):
    kept = sum(int(layer.mask.asnumpy().sum()) for layer in layers)
    assert kept == round(density * sum(layer.weight.size for layer in layers))


def test_the_loop_of_the_readme_prunes_to_its_target():
    names = scope(batches=[tuple(map(ms.Tensor, images_and_labels()))] * 200)
    exec(blocks(ENGLISH, "python")[0].replace("total_steps=1000", "total_steps=200"), names)
    assert_pruned(names["layers"], 0.02)


def test_model_trains_as_docs_say():
    loop, start, model = blocks(TEXTS["docs/training.md"], "python")
    names = scope(batches=[], epochs=100, dataset=NumpySlicesDataset(images_and_labels(), shuffle=False).batch(4))
    for shown, tried in (('"rpg"', '"rigl"'), ("total_steps=1000", "total_steps=200"), ("density=0.02", "density=0.2")):
        loop = loop.replace(shown, tried)
    exec(loop, names)
    exec(start, names)
    assert_pruned(names["layers"], 0.2)
    before = [layer.mask.asnumpy().copy() for layer in names["layers"]]
    exec(model.replace("LossMonitor()", "LossMonitor(200)"), names)
    assert names["step"].step_number == 200
    assert_pruned(names["layers"], 0.2)
    assert any((layer.mask.asnumpy() != old).any() for layer, old in zip(names["layers"], before))

"""A value that a key does not take is refused in one line naming source, key, value and legal range."""

import pytest

from configurations import complaint
from rpg_ms.config import SCHEMAS, Config, PruningConfig, TrainConfig, dump_config, load_config, reference_table
from rpg_ms.pruning.methods import METHODS

KEYS = [path for path, schema in SCHEMAS.items() if "properties" not in schema]

# What is wrong with a value


@pytest.mark.parametrize(
    "override, line",
    [
        ("pruning.density=1.5", "pruning.density: 1.5 is not a number in (0, 1]"),
        ("pruning.density=0", "pruning.density: 0 is not a number in (0, 1]"),
        ("pruning.alpha=1.01", "pruning.alpha: 1.01 is not a number in [0, 1] or null"),
        ("train.label_smoothing=1", "train.label_smoothing: 1 is not a number in [0, 1)"),
        ("train.epochs=0", "train.epochs: 0 is not an integer in [1, 2^31 - 1]"),
        ("train.epochs=2147483648", "train.epochs: 2147483648 is not an integer in [1, 2^31 - 1]"),
        ("optimizer.lr=0", "optimizer.lr: 0 is not a number > 0"),
        ("rank.lambda=-1", "rank.lambda: -1 is not a number >= 0 or null"),
        ("optimizer.lr=.inf", "optimizer.lr: inf is not a finite number"),
        ("optimizer.lr=.nan", "optimizer.lr: nan is not a finite number"),
        ("optimizer.lr=1e999", "optimizer.lr: inf is not a finite number"),
        ("optimizer.lr=true", "optimizer.lr: true is not a number > 0"),
        ("optimizer.lr='0.1'", "optimizer.lr: '0.1' is not a number > 0"),
        ("train.epochs=true", "train.epochs: true is not an integer in [1, 2^31 - 1]"),
        ("train.epochs=3.0", "train.epochs: 3.0 is not an integer in [1, 2^31 - 1]"),
        ("train.epochs=1.5", "train.epochs: 1.5 is not an integer in [1, 2^31 - 1]"),
        ("train.epochs=", "train.epochs: null is not an integer in [1, 2^31 - 1]"),
        ("model.num_classes=1", "model.num_classes: 1 is not an integer in [2, 2^31 - 1] or null"),
        ("model.num_classes=x", "model.num_classes: 'x' is not an integer in [2, 2^31 - 1] or null"),
        ("optimizer.nesterov=1", "optimizer.nesterov: 1 is not true or false"),
        ("optimizer.nesterov=yes", "optimizer.nesterov: 'yes' is not true or false"),
        ("optimizer.name=sdg", "optimizer.name: 'sdg' is not one of sgd, adam, adamw"),
        ("pruning.method=3", f"pruning.method: 3 is not one of {', '.join(METHODS)}"),
        ("model.name=3", "model.name: 3 is not a string of at least one character"),
        ("model.name=''", "model.name: '' is not a string of at least one character"),
        ('model.name="\\ud800"', r"model.name: '\ud800' is not a string of at least one character"),
        ("schedule.milestones=[0.5, 2]", "schedule.milestones[1]: 2 is not a number in (0, 1)"),
        ("schedule.milestones=[0.5, 0.2]", "schedule.milestones: [0.5, 0.2] is not in increasing order"),
        ("schedule.milestones=0.5", "schedule.milestones: 0.5 is not a list of numbers in (0, 1)"),
        ("pruning.exclude=[1]", "pruning.exclude[0]: 1 is not a string of at least one character"),
        ("train=", "train: null is not a group of keys: " + ", ".join(TrainConfig.model_fields)),
        ("train=3", "train: 3 is not a group of keys: " + ", ".join(TrainConfig.model_fields)),
        (
            "train={epochs: 0, batch_size: 0}",
            "train.epochs: 0 is not an integer in [1, 2^31 - 1] (and 1 more wrong key)",
        ),
        (
            "optimizer={lr: 0, name: x, no: 0}",
            "optimizer.name: 'x' is not one of sgd, adam, adamw (and 2 more wrong keys)",
        ),
    ],
)
def test_one_line_says_what_is_wrong(write, override, line):
    assert complaint(write(""), [override]) == f"--set: {line}"
    path, _, value = override.partition("=")
    *groups, key = path.split(".")
    text = f"{groups[0]}: {{{key}: {value}}}" if groups else f"{key}: {value}"
    assert complaint(write(text)) == f"x.yaml: {line}"


def test_flags_are_named_as_the_source(write):
    assert complaint(write(""), seed=-1) == "--seed: -1 is not an integer in [0, 2^32 - 1]"
    line = "--device_target: 'TPU' is not one of auto, CPU, GPU, Ascend"
    assert complaint(write(""), device_target="TPU") == line
    line = "x.yaml: seed: -1 is not an integer in [0, 2^32 - 1] (and 1 more wrong key)"
    assert complaint(write("seed: -1"), output_dir="") == line


def test_the_order_of_the_two_ends_of_pruning(write):
    line = "pruning.prune_until: 0.5 is greater than pruning.freeze_after, 0.4"
    name = write("pruning: {prune_until: 0.5, freeze_after: 0.4}")
    assert complaint(name) == f"x.yaml: {line}"
    assert load_config(name, ["pruning.freeze_after=0.5"]).pruning.freeze_after == 0.5
    name = write("pruning: {freeze_after: 0.9, prune_until: 0.5}")
    assert complaint(name, ["pruning.freeze_after=0.4"]) == f"--set: {line}"  # the one set last is to blame


def test_choices_that_contradict_the_method(write):
    line = complaint(write("pruning: {alpha: 0.3}"), ["pruning.method=gmp"])
    assert line.startswith("--set: pruning.method: gmp: pruning.alpha: 0.3")
    line = complaint(write("pruning: {method: dense, schedule: cubic}"))
    assert line.startswith("x.yaml: pruning.method: dense: ")


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.start != "dense"])
def test_no_dense_updates_before_masks_that_are_there_from_the_start(write, method):
    line = complaint(write(f"pruning: {{method: {method}}}"), ["pruning.warmup_updates=2"])
    assert line.startswith("--set: pruning.warmup_updates: 2 must be 0 for ") and "pruning.start" in line
    assert load_config(write("pruning: {method: st3, warmup_updates: 2}")).pruning.warmup_updates == 2


def test_unknown_keys_list_near_matches_and_the_allowed_keys(write):
    allowed = ", ".join(PruningConfig.model_fields)
    expected = f"pruning.densty: unknown key; did you mean density? allowed: {allowed}"
    assert complaint(write("pruning: {densty: 0.1}")) == f"x.yaml: {expected}"
    assert complaint(write(""), ["pruning.densty=0.1"]) == f"--set: {expected}"
    assert "lr: unknown key; did you mean optimizer.lr? allowed: task, model, data," in complaint(write("lr: 1"))
    assert "x.yaml: bse: unknown key; did you mean base?" in complaint(write("bse: y.yaml"))
    assert "rank.lambda_: unknown key; did you mean lambda?" in complaint(write("rank: {lambda_: 1}"))
    assert "base" not in complaint(write(""), ["xyz=1"])


def test_long_values_are_abbreviated(write):
    for value in ["x" * 1000, "[" + "1, " * 500 + "]", "{" + ", ".join(f"k{i}: 1" for i in range(500)) + "}"]:
        assert len(complaint(write(f"train: {{epochs: {value}}}"))) < 160
    assert len(complaint(write(f"train: {{{'k' * 500}: 1}}"))) < 300


def test_the_dump_uses_the_yaml_names_in_the_order_of_declaration(write):
    text = dump_config(load_config(write("")))
    assert "lambda: 0.5" in text and "lambda_" not in text
    tops = [line.split(":")[0] for line in text.splitlines() if line[0] not in " -"]
    assert tops == list(Config.model_fields)


def test_the_reference_has_a_row_for_every_key():
    rows = reference_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [".".join(path) for path in KEYS]
    meaning = "Share of prunable weights that stay, fraction."
    assert f"| `pruning.density` | number | `0.02` | in (0, 1] | {meaning} |" in rows
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 5 and all(cells[:3]) and cells[4].endswith(".")

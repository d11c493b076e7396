"""The configuration: legal values come through, everything else is one line naming source and key."""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rpg_ms.config import (
    SCHEMAS,
    Config,
    OneLineParser,
    PruningConfig,
    TrainConfig,
    add_shared_arguments,
    dump_config,
    load_config,
    reference_table,
)
from rpg_ms.config.loading import _parse_yaml
from rpg_ms.errors import UserError, front_door
from rpg_ms.pruning.methods import METHODS

PROJECT = Path(__file__).resolve().parent.parent
KEYS = [path for path, schema in SCHEMAS.items() if "properties" not in schema]
fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file in the (empty) working directory and returns its name, as error messages show it."""
    monkeypatch.chdir(tmp_path)

    def write_file(content, name="x.yaml"):
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return name

    return write_file


def complaint(*arguments, **flags) -> str:
    with pytest.raises(UserError) as caught:
        load_config(*arguments, **flags)
    line = str(caught.value)
    assert len(line.splitlines()) == 1 and line.isprintable()
    return line


# What comes through


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null", "{}", "\ufeff"])
def test_an_empty_file_means_the_defaults(write, text):
    config = load_config(write(text))
    assert (config.model.name, config.data.name) == ("resnet_small", "fashion_mnist")
    assert (config.optimizer.lr, config.optimizer.momentum, config.optimizer.weight_decay) == (0.1, 0.9, 5e-4)
    assert (config.pruning.method, config.pruning.density, config.output_dir) == ("rpg_erk", 0.02, "runs/default")


def test_yaml_1_2_numbers_and_words(write):
    text = "optimizer: {lr: 1e-4, weight_decay: 0}\nmodel: {name: no}\ntrain: {epochs: 010}\n"
    config = load_config(write(text))
    assert config.optimizer.lr == 1e-4
    assert config.optimizer.weight_decay == 0.0 and isinstance(config.optimizer.weight_decay, float)
    assert config.model.name == "no"
    assert config.train.epochs == 10


def test_a_date_is_text(write):
    assert load_config(write("output_dir: 2024-02-30")).output_dir == "2024-02-30"


def test_the_result_is_immutable(write):
    config = load_config(write("pruning: {exclude: [fc]}"))
    with pytest.raises(ValidationError):
        config.pruning.density = 0.5
    assert config.pruning.exclude == ("fc",)


def test_overrides_and_flags_win_in_order(write):
    name = write("seed: 1\noutput_dir: from_file\ntrain: {epochs: 2, batch_size: 4}\n")
    overrides = ["seed=2", "train.epochs=3", "train.epochs=5", "train={eval_every: 7}", "schedule.milestones=[0.25]"]
    config = load_config(name, overrides, seed=3, device_target="CPU", output_dir="1e-4")
    assert (config.seed, config.device_target, config.output_dir) == (3, "CPU", "1e-4")
    assert (config.train.epochs, config.train.batch_size, config.train.eval_every) == (5, 4, 7)
    assert config.schedule.milestones == (0.25,)
    assert load_config(name, overrides).seed == 2


def test_flag_value_zero_is_not_taken_for_missing(write):
    assert load_config(write("seed: 5"), seed=0).seed == 0


@pytest.mark.parametrize("method", list(METHODS))
def test_null_keys_take_the_method_s_values(write, method):
    row = METHODS[method]
    config = load_config(write("rank: {lambda: null}"), [f"pruning.method={method}"])
    assert config.pruning.schedule == row.schedule and config.pruning.allocation == row.allocation
    assert config.pruning.alpha == row.alpha
    assert (config.rank.lambda_, config.rank.delta) == (row.rank_lambda, row.rank_delta)
    assert config.train.clip_norm == row.clip_norm


def test_values_of_the_user_win_over_the_method_s(write):
    text = "pruning: {alpha: 0, schedule: cubic, allocation: erk}\nrank: {lambda: 0, delta: 1}"
    config = load_config(write(text))
    assert (config.pruning.alpha, config.pruning.schedule, config.pruning.allocation) == (0, "cubic", "erk")
    assert (config.rank.lambda_, config.rank.delta) == (0, 1)


# Bases


def test_bases_lie_beneath_and_are_relative_to_the_file_that_names_them(write):
    Path("common").mkdir()
    Path("runs").mkdir()
    root = "train: {epochs: 1, batch_size: 1, log_every: 1}\nschedule: {milestones: [0.1, 0.2]}"
    top = "base: ../common/middle.yaml\ntrain: {epochs: 3}\nschedule: {milestones: [0.3]}"
    write(root, "common/root.yaml")
    write("base: root.yaml\ntrain: {epochs: 2, batch_size: 2}\n", "common/middle.yaml")
    config = load_config(write(top, "runs/x.yaml"))
    assert (config.train.epochs, config.train.batch_size, config.train.log_every) == (3, 2, 1)
    assert config.schedule.milestones == (0.3,)


def test_an_absolute_base(write, tmp_path):
    write("seed: 9", "other.yaml")
    assert load_config(write(f"base: {tmp_path}/other.yaml")).seed == 9


def test_a_wrong_value_is_traced_to_the_base_it_came_from(write):
    write("train: {epochs: 0}", "low.yaml")
    name = write("base: low.yaml\ntrain: {batch_size: 8}")
    assert complaint(name).startswith("low.yaml: train.epochs: 0 is not in [1,")
    assert complaint(name, ["train.epochs=-1"]).startswith("--set: train.epochs: -1 is not in [1,")
    assert load_config(write("base: low.yaml\ntrain: {epochs: 4}")).train.epochs == 4


def test_base_cycles_and_missing_bases(write):
    write("base: x.yaml", "y.yaml")
    assert complaint(write("base: y.yaml")).startswith("y.yaml: base: x.yaml: a cycle")
    assert complaint(write("base: ./x.yaml")).startswith("x.yaml: base: ./x.yaml: a cycle")
    assert complaint(write("base: no.yaml")) == "x.yaml: base: no.yaml: no such file"
    assert complaint(write("base: 3")) == "x.yaml: base: 3 is not the name of a file"
    assert complaint(write("base:")) == "x.yaml: base: null is not the name of a file"
    assert complaint(write('base: "a\\0b"')) == r"x.yaml: base: a\x00b: not a file name"
    assert complaint(write('base: "\\ud800"')) == r"x.yaml: base: \ud800: not a file name"
    assert len(complaint(write("base: " + "x" * 5000))) < 200


def test_a_missing_base_says_where_it_was_looked_for(write, tmp_path):
    Path("real").mkdir()
    write("seed: 3", "real/low.yaml")
    write("base: low.yaml", "real/top.yaml")
    assert complaint(write("base: no.yaml", "real/x.yaml")) == "real/x.yaml: base: no.yaml: no such file: real/no.yaml"
    Path("link.yaml").symlink_to("real/top.yaml")
    assert complaint("link.yaml") == (
        "link.yaml: base: low.yaml: no such file; a base is looked for beside the link link.yaml, not beside its target"
    )
    Path("low.yaml").symlink_to("real/low.yaml")
    assert load_config("link.yaml").seed == 3


# Paths


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_a_tilde_in_any_path_is_the_home_folder(write, home):
    write("seed: 7", home / "low.yaml")
    write("base: ~/low.yaml\ndata: {root: ~/data}\noutput_dir: ~/run\n", home / "x.yaml")
    config = load_config("~/x.yaml", ["model.pretrained=~/w.ckpt"])
    assert (config.seed, config.data.root, config.output_dir) == (7, f"{home}/data", f"{home}/run")
    assert config.model.pretrained == f"{home}/w.ckpt" and "~" not in dump_config(config)
    assert load_config("~/x.yaml", output_dir="~").output_dir == str(home)
    assert complaint("~/no.yaml") == f"{home}/no.yaml: no such file"
    assert complaint(write("base: ~/no.yaml")) == f"x.yaml: base: ~/no.yaml: no such file: {home}/no.yaml"


@pytest.mark.parametrize("name", ["./~", "a~", "~nobody-of-this-name/x", "x/~/y", "~\x00"])
def test_other_tildes_stay(write, name):
    assert load_config(write(""), output_dir=name).output_dir == name


@pytest.mark.parametrize(
    "door, flags",
    [
        ("train", "--config --output_dir --resume"),
        ("eval", "--config --output_dir --checkpoint_path"),
        ("export", "--config --output_dir --checkpoint_path --file_name"),
        ("convert", "--from --to"),
        ("compare", "--config --output_dir --results"),
        ("report", "--output_dir RUN_FOLDER"),
        ("scripts/make_mindrecord", "FOLDER OUTPUT"),
        ("scripts/benchmark_runtimes", "FILE.onnx"),
    ],
)
def test_every_path_of_a_command_line_knows_the_home_folder(door, flags, home, monkeypatch):
    """What each parser makes of its own flags, without the work behind them."""

    class Parsed(Exception):
        pass

    def parse(parser, args=None, namespace=None):
        raise Parsed(parser)

    monkeypatch.setattr("argparse.ArgumentParser.parse_args", parse)
    with pytest.raises(Parsed) as caught:
        if "/" in door:
            runpy.run_path(str(PROJECT / f"{door}.py"))["main"]()
        else:
            importlib.import_module(f"rpg_ms.commands.{door}").main(OneLineParser())
    actions = {
        name: action
        for action in caught.value.args[0]._actions
        for name in [*action.option_strings, action.metavar or action.dest.upper()]
    }
    for flag in flags.split():
        assert actions[flag].type("~/x") == f"{home}/x", flag


# What is wrong with a value


@pytest.mark.parametrize(
    "override, line",
    [
        ("pruning.density=1.5", "pruning.density: 1.5 is not in (0, 1]"),
        ("pruning.density=0", "pruning.density: 0 is not in (0, 1]"),
        ("pruning.alpha=1.01", "pruning.alpha: 1.01 is not in [0, 1]"),
        ("train.label_smoothing=1", "train.label_smoothing: 1 is not in [0, 1)"),
        ("train.epochs=0", "train.epochs: 0 is not in [1, 2^31 - 1]"),
        ("train.epochs=2147483648", "train.epochs: 2147483648 is not in [1, 2^31 - 1]"),
        ("optimizer.lr=0", "optimizer.lr: 0 is not > 0"),
        ("rank.lambda=-1", "rank.lambda: -1 is not >= 0"),
        ("optimizer.lr=.inf", "optimizer.lr: inf is not a finite number"),
        ("optimizer.lr=.nan", "optimizer.lr: nan is not a finite number"),
        ("optimizer.lr=1e999", "optimizer.lr: inf is not a finite number"),
        ("optimizer.lr=true", "optimizer.lr: true is a boolean, not a number > 0"),
        ("optimizer.lr='0.1'", "optimizer.lr: '0.1' is a string, not a number > 0"),
        ("train.epochs=true", "train.epochs: true is a boolean, not an integer in [1, 2^31 - 1]"),
        ("train.epochs=3.0", "train.epochs: 3.0 is a number, not an integer in [1, 2^31 - 1]"),
        ("train.epochs=1.5", "train.epochs: 1.5 is a number, not an integer in [1, 2^31 - 1]"),
        ("train.epochs=", "train.epochs: null is not an integer in [1, 2^31 - 1]"),
        ("model.num_classes=1", "model.num_classes: 1 is not in [2, 2^31 - 1]"),
        ("model.num_classes=x", "model.num_classes: 'x' is a string, not an integer in [2, 2^31 - 1] or null"),
        ("optimizer.nesterov=1", "optimizer.nesterov: 1 is an integer, not true or false"),
        ("optimizer.nesterov=yes", "optimizer.nesterov: 'yes' is a string, not true or false"),
        ("optimizer.name=sdg", "optimizer.name: 'sdg' is not one of sgd, adam, adamw"),
        ("pruning.method=3", f"pruning.method: 3 is not one of {', '.join(METHODS)}"),
        ("model.name=3", "model.name: 3 is an integer, not a string of at least one character"),
        ("model.name=''", "model.name: '' is not a string of at least one character"),
        ('model.name="\\ud800"', r"model.name: '\ud800' is not a string of at least one character"),
        ("schedule.milestones=[0.5, 2]", "schedule.milestones[1]: 2 is not in (0, 1)"),
        ("schedule.milestones=[0.5, 0.2]", "schedule.milestones: [0.5, 0.2] is not in increasing order"),
        ("schedule.milestones=0.5", "schedule.milestones: 0.5 is a number, not a list of numbers in (0, 1)"),
        ("pruning.exclude=[1]", "pruning.exclude[0]: 1 is an integer, not a string of at least one character"),
        ("train=", "train: null is not a group of keys: " + ", ".join(TrainConfig.model_fields)),
        ("train=3", "train: 3 is an integer, not a group of keys: " + ", ".join(TrainConfig.model_fields)),
        ("train={epochs: 0, batch_size: 0}", "train.epochs: 0 is not in [1, 2^31 - 1] (and 1 more wrong key)"),
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
    assert complaint(write(""), seed=-1) == "--seed: -1 is not in [0, 2^32 - 1]"
    line = "--device_target: 'TPU' is not one of auto, CPU, GPU, Ascend"
    assert complaint(write(""), device_target="TPU") == line
    line = "x.yaml: seed: -1 is not in [0, 2^32 - 1] (and 1 more wrong key)"
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
    for value in [
        "x" * 1000,
        "[" + "1, " * 500 + "]",
        "{" + ", ".join(f"k{i}: 1" for i in range(500)) + "}",
        "0x" + "f" * 9000,
    ]:
        assert len(complaint(write(f"train: {{epochs: {value}}}"))) < 160
    assert len(complaint(write(f"train: {{{'k' * 500}: 1}}"))) < 300


# What is wrong with the text


@pytest.mark.parametrize(
    "text, line",
    [
        ("a: [1", "x.yaml: line 1, column 6: "),
        ("train:\n\tepochs: 1", "x.yaml: line 2, column 1: found character '\\t' that cannot start any token"),
        ("seed: 1\nseed: 2", "x.yaml: line 2, column 1: the key 'seed' is given twice"),
        ("- a\n- b", "x.yaml: the top level is a list, not a mapping"),
        ("words", "x.yaml: the top level is a string, not a mapping"),
        ("seed: *a", "x.yaml: line 1, column 7: found undefined alias 'a'"),
        ("seed: !!python/object/apply:os.system [true]", "x.yaml: line 1, column 7: could not determine a constructor"),
        ("seed: 1\n---\nseed: 2", "x.yaml: line 2, column 1: "),
        ("seed: " + "[" * 50_000, "x.yaml: not valid YAML: maximum recursion depth exceeded"),
        ("1: 2", "x.yaml: the key 1 is an integer, not a string"),
        ("train: {null: 2}", "x.yaml: the key null in train is null, not a string"),
        ("train: {[1]: 2}", "x.yaml: line 1, column 9: found unhashable key"),
        ("? {a: 1}\n: 2", "x.yaml: line 1, column 3: found unhashable key"),
        ("seed: 1\nmodel: \x01", "x.yaml: not valid YAML: unacceptable character #x0001"),
        (b"seed: 1\n\xff", "x.yaml: line 2: not UTF-8 text (byte 0xff)"),
        ("seed: 1".encode("utf-16"), "x.yaml: line 1: not UTF-8 text (byte 0xff)"),
        (b"\x89PNG\r\n\x1a\n\0\0", "x.yaml: line 1: not UTF-8 text (byte 0x89)"),
        (b"\0" * 100, "x.yaml: not valid YAML: unacceptable character #x0000"),
        (b"#" * 100_001, "x.yaml: longer than 100000 bytes"),
        ("<!DOCTYPE html>\n<title>Sign in: Hub</title>", "x.yaml: a web page, not a configuration file"),
        ("version https://git-lfs.github.com/spec/v1\nsize 12\n", "x.yaml: a pointer of Git LFS, not the file itself"),
    ],
)
def test_text_that_is_not_a_configuration(write, text, line):
    assert complaint(write(text)).startswith(line)


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-4", 1e-4),
        ("1.5E+3", 1500.0),
        (".5", 0.5),
        ("0o17", 15),
        ("0x1F", 31),
        ("010", 10),
        ("-3", -3),
        ("+3", 3),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("12:30", "12:30"),
        ("~", None),
        ("", None),
        ("True", True),
        ("false", False),
        ("<<", "<<"),
        ("=", "="),
        ("'1'", "1"),
        ("[1, a]", [1, "a"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = _parse_yaml(text, "x")
    assert found == value and type(found) is type(value)


def test_files_that_cannot_be_read(write):
    write("")
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    assert complaint("none.yaml") == "none.yaml: no such file"
    assert complaint("") == "'': no such file"
    assert complaint("folder") == "folder: a directory, not a file"
    assert complaint("loop").startswith("loop: cannot be read: ")
    assert complaint("x.yaml/y").startswith("x.yaml/y: cannot be read: ")
    assert complaint("a\0b") == r"a\x00b: not a file name"
    assert complaint("a\nb") == r"a\nb: no such file"


@pytest.mark.parametrize(
    "override, line",
    [
        ("seed", "'seed' is not of the form a.b=value"),
        ("", "'' is not of the form a.b=value"),
        ("=1", "'=1' is not of the form a.b=value"),
        ("train..epochs=1", "'train..epochs=1' is not of the form a.b=value"),
        (".seed=1", "'.seed=1' is not of the form a.b=value"),
        ("seed.x=1", "seed.x: seed is a value, not a group of keys"),
        ("train.epochs.x.y=1", "train.epochs.x.y: train.epochs is a value, not a group of keys"),
        ("train.epochs=[1", "train.epochs: line 1, column 3: "),
        ("base=y.yaml", "base: unknown key; "),
    ],
)
def test_malformed_overrides(write, override, line):
    assert complaint(write(""), [override]).startswith(f"--set: {line}")


# Fuzz: whatever the text, a configuration or one line

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [
            "1e-4",
            "0x1F",
            "-0",
            ".inf",
            "010",
            "1_000",
            "2020-99-99",
            "=",
            "<<",
            "~",
            "yes",
            "'",
            '"\\',
            "\t",
            "!!set",
            "&a",
            "*a",
            "%x",
            "@",
            "`",
            "? ",
            "- ",
            ": ",
            "|",
            ">",
            "\x85",
            "\u2028",
            "9" * 5000,
        ]
    ),
)
snippets = st.one_of(
    scalars.map(str),
    st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(scalars, inner, max_size=3)),
        max_leaves=8,
    ).map(str),
)
groups = st.sampled_from([path[0] for path in SCHEMAS])
lines = st.one_of(
    st.tuples(groups, snippets).map(": ".join),
    st.builds(lambda key, value: f"{key[0]}: {{{key[-1]}: {value}}}", st.sampled_from(KEYS), snippets),
    st.builds(lambda top, key, text: f"{top}:\n  {key[-1]}: {text}", groups, st.sampled_from(KEYS), snippets),
    snippets,
)


def outcome(*arguments):
    """The configuration, or the single line of the error."""
    try:
        return load_config(*arguments)
    except UserError as error:
        line = str(error)
        assert len(line.splitlines()) == 1 and line.isprintable() and len(line) < 600
        return line


@fuzz
@given(text=st.lists(lines, min_size=1, max_size=3).map("\n".join))
@example(text="<<: {seed: 3}")
@example(text="<<: 3")
@example(text="seed: " + "{a: " * 40)
def test_any_text_gives_a_configuration_or_one_line_naming_the_file(write, text):
    result = outcome(write(text))
    assert isinstance(result, Config) or result.startswith("x.yaml: ")


@fuzz
@given(content=st.binary(max_size=200))
def test_any_bytes_give_a_configuration_or_one_line(write, content):
    result = outcome(write(content))
    assert isinstance(result, Config) or result.startswith("x.yaml: ")


@fuzz
@given(path=st.sampled_from(list(SCHEMAS)), value=snippets)
def test_any_value_of_a_key_gives_a_configuration_or_one_line_naming_the_key(write, path, value):
    result = outcome(write(""), [f"{'.'.join(path)}={value}"])
    assert isinstance(result, Config) or (result.startswith("--set: ") and ".".join(path) in result)


@fuzz
@given(override=st.text())
def test_any_override_gives_a_configuration_or_one_line(write, override):
    result = outcome(write(""), [override])
    assert isinstance(result, Config) or result.startswith("--set: ")


# the two ends of pruning are legal only together, which has a test of its own
@fuzz
@given(
    path=st.sampled_from([path for path in KEYS if path[-1] not in ("prune_until", "freeze_after")]),
    value=st.one_of(st.integers(), st.floats(), st.booleans(), st.none()),
)
def test_a_key_takes_exactly_what_its_row_of_the_reference_says(write, path, value):
    """The range is read from the rendered table, so the table, the check and the message cannot disagree."""
    row = next(line for line in reference_table().splitlines() if line.startswith(f"| `{'.'.join(path)}` |"))
    kind, _, legal = (cell.strip() for cell in row.split("|")[2:5])
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is None:
        expected = kind.endswith("or null")
    elif kind.startswith("integer"):
        expected = isinstance(value, int) and is_number and within(value, legal)
    elif kind.startswith("number"):
        expected = is_number and abs(value) < float("inf") and within(value, legal)
    else:
        expected = kind == "boolean" and isinstance(value, bool)
    task = "detection" if path[0] == "detection" or path == ("model", "masks") else "classification"
    text = repr(value).replace("inf", ".inf").replace("nan", ".nan").replace("None", "null")
    assert isinstance(outcome(write(f"task: {task}"), [f"{'.'.join(path)}={text}"]), Config) == expected


def within(value, legal) -> bool:
    if legal.startswith("in "):
        low, high = (eval(bound.replace("^", "**")) for bound in legal[4:-1].split(","))
        above = value >= low if legal[3] == "[" else value > low
        return above and (value <= high if legal[-1] == "]" else value < high)
    comparison, bound = legal.split()
    return value > float(bound) if comparison == ">" else value >= float(bound)


@fuzz
@given(
    name=st.text(min_size=1),
    exclude=st.lists(st.text(min_size=1), max_size=3),
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    weight=st.floats(0, 1e300),
    milestones=st.sets(st.floats(1e-9, 1 - 1e-9), max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
@example(name="yes", exclude=["1e-4", "null", "~", " a ", "a\nb", "#"], lr=1e-5, weight=1e16, milestones=set(), seed=0)
@example(name="\x85", exclude=[], lr=1.0, weight=0.0, milestones=set(), seed=0)
@example(
    name="\x85\u2028\ufeff\x00\x7f",
    exclude=["中文", "😀", "\t", "2020-01-01"],
    lr=1.0,
    weight=0.0,
    milestones=set(),
    seed=0,
)
def test_round_trip(write, name, exclude, lr, weight, milestones, seed):
    config = load_config(write(""))
    update = {
        "model": {"name": name},
        "optimizer": {"lr": lr},
        "rank": {"lambda": weight},
        "seed": seed,
        "schedule": {"milestones": sorted(milestones)},
        "pruning": {"exclude": exclude},
    }
    values = config.model_dump(by_alias=True)
    for key, value in update.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    config = Config.model_validate(values)
    assert load_config(write(dump_config(config))) == config


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


# Command lines


def test_shared_arguments():
    parser = OneLineParser(prog="train.py")
    add_shared_arguments(parser)
    args = parser.parse_args("--config a.yaml --set a=1 b=2 --set c=3 --device_target CPU --seed 4".split())
    assert args.set == ["a=1", "b=2", "c=3"]
    assert (args.config, args.device_target, args.seed, args.output_dir) == ("a.yaml", "CPU", 4, None)
    assert parser.parse_args(["--config", "a.yaml"]).set == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config"],
        ["--config", "a", "--seed", "x\ny"],
        ["--config", "a", "--device_target", "TPU"],
        ["--config", "a", "--set"],
        ["--config", "a", "--nonsense"],
        ["--config", "a", "--seed", "9" * 9000],
    ],
)
def test_argument_errors_are_one_line_and_status_2(arguments, capsys):
    parser = OneLineParser(prog="train.py")
    add_shared_arguments(parser)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("train.py: error: ") and err.count("\n") == 1 and len(err) < 400


@pytest.mark.parametrize(
    "statement, status, err",
    [
        ("raise UserError('a\\n b')", 2, "tool.py: error: a; b\n"),
        ("raise UserError('\\ud800')", 2, "tool.py: error: \\ud800\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("pass", 0, ""),
    ],
)
def test_the_front_door(tmp_path, statement, status, err):
    script = tmp_path / "tool.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(PROJECT)!r})\n"
        "from rpg_ms.errors import UserError, front_door\n"
        f"def main():\n    {statement}\nfront_door(main)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, err)


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        front_door(lambda: 1 / 0)

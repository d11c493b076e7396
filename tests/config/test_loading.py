"""What a configuration is made of: files, bases, overrides and flags, YAML 1.2; text that is none is refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from configurations import complaint
from rpg_ms.config import dump_config, load_config
from rpg_ms.config.loading import _parse_yaml
from rpg_ms.pruning.methods import METHODS

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
    assert complaint(name).startswith("low.yaml: train.epochs: 0 is not an integer in [1,")
    assert complaint(name, ["train.epochs=-1"]).startswith("--set: train.epochs: -1 is not an integer in [1,")
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


# What is wrong with the text


@pytest.mark.parametrize(
    "text, line",
    [
        ("a: [1", "x.yaml: line 1, column 6: "),
        ("train:\n\tepochs: 1", "x.yaml: line 2, column 1: found character '\\t' that cannot start any token"),
        ("seed: 1\nseed: 2", "x.yaml: line 2, column 1: the key 'seed' is given twice"),
        ("- a\n- b", "x.yaml: ['a', 'b'] is not a mapping"),
        ("words", "x.yaml: 'words' is not a mapping"),
        ("seed: *a", "x.yaml: line 1, column 7: found undefined alias 'a'"),
        ("seed: !!python/object/apply:os.system [true]", "x.yaml: line 1, column 7: could not determine a constructor"),
        ("seed: 1\n---\nseed: 2", "x.yaml: line 2, column 1: "),
        ("seed: " + "[" * 50_000, "x.yaml: not valid YAML: maximum recursion depth exceeded"),
        ("1: 2", "x.yaml: the key 1 is not a string"),
        ("train: {null: 2}", "x.yaml: the key null in train is not a string"),
        ("train: {[1]: 2}", "x.yaml: line 1, column 9: found unhashable key"),
        ("? {a: 1}\n: 2", "x.yaml: line 1, column 3: found unhashable key"),
        ("seed: 1\nmodel: \x01", "x.yaml: not valid YAML: unacceptable character #x0001"),
        (b"seed: 1\n\xff", "x.yaml: line 2: not UTF-8 text (byte 0xff)"),
        ("seed: 1".encode("utf-16"), "x.yaml: line 1: not UTF-8 text (byte 0xff)"),
        (b"\x89PNG\r\n\x1a\n\0\0", "x.yaml: line 1: not UTF-8 text (byte 0x89)"),
        (b"\0" * 100, "x.yaml: not valid YAML: unacceptable character #x0000"),
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
        ("seed.x=1", "seed: {'x': 1} is not an integer"),
        ("train.epochs.x.y=1", "train.epochs: {'x': {'y': 1}} is not an integer"),
        ("train.epochs=[1", "train.epochs: line 1, column 3: "),
        ("base=y.yaml", "base: unknown key; "),
    ],
)
def test_malformed_overrides(write, override, line):
    assert complaint(write(""), [override]).startswith(f"--set: {line}")

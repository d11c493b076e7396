"""Hundreds of broken configurations through the parsing of three commands: one line, status 2, the key named."""

import contextlib
import io
import sys
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import PROJECT
from rpg_ms import commands
from rpg_ms.config import SCHEMAS

DOORS = ("train", "eval", "export")
EXTRA = {
    "train": [],
    "eval": ["--checkpoint_path", "x.ckpt"],
    "export": ["--checkpoint_path", "x.ckpt", "--file_name", "x"],
}


class Reached(Exception):
    """The configuration was accepted."""


def call(door, config, *arguments):
    """`(status, stderr)` of a door up to the point where the configuration is accepted; status 0 then."""
    stderr = io.StringIO()
    argv = [f"{door}.py", "--config", str(config), *EXTRA[door], *arguments]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stderr(stderr),
        mock.patch("rpg_ms.training.device.set_up", side_effect=Reached),
    ):
        try:
            commands.run(door)
        except SystemExit as stop:
            return stop.code, stderr.getvalue()
        except Reached:
            return 0, ""
    raise AssertionError("the door neither stopped nor went on")


VALUES = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.text(max_size=20),
    st.sampled_from(
        [
            "",
            "null",
            "true",
            "[]",
            "{}",
            "[1, 2",
            "{a: 1",
            "!!python/object:os.system x",
            "&a [*a]",
            ".inf",
            "-.nan",
            "1e999",
            "0x",
            "'",
            '"',
            "a: b: c",
            "- - -",
            "\t",
            "\x00",
            "1_0",
            "yes",
            "~",
            "@",
            "%",
        ]
    ),
)
KEYS = sorted(".".join(path) for path in SCHEMAS if len(path) == 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(DOORS)), st.sampled_from(KEYS), VALUES)
def test_set(folder, door, key, value):
    good = folder / "good.yaml"
    good.write_text("{}")
    status, stderr = call(door, good, "--set", f"{key}={value}")
    if status != 0:
        assert status == 2 and stderr.count("\n") == 1 and key.split(".")[1] in stderr, stderr


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(DOORS)), st.sampled_from(KEYS), VALUES)
def test_one_broken_key_in_a_file(folder, door, key, value):
    group, name = key.split(".")
    path = folder / "key.yaml"
    path.write_text(
        f"train:\n  epochs: 3\n{group if group != 'train' else 'x'}:\n  {name}: {value}\n",
        encoding="utf-8",
        errors="surrogatepass",
    )
    status, stderr = call(door, path)
    if status != 0:
        assert status == 2 and stderr.count("\n") == 1 and "key.yaml" in stderr, stderr


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(DOORS)),
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))),
)
def test_any_bytes_as_a_file(folder, door, content):
    path = folder / "bytes.yaml"
    path.write_bytes(content)
    status, stderr = call(door, path)
    assert status == 0 or (status == 2 and stderr.count("\n") == 1 and "bytes.yaml" in stderr), stderr


def names_no_key(text):
    name = text.partition("=")[0].split(".")
    return not text.startswith("-") and tuple(part.strip() for part in name) not in SCHEMAS


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(DOORS)), st.text(min_size=1, max_size=30).filter(names_no_key))
def test_malformed_set(folder, door, text):
    good = folder / "good.yaml"
    good.write_text("{}")
    status, stderr = call(door, good, "--set", text)
    assert status == 2 and stderr.count("\n") == 1 and "--set" in stderr, stderr


def test_the_fuzz_can_reach_the_other_side(folder):
    good = folder / "good.yaml"
    good.write_text((PROJECT / "config/quickstart.yaml").read_text())
    assert all(call(door, good) == (0, "") for door in DOORS)

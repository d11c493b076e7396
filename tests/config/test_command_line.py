"""Command lines: the flags that they share, paths, and errors of one line."""

import importlib
import runpy
import subprocess
import sys

import pytest

from conftest import PROJECT
from rpg_ms.config import OneLineParser, add_shared_arguments
from rpg_ms.errors import front_door


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

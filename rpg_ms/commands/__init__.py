"""The commands: `rpg-ms train`, `python -m rpg_ms train` and, as the model zoo has it, `python train.py`.

A command is a module whose docstring is its help and whose `main(parser)` reads from top to bottom: parse, build, call.
"""

from __future__ import annotations

from rpg_ms import interrupts  # noqa: F401  before all else: Ctrl-C ends also what is still being imported

# isort: split
import argparse
import importlib
import sys

from rpg_ms.config import OneLineParser
from rpg_ms.errors import front_door

COMMANDS = {
    "train": "train and prune a network",
    "eval": "evaluate a checkpoint",
    "predict": "predict for pictures of one's own",
    "export": "export a checkpoint for deployment",
    "convert": "convert weights between PyTorch and MindSpore",
    "report": "report on training runs",
    "compare": "compare pruning methods",
    "recipes": "list the recipes that come with the package",
}


def run(name: str) -> None:
    """Run a command on the process's arguments; its errors begin with the name of the program in `sys.argv`."""
    command = importlib.import_module(f"rpg_ms.commands.{name}")
    parser = OneLineParser(description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    front_door(lambda: command.main(parser))


def main() -> None:
    """`rpg-ms COMMAND ...`"""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv[:2] = [f"rpg-ms {name}"]
        run(name)
    elif name in ("-h", "--help"):
        lines = [f"  {command:8} {text}" for command, text in COMMANDS.items()]
        print("\n".join(["usage: rpg-ms COMMAND ...", "", *lines, "", "rpg-ms COMMAND --help tells more."]))
    else:
        print(f"rpg-ms: error: {name!r} is not one of {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)

"""Command lines: the flags that all of them share, and errors of one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn, Optional

from rpg_ms.config.explaining import printable
from rpg_ms.config.keys import SCHEMAS, Config
from rpg_ms.config.loading import load_config
from rpg_ms.errors import one_line
from rpg_ms.files import user_path


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on stderr and status 2, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """End with the message."""
        self.exit(2, f"{self.prog}: error: {one_line(message)[:300]}\n")

    def parse_args(
        self, args: Optional[Sequence[str]] = None, namespace: Optional[argparse.Namespace] = None
    ) -> argparse.Namespace:
        """As ArgumentParser's; text that is not UTF-8 is refused, as it can be neither logged nor written to a file."""
        for argument in sys.argv[1:] if args is None else args:
            try:
                argument.encode()
            except UnicodeEncodeError:
                self.error(f"{printable(argument)}: not UTF-8 text")
        return super().parse_args(args, namespace)


def add_config_and_device(parser: argparse.ArgumentParser) -> None:
    """Add the two flags that a comparison of many runs shares with the commands on one configuration."""
    parser.add_argument(
        "--config",
        type=user_path,
        required=True,
        metavar="FILE",
        help="YAML file of the experiment, or the name of a recipe",
    )
    parser.add_argument("--device_target", choices=SCHEMAS[("device_target",)]["enum"], help="where to run")


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command on a configuration takes, which `config_of` reads."""
    add_config_and_device(parser)
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="a.b=value",
        help="set a key of the configuration, the value in YAML; may be repeated",
    )
    parser.add_argument("--output_dir", type=user_path, metavar="DIR", help="folder of the run")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of all random numbers")


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command on a checkpoint."""
    add_shared_arguments(parser)
    parser.add_argument(
        "--checkpoint_path", type=user_path, required=True, help="checkpoint of a training run, or a file of weights"
    )
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights (train.ema_decay)")


def config_of(args: argparse.Namespace, **flags: str) -> Config:
    """The configuration that the shared flags ask for; `flags` win over them."""
    shared = {name: getattr(args, name) for name in ("seed", "device_target", "output_dir")}
    return load_config(args.config, args.set, **{**shared, **flags})

"""List the recipes that come with the package, each to be named with --config: rpg-ms recipes"""

from __future__ import annotations

import argparse

from rpg_ms.config import find_recipe, recipes


def main(parser: argparse.ArgumentParser) -> None:
    """Print a line for each recipe: its name, and the first comment of its file."""
    parser.parse_args()
    names = recipes()
    width = max(map(len, names))
    for name in names:
        with open(find_recipe(name), encoding="utf-8") as file:
            first = file.readline().strip()
        print(f"{name:{width}}  {first.lstrip('# ') if first.startswith('#') else ''}".rstrip())

#!/usr/bin/env python3
"""Train and prune a network: python train.py --config config/quickstart.yaml

The same as `rpg-ms train`."""

from rpg_ms.commands import run

if __name__ == "__main__":
    run("train")

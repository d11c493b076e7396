#!/usr/bin/env python3
"""Evaluate a checkpoint: python eval.py --config FILE --checkpoint_path CKPT

The same as `rpg-ms eval`."""

from rpg_ms.commands import run

if __name__ == "__main__":
    run("eval")

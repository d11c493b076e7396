#!/usr/bin/env python3
"""Export a checkpoint: python export.py --config FILE --checkpoint_path CKPT --file_format MINDIR --file_name OUT

The same as `rpg-ms export`."""

from rpg_ms.commands import run

if __name__ == "__main__":
    run("export")

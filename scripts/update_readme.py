#!/usr/bin/env python3
"""Write the table of configuration keys into both READMEs: python scripts/update_readme.py"""
import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from rpg_ms.config import reference_table  # noqa: E402


def with_table(text):
    """The README's text with the current table between its two marks."""
    return re.sub(r"(<!-- keys -->\n).*?(<!-- /keys -->)", lambda m: m[1] + reference_table().strip() + "\n" + m[2],
                  text, flags=re.DOTALL)


if __name__ == "__main__":
    for name in ("README.md", "README_CN.md"):
        path = PROJECT / name
        path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")

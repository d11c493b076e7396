#!/usr/bin/env python3
"""Write what is generated into the READMEs and docs/: python scripts/update_docs.py

Between `<!-- NAME -->` and `<!-- /NAME -->` stands, by NAME:
    keys                the table of configuration keys
    speed               the table of results/speed/results.json, which scripts/benchmark.py writes
    accuracy EXPERIMENT the accuracies of results/EXPERIMENT/results.json, which `rpg-ms compare` writes
    results EXPERIMENT  the same with captions, and the ranks where they were recorded
"""

import json
import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from rpg_ms.compare.results import section, table  # noqa: E402
from rpg_ms.config import reference_table  # noqa: E402
from rpg_ms.errors import UserError, front_door  # noqa: E402

FILES = ["README.md", "README_CN.md", *sorted(str(path.relative_to(PROJECT)) for path in PROJECT.glob("docs/*.md"))]
MARK = re.compile(r"(?<=<!-- )(keys|speed|accuracy [\w.-]+|results [\w.-]+)(?= -->)")


def updated(text, language, results):
    """A file's text with current tables between its marks.

    Args:
        text: the file's.
        language: "en" or "cn".
        results: folder with EXPERIMENT/results.json.

    Raises:
        UserError: a mark without data, or without its closing mark.
    """
    for name in MARK.findall(text):
        before, opening, rest = text.partition(f"<!-- {name} -->\n")
        old, closing, after = rest.partition(f"<!-- /{name} -->")
        if not closing:
            raise UserError(f"the mark <!-- {name} --> is not closed by <!-- /{name} -->")
        text = f"{before}{opening}{generated(name, language, Path(results)).strip()}\n{closing}{after}"
    return text


def generated(name, language, results):
    """What stands between the marks of this name."""
    kind, _, experiment = name.partition(" ")
    if kind == "keys":
        return reference_table()
    file = results / (experiment or kind) / "results.json"
    if not file.is_file():
        raise UserError(f"the mark <!-- {name} --> has no data: there is no {file}")
    document = json.loads(file.read_text(encoding="utf-8"))
    if kind == "speed":
        return speed_table(document["benchmarks"])
    return section(document) if kind == "results" else table(document, language)


def speed_table(benchmarks):
    """One line for every figure that scripts/benchmark.py measured."""
    lines = ["| measured | value | aim |", "| --- | --- | --- |"]
    for name in ("step", "topology", "rank", "pytorch", "start"):
        for figure in benchmarks.get(name, {"figures": {}})["figures"].values():
            lines.append(f"| {figure['en']} | {figure['value']:g} | {figure['aim'] or '–'} |")
    return "\n".join(lines)


def main():
    for name in FILES:
        path = PROJECT / name
        language = "cn" if name == "README_CN.md" else "en"
        path.write_text(updated(path.read_text(encoding="utf-8"), language, PROJECT / "results"), encoding="utf-8")


if __name__ == "__main__":
    front_door(main)

#!/usr/bin/env python3
"""Write what is generated into both READMEs: python scripts/update_readme.py

The table of configuration keys, for every mark `<!-- results NAME -->` the table of results/NAME/results.json, which
compare.py wrote, and for `<!-- speed -->` that of results/speed/results.json, written by scripts/benchmark.py.
"""
import json
import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from rpg_ms.compare.results import WORDS, place, section  # noqa: E402
from rpg_ms.config import reference_table  # noqa: E402
from rpg_ms.errors import UserError, front_door  # noqa: E402

READMES = {"README.md": "en", "README_CN.md": "cn"}


def updated(text, language, results):
    """A README's text with current tables between their marks.

    Args:
        text: the README's.
        language: "en" or "cn".
        results: folder with NAME/results.json for every mark `<!-- results NAME -->`.

    Raises:
        UserError: a mark without data, or without its closing mark.
    """
    text = re.sub(r"(<!-- keys -->\n).*?(<!-- /keys -->)",
                  lambda m: m[1] + reference_table().strip() + "\n" + m[2], text, flags=re.DOTALL)
    speed = Path(results) / "speed" / "results.json"
    if "<!-- speed -->" in text:
        table = speed_table(json.loads(speed.read_text(encoding="utf-8"))["benchmarks"], language)
        text = re.sub(r"(<!-- speed -->\n).*?(<!-- /speed -->)", lambda m: m[1] + table + m[2], text, flags=re.DOTALL)
    for name in re.findall(r"<!-- results ([\w.-]+) -->", text):
        file, close = Path(results) / name / "results.json", f"<!-- /results {name} -->"
        before, mark, rest = text.partition(f"<!-- results {name} -->\n")
        if not file.is_file():
            raise UserError(f"the mark {mark.strip()} has no data: there is no {file}")
        if close not in rest:
            raise UserError(f"the mark {mark.strip()} is not closed by {close}")
        table = section(json.loads(file.read_text(encoding="utf-8")), language)
        text = f"{before}{mark}{table}\n{close}{rest.partition(close)[2]}"
    return text


def speed_table(benchmarks, language):
    """One line for every figure that scripts/benchmark.py measured, then where and when."""
    head, made = {"en": ("| measured | value | aim |", "Measured on {}, {} by `{}`"),
                  "cn": ("| 测量项 | 数值 | 目标 |", "测量环境：{}，{}，命令：`{}`")}[language]
    lines = [head, "| --- | --- | --- |"]
    for name in ("step", "topology", "rank", "pytorch", "start"):
        for figure in benchmarks.get(name, {"figures": {}})["figures"].values():
            lines.append(f"| {figure[language]} | {figure['value']:g} | {figure['aim'] or '–'} |")
    machines = list(dict.fromkeys(place(benchmark["environment"], language) for benchmark in benchmarks.values()))
    dates = sorted({benchmark["date"] for benchmark in benchmarks.values()})
    words = WORDS[language]
    return "\n".join(lines) + "\n\n" + made.format(words["semicolon"].join(machines), words["comma"].join(dates),
                                                  "python scripts/benchmark.py") + "\n"


def main():
    for name, language in READMES.items():
        path = PROJECT / name
        text = updated(path.read_text(encoding="utf-8"), language, PROJECT / "results")
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    front_door(main)

"""The results of a comparison as one document, and its forms: JSON, CSV, a Markdown table.

The document is a dict of plain values; the tables of README and docs/ are made from the JSON file
(scripts/update_docs.py).
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Optional, Union

import rpg_ms
from rpg_ms.compare.grid import GridRun, percent
from rpg_ms.errors import UserError
from rpg_ms.files import atomic_path
from rpg_ms.json_files import read_json
from rpg_ms.tasks import TASKS, Figure, figures_of

FIGURES = ("rank", "density", "nonzero", "prunable", "steps", "seconds")  # of every task, after its own

WORDS = {
    "en": {"method": "method", "minutes": "minutes per run", "failed": "failed"},
    "cn": {"method": "方法", "minutes": "每次运行分钟数", "failed": "失败"},
}
FIGURES_ARE = (
    "{} in {} on the {} images by sparsity: mean ± standard deviation (n − 1) of the (number of) seeds; "
    "bold: a column's best."
)
RANKS_ARE = (
    "Rank of the weights by sparsity, in % of the full rank: numeric rank of each layer, mean over the "
    "layers. A sparsity is listed where the rank of every run was recorded."
)


def environment() -> dict:
    """The machine and the versions of what computes on it."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    models = re.findall(r"^model name\s*: (.*)", text, re.MULTILINE)
    return {
        "machine": {
            "cpu": models[0] if models else platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "platform": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("mindspore", "numpy", "mindcv")},
            "rpg_ms": rpg_ms.__version__,
        },
    }


def collect(
    runs: Sequence[GridRun], failures: Mapping[Path, str], command: str, config_file: str, settings: Sequence[str]
) -> dict[str, Any]:
    """The document of a comparison, from what lies in the runs' folders.

    `failures` says why runs failed, by the run's folder; `settings` are the `--set` values that all runs share.
    """
    environments, lines, dates = [], [], []
    for run in runs:
        line = {
            "label": run.entry.label,
            "method": run.entry.method,
            "settings": list(run.entry.settings),
            "target_density": run.density,
            "seed": run.seed,
        }
        summary = run.summary()
        if summary is not None:
            line["status"] = "finished"
            names = (*(figure.name for figure in figures_of(run.config)), *FIGURES)
            line.update({name: summary[name] for name in names if name in summary})
            line["environment"] = _index(environments, run.folder / "environment.json")
            dates.append(os.path.getmtime(run.folder / "summary.json"))
        elif run.folder in failures:
            line.update(status="failed", reason=failures[run.folder])
        else:
            line["status"] = "cut off" if run.begun else "missing"
        lines.append(line)
    return {
        "command": command,
        "config": config_file,
        "settings": list(settings),
        "task": runs[0].config.task,
        "figure": figures_of(runs[0].config)[0].name,
        "evaluated_on": "validation" if runs[0].config.data.validation > 0 else "test",
        "date": time.strftime("%Y-%m-%d", time.gmtime(max(dates, default=None))),
        "environments": environments,
        "runs": lines,
    }


def _index(environments: list[dict[str, Any]], path: Path) -> Optional[int]:
    """Where in the list this file's content is, appended if it is new; None for a run of train.py's own."""
    found = read_json(path, {"machine": dict, "versions": dict})
    if found is None:
        return None
    if found not in environments:
        environments.append(found)
    return environments.index(found)


def write(document: Mapping[str, Any], folder: Union[str, os.PathLike]) -> None:
    """Write results.json, results.csv, runs.csv and results.md into a folder, made if it is missing.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("results.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n"),
            ("results.csv", csv_text(means(document))),
            ("runs.csv", csv_text(document["runs"], ("environment", "reason"))),
            ("results.md", page(document)),
        ):
            with atomic_path(Path(folder) / name) as path:
                path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--results: {folder} cannot be written: {error.strerror}") from None


def draw(runs: Sequence[GridRun], folder: Union[str, os.PathLike]) -> list[str]:
    """Write the report on the finished runs into a folder; returns what is missing from it, a line each."""
    from rpg_ms.report import load_run, write_report

    loaded, problems = [], []
    for run in runs:
        if run.summary() is not None:
            try:
                loaded.append(load_run(run.folder, run.entry.label))
            except UserError as error:
                problems.append(str(error))
    if loaded:
        try:
            write_report(loaded, folder)
        except UserError as error:
            problems.append(f"any run: {error}")
    return problems


def figure_of(document: Mapping[str, Any]) -> Figure:
    """What the tables of a document compare; documents of earlier versions are of classification."""
    figures = TASKS[document.get("task", "classification")].figures
    return next((figure for figure in figures if figure.name == document.get("figure")), figures[0])


def means(document: Mapping[str, Any]) -> list:
    """A dict for every label and target density: seeds, means and deviations (n − 1) of figure and rank, and cost."""
    figure, groups = figure_of(document).name, {}
    for run in document["runs"]:
        groups.setdefault((run["label"], run["target_density"]), []).append(run)
    lines = []
    for (label, density), runs in groups.items():
        seconds = _of_finished(runs, "seconds")
        line = {
            "label": label,
            "method": runs[0]["method"],
            "settings": runs[0]["settings"],
            "target_density": density,
            "seeds": len(_of_finished(runs, figure)),
            "failed": _failed(runs),
        }
        for name in (figure, "rank"):
            values = _of_finished(runs, name)
            line[f"{name}_mean"] = round(statistics.mean(values), 4) if values else None
            line[f"{name}_std"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
        line["seconds_mean"] = round(statistics.mean(seconds), 1) if seconds else None
        lines.append(line)
    return lines


def csv_text(lines: Sequence[Mapping[str, Any]], last: Sequence[str] = ()) -> str:
    """Dicts as the lines of a CSV file, settings joined by blanks.

    Columns are in the order of the dicts, but those named `last` come last.
    """
    columns = [name for name in dict.fromkeys(name for line in lines for name in line) if name not in last]
    columns += [name for name in last if any(name in line for line in lines)]
    text = io.StringIO()
    file = csv.DictWriter(text, columns, lineterminator="\n")
    file.writeheader()
    file.writerows({**line, "settings": " ".join(line["settings"])} for line in lines)
    return text.getvalue()


def page(document: Mapping[str, Any]) -> str:
    """The tables with their notes, where, when and by which command they were made, and the runs that failed."""
    places = "; ".join(map(place, document["environments"])) or "?"
    parts = [
        f"# Comparison on {document['config']}",
        section(document),
        f"Measured on {places}, {document['date']}: `{document['command']}`",
    ]
    parts += [
        f"{run['label']} at {percent(1 - run['target_density'])} sparsity, seed {run['seed']}, failed: {run['reason']}"
        for run in document["runs"]
        if run["status"] == "failed"
    ]
    return "\n\n".join(parts) + "\n"


def section(document: Mapping[str, Any]) -> str:
    """The table of the task's figure and, where ranks were recorded, theirs, each with what its figures are."""
    figure = figure_of(document)
    label = figure.label[:1].upper() + figure.label[1:]
    parts = [table(document, "en"), FIGURES_ARE.format(label, figure.unit, document["evaluated_on"])]
    ranks = rank_table(document)
    return "\n\n".join(parts + ([ranks, RANKS_ARE] if ranks else []))


def place(found: Mapping[str, Any]) -> str:
    """An `environment()` in words."""
    machine = found["machine"]
    cores = f"{machine['cores']} core{'s' if machine['cores'] > 1 else ''}"
    versions = [f"{name} {version}" for name, version in found["versions"].items()]
    return ", ".join([machine["cpu"], cores, f"{machine['memory_gb']} GB of memory", machine["platform"], *versions])


def table(document: Mapping[str, Any], language: str) -> str:
    """The Markdown table of the task's figure, a row for every label, a column for every sparsity; "en" or "cn"."""
    words, runs, figure = WORDS[language], document["runs"], figure_of(document).name
    labels, densities, cells = _grid(runs)
    best = {density: _best([cells[label, density] for label in labels], figure) for density in densities}
    lines = [[words["method"], *(percent(1 - density) for density in densities), words["minutes"]]]
    for label in labels:
        seconds = _of_finished([run for run in runs if run["label"] == label], "seconds")
        shown = [_cell_text(cells[label, density], figure, best[density], words) for density in densities]
        lines.append([_escaped(label), *shown, f"{statistics.mean(seconds) / 60:.1f}" if seconds else "–"])
    return _markdown(lines)


def rank_table(document: Mapping[str, Any]) -> str:
    """The same of the ranks, of the sparsities at which every finished run has its rank; "" where there are none."""
    finished = [run for run in document["runs"] if run["status"] == "finished"]
    incomplete = {run["target_density"] for run in finished if "rank" not in run}
    labels, densities, cells = _grid([run for run in finished if run["target_density"] not in incomplete])
    if not labels:
        return ""
    lines = [[WORDS["en"]["method"], *(percent(1 - density) for density in densities)]]
    for label in labels:
        ranks = [_of_finished(cells[label, density], "rank") for density in densities]
        lines.append([_escaped(label), *(f"{_mean_text(found)} ({len(found)})" if found else "–" for found in ranks)])
    return _markdown(lines)


def _grid(
    runs: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[float], dict[tuple[str, float], list[Mapping[str, Any]]]]:
    """`(labels, densities, {(label, density): [run, ...]})`: rows, columns and cells of a table."""
    labels = list(dict.fromkeys(run["label"] for run in runs))
    densities = sorted({run["target_density"] for run in runs}, reverse=True)
    cells = {(label, density): [] for label in labels for density in densities}
    for run in runs:
        cells[run["label"], run["target_density"]].append(run)
    return labels, densities, cells


def _escaped(label: str) -> str:
    return label.replace("|", r"\|")


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of lists of texts, the first its head."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _best(column: Sequence[Sequence[Mapping[str, Any]]], figure: str) -> Optional[str]:
    """The highest mean of a column, as it is shown; None where there is nothing to compare."""
    shown = [_of_finished(runs, figure) for runs in column]
    means = [statistics.mean(values) for values in shown if values]
    return f"{max(means):.2f}" if len(means) > 1 else None


def _of_finished(runs: Sequence[Mapping[str, Any]], figure: str) -> list[float]:
    return [run[figure] for run in runs if run["status"] == "finished" and figure in run]


def _failed(runs: Sequence[Mapping[str, Any]]) -> int:
    return sum(run["status"] == "failed" for run in runs)


def _mean_text(values: Sequence[float]) -> str:
    text = f"{statistics.mean(values):.2f}"
    return f"{text} ± {statistics.stdev(values):.2f}" if len(values) > 1 else text


def _cell_text(runs: Sequence[Mapping[str, Any]], figure: str, best: Optional[str], words: Mapping[str, str]) -> str:
    values, failed = _of_finished(runs, figure), _failed(runs)
    if not values:
        return words["failed"] if failed else "–"
    text = _mean_text(values)
    if text.split()[0] == best:
        text = f"**{text}**"
    return f"{text} ({len(values)})" + (f", {failed} {words['failed']}" if failed else "")

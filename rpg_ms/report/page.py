"""The HTML page of a report: one file, figures inside, no scripts."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Union

from rpg_ms.config import changed_keys, dump_config
from rpg_ms.report import figures
from rpg_ms.report.runs import Run, by_label_and_sparsity
from rpg_ms.training.run_folder import FREE_ON_RESUME

if TYPE_CHECKING:
    from rpg_ms.tasks import Figure

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.25; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption, .note { color: #444; font-size: 0.9rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; white-space: normal; }
tbody + tfoot tr:first-child td { border-top: 2px solid #888; }
.warning { border-left: 4px solid #D55E00; padding: 0.3rem 0.8rem; background: #fdf3ec; }
pre { overflow-x: auto; background: #f5f5f5; padding: 0.8rem; font-size: 0.8rem; }
"""

DEFINITIONS = (
    "A layer's weight is viewed as a matrix of shape[0] rows; its full rank is the smaller side. The "
    "numeric rank counts the singular values above max(rows, columns) · ε · the largest, with ε of "
    "float32. The structural rank is the largest rank that any weights on the mask can have. A filter is "
    "dead when all weights of its output channel are zero. Non-zeros are the weights that the mask keeps. "
    "FLOPs are counted as multiply-adds, a multiplication with its addition being one, for one image and "
    "of convolution and dense layers only."
)

OF_A_SEED = (*FREE_ON_RESUME, "seed", "device_target")  # keys in which seeds of one experiment may differ


@dataclass(frozen=True)
class Picture:
    """A figure on the page and in a file beside it: `name`.png."""

    name: str
    figure: figures.Figure
    caption: str


def page_of_run(run: Run) -> tuple[str, list[Union[str, Picture]]]:
    """`(title, parts)` of one run; parts are texts of HTML and Pictures."""
    config = run.config
    title = f"{run.label}: {config.model.name} on {config.data.name}, {run.sparsity:g} % sparse"
    return title, [
        _state(run),
        _facts(run),
        Picture(
            "training",
            figures.training(run),
            f"{_capital(run.figure.label)}, training loss, density of the prunable weights (logarithmic) and "
            "learning rate over the steps.",
        ),
        "<h2>Layers</h2>",
        _floors(run),
        Picture(
            "layers",
            figures.layers(run),
            "Per layer, from the network's input at the top to its output: density, numeric and "
            "structural rank in percent of the full rank, dead filters in percent of the filters.",
        ),
        "<h2>The rank term</h2>",
        _rank_term(run),
        "<h2>Parameters and FLOPs, before and after</h2>",
        Picture(
            "cost",
            figures.cost(run),
            "Weights and multiply-adds of each layer for one image, dense and of the non-zeros (logarithmic).",
        ),
        _layer_table(run),
        _paragraph(DEFINITIONS, "note"),
        f"<details><summary>Configuration</summary><pre>{escape(dump_config(config))}</pre></details>",
    ]


def page_of_runs(runs: Sequence[Run]) -> tuple[str, list[Union[str, Picture]]]:
    """`(title, parts)` of several runs."""
    groups, figure = by_label_and_sparsity(runs), runs[0].figure
    kinds = list(dict.fromkeys(f"{run.config.model.name} on {run.config.data.name}" for run in runs))
    parts = [_paragraph(text, "warning") for text in _doubts(runs, groups, kinds)]
    if groups:
        parts += [
            Picture(
                "accuracy",
                figures.figure_by_sparsity(groups, figure),
                f"{_capital(figure.label)} at the end of training against sparsity. Points are means over "
                "seeds, bars one standard deviation (n − 1); a point without a bar is a single run. The "
                "axis is logarithmic in the density; methods are set apart a little so that they do "
                "not cover each other.",
            ),
            Picture(
                "rank",
                figures.rank_by_sparsity(groups),
                "Numeric rank of the weights and structural rank of the masks, each divided by the "
                "full rank and averaged over the layers, against sparsity; points and bars as above.",
            ),
        ]
    parts += ["<h2>Methods</h2>", _method_table(groups, figure), "<h2>Runs</h2>", _run_table(runs)]
    for run in runs:
        name = f"{run.label}, {run.sparsity:g} %, seed {run.config.seed}: {run.folder}"
        parts.append(
            f"<details><summary>{escape(name)}</summary>{_state(run)}{_facts(run)}{_layer_table(run)}</details>"
        )
    return f"{len(runs)} runs: {', '.join(kinds)}", [*parts, _paragraph(DEFINITIONS, "note")]


def _doubts(runs: Sequence[Run], groups: Mapping[tuple[str, float], Sequence[Run]], kinds: Sequence[str]) -> list[str]:
    """What a reader of the comparison must know before its figures: runs that do not compare, or are not finished."""
    doubts = []
    if len(kinds) > 1:
        doubts.append(
            f"These runs are not of one network and dataset, so their figures do not compare: {', '.join(kinds)}."
        )
    for (label, sparsity), (first, *others) in groups.items():
        keys = {key for run in others for key in changed_keys(first.config, run.config)} - set(OF_A_SEED)
        if keys:
            doubts.append(
                f"The runs of {label} at {sparsity:g} % count as seeds of one experiment, "
                f"but differ in {', '.join(sorted(keys))}."
            )
    unfinished = sum(run.summary is None for run in runs)
    if unfinished:
        doubts.append(f"Unfinished: {unfinished} of {len(runs)} runs, listed below, but left out of figures and means.")
    return doubts


def render(title: str, parts: Sequence[Union[str, Picture]], png: Mapping[str, bytes]) -> str:
    """The page as text; `png` holds the bytes of every Picture by its name."""
    body = "\n".join(part if isinstance(part, str) else _figure(part, png[part.name]) for part in parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""


def _figure(picture: Picture, png: bytes) -> str:
    source = base64.b64encode(png).decode()
    caption = escape(picture.caption)
    return (
        f'<figure id="{picture.name}"><img src="data:image/png;base64,{source}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _state(run: Run) -> str:
    text = f"{run.state}, {run.seconds / 60:.1f} minutes."
    if run.summary is not None:
        return _paragraph(text)
    return _paragraph(f"{text} Layers are those of its newest checkpoint; the curves may go further.", "warning")


def _facts(run: Run) -> str:
    rank, count = run.config.rank, len(run.layers)
    flops, dense_flops = (run.total(name) + run.other_flops for name in ("flops", "dense_flops"))
    by_weights = sum(layer.numeric_share < 1 for layer in run.layers)
    by_masks = sum(layer.structural_share < 1 for layer in run.layers)
    facts = {
        _capital(run.figure.label): "–" if run.measured is None else f"{run.measured:.2f} {run.figure.unit}",
        "Weights kept": _part(run.total("nonzero"), run.total("weights")),
        "Multiply-adds for one image": _part(flops, dense_flops),
        "Dead filters": _part(run.total("dead_filters"), run.total("filters")),
        "Layers below full rank": f"{by_weights} of {count} by their weights, {by_masks} by their masks",
        "Rank term": f"λ = {rank.lambda_:g}, δ = {rank.delta:g}, on every {rank.every}" if rank.lambda_ else "none",
        "Seed": run.config.seed,
        "Folder": run.folder,
    }
    return _table(facts.items())


def _rank_term(run: Run) -> Union[str, Picture]:
    rank = run.config.rank
    if run.rank_updates:
        return Picture(
            "rank_k",
            figures.rank_k(run),
            "k at each topology update, in percent of the full rank: how many singular values of a layer "
            f"the rank term keeps, so that the energy of the others is nearest to δ = {rank.delta:g}.",
        )
    why = "no topology update has computed the rank term" if rank.lambda_ else "rank.lambda is 0"
    return _paragraph(f"There is no figure of k over the updates: {why}.")


def _floors(run: Run) -> str:
    """A warning that names the layers with no more weights than the floor, or nothing."""
    low = [layer.name for layer in run.layers if run.is_at_floor(layer)]
    if not low:
        return ""
    floor = run.config.pruning.min_per_layer
    text = (
        f"Down to pruning.min_per_layer ({floor}): {', '.join(low)}. pruning.exclude keeps layers dense, "
        "pruning.allocation=erk spares small ones."
    )
    return _paragraph(text, "warning")


def _layer_table(run: Run) -> str:
    members = [layer.name for layer in run.layers if layer.in_rank_term]
    updates = [line["ranks"] for line in run.rank_updates if line["step"] <= run.step]
    last_k = dict(zip(members, updates[-1])) if updates else {}

    def costs(weights: int, nonzero: int, dense_flops: int, flops: int) -> dict[str, str]:
        return {
            "weights": f"{weights:,}",
            "non-zeros": f"{nonzero:,}",
            "density (%)": f"{100 * nonzero / max(weights, 1):.3g}",
            "multiply-adds, dense": f"{dense_flops:,}",
            "multiply-adds, non-zeros": f"{flops:,}",
        }

    rows = [
        {
            "layer": f"{layer.name} (at its floor)" if run.is_at_floor(layer) else layer.name,
            "shape": " × ".join(map(str, layer.shape)),
            **costs(layer.weights, layer.nonzero, layer.dense_flops, layer.flops),
            "full rank": layer.full_rank,
            "structural rank": layer.structural_rank,
            "numeric rank": layer.numeric_rank,
            "last k": last_k.get(layer.name, "–"),
            "dead filters": f"{layer.dead_filters} of {layer.filters}",
        }
        for layer in run.layers
    ]
    pruned = [run.total(name) for name in ("weights", "nonzero", "dense_flops", "flops")]
    others = [run.other_parameters] * 2 + [run.other_flops] * 2
    sums = {"prunable weights": pruned, "biases, norms and others": others}
    sums["all parameters"] = [a + b for a, b in zip(pruned, others)]
    foot = [[name, "", *costs(*counts).values(), *[""] * 5] for name, counts in sums.items()]
    return _table((row.values() for row in rows), rows[0], foot)


def _method_table(groups: Mapping[tuple[str, float], Sequence[Run]], figure: Figure) -> str:
    if not groups:
        return "<p>No run is finished.</p>"
    rows = []
    for (label, sparsity), members in sorted(groups.items(), key=lambda group: group[0][1]):
        values = [run.measured for run in members]
        kept = [run.total("nonzero") for run in members]
        rows.append(
            {
                "method": label,
                "sparsity (%)": f"{sparsity:g}",
                "seeds": f"{len(members)} ({', '.join(str(run.config.seed) for run in members)})",
                f"{figure.axis}, mean ± std": (
                    f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
                ),
                "non-zeros": " to ".join(f"{count:,}" for count in sorted({min(kept), max(kept)})),
                "numeric rank (% of full, mean over layers)": (
                    f"{100 * mean(run.mean('numeric_share') for run in members):.1f}"
                ),
                "structural rank (% of full, mean over layers)": (
                    f"{100 * mean(run.mean('structural_share') for run in members):.1f}"
                ),
                "minutes a run": f"{mean(run.seconds for run in members) / 60:.1f}",
            }
        )
    return _table((row.values() for row in rows), rows[0])


def _run_table(runs: Sequence[Run]) -> str:
    rows = [
        {
            "method": run.label,
            "sparsity (%)": f"{run.sparsity:g}",
            "seed": run.config.seed,
            runs[0].figure.axis: "–" if run.measured is None else f"{run.measured:.2f}",
            "non-zeros": f"{run.total('nonzero'):,}",
            "minutes": f"{run.seconds / 60:.1f}",
            "state": run.state,
            "folder": run.folder,
        }
        for run in runs
    ]
    return _table((row.values() for row in rows), rows[0])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _part(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({100 * part / max(whole, 1):.3g} %)"


def _table(rows: Iterable[Iterable[Any]], head: Iterable[str] = (), foot: Iterable[Iterable[Any]] = ()) -> str:
    def part(tag: str, rows: Iterable[Iterable[Any]], cell: str = "td") -> str:
        lines = ["".join(f"<{cell}>{escape(str(text))}</{cell}>" for text in row) for row in rows]
        return f"<{tag}>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + f"</{tag}>" if any(lines) else ""

    parts = part("thead", [head], "th") + part("tbody", rows) + part("tfoot", foot)
    return f'<div class="table"><table>{parts}</table></div>'


def _paragraph(text: str, kind: str = "plain") -> str:
    return f'<p class="{kind}">{escape(text)}</p>'

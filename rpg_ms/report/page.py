"""The HTML page of a report: one file, figures inside, no scripts."""
from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape
from statistics import mean, stdev

from rpg_ms.config import changed_keys, dump_config
from rpg_ms.report import figures

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1, h2, h3 { line-height: 1.25; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption, .note { color: #444; font-size: 0.9rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; white-space: normal; }
tfoot td { border-top: 2px solid #888; font-weight: 600; }
.warning { border-left: 4px solid #D55E00; padding: 0.3rem 0.8rem; background: #fdf3ec; }
pre { overflow-x: auto; background: #f5f5f5; padding: 0.8rem; font-size: 0.8rem; }
"""

DEFINITIONS = (
    "A layer's weight is viewed as a matrix of shape[0] rows; its full rank is the smaller side. The numeric rank counts "
    "singular values above max(rows, columns) · ε · the largest, ε that of float32. The structural rank is the "
    "largest rank that any weights on the mask can have. A filter is dead when all weights of its output channel are "
    "zero. Non-zeros are the positions that the mask keeps. FLOPs are counted as multiply-adds (one multiplication and one addition are "
    "one) for one image, of convolution and dense layers only.")

# Keys in which seeds of one experiment may differ.
OF_A_SEED = ("seed", "output_dir", "data.root", "data.workers", "checkpoint.every_steps", "checkpoint.keep",
             "device_target")


@dataclass(frozen=True)
class Picture:
    """A figure on the page and in a file beside it: `name`.png."""

    name: str
    figure: figures.Figure
    caption: str


def by_label_and_sparsity(runs):
    """`{(label, sparsity): [Run, ...]}` of the finished runs, in the order given."""
    groups = {}
    for run in runs:
        if run.summary is not None:
            groups.setdefault((run.label, run.sparsity), []).append(run)
    return groups


def page_of_run(run):
    """`(title, parts)` of one run; parts are texts of HTML and Pictures."""
    config = run.config
    title = f"{run.label}: {config.model.name} on {config.data.name}, {run.sparsity:g} % sparse"
    parts = [_state(run), _facts(run), Picture(
        "training", figures.training(run),
        "Top-1 accuracy, training loss, density of the prunable weights (logarithmic) and learning rate over the steps.")]
    parts += ["<h2>Layers</h2>", Picture(
        "layers", figures.layers(run),
        "Per layer, from the input at the top to the output: density, numeric and structural rank in percent of the "
        "full rank, and dead filters in percent of the filters.")]
    parts.append("<h2>The rank term</h2>")
    if run.rank_updates:
        parts.append(Picture(
            "rank_k", figures.rank_k(run),
            "k at each topology update: how many singular values the rank term leaves to a layer, so that the energy of "
            f"the rest is nearest to δ = {config.rank.delta:g}; in percent of the full rank."))
    elif config.rank.lambda_:
        parts.append("<p>There is no figure of k over the updates: no topology update has computed the rank term yet.</p>")
    else:
        parts.append("<p>There is no figure of k over the updates: the run had no rank term (rank.lambda is 0).</p>")
    parts += ["<h2>Parameters and FLOPs, before and after</h2>", Picture(
        "cost", figures.cost(run),
        "Weights and multiply-adds of each layer for one image, dense and of the non-zeros (logarithmic)."),
        _layer_table(run), f'<p class="note">{escape(DEFINITIONS)}</p>',
        f"<details><summary>Configuration</summary><pre>{escape(dump_config(config))}</pre></details>"]
    return title, parts


def page_of_runs(runs):
    """`(title, parts)` of several runs."""
    groups = by_label_and_sparsity(runs)
    kinds = list(dict.fromkeys(f"{run.config.model.name} on {run.config.data.name}" for run in runs))
    parts = []
    if len(kinds) > 1:
        parts.append(_warning("These runs are not of one network and dataset, so their figures do not compare: "
                              f"{', '.join(kinds)}."))
    parts += [_warning(f"{label} at {sparsity:g} %: its runs are taken for seeds of one experiment, but differ in "
                       f"{', '.join(keys)}.")
              for (label, sparsity), members in groups.items() for keys in [_differing(members)] if keys]
    unfinished = sum(run.summary is None for run in runs)
    if unfinished:
        parts.append(f"<p>{unfinished} of {len(runs)} runs {'is' if unfinished == 1 else 'are'} unfinished: listed below, "
                     "but left out of figures and means.</p>")
    if groups:
        parts += [Picture(
            "accuracy", figures.accuracy_by_sparsity(groups),
            "Top-1 accuracy at the end of training against sparsity. Points are means over seeds, bars one standard "
            "deviation (n − 1); a point without a bar is a single run. The axis is logarithmic in the density, and labels "
            "are set apart a little so that they do not cover each other."),
            Picture(
            "rank", figures.rank_by_sparsity(groups),
            "Numeric rank of the weights and structural rank of the masks, each divided by the full rank and averaged over "
            "the layers, against sparsity; points and bars as above.")]
    parts += ["<h2>Methods</h2>", _method_table(groups), "<h2>Runs</h2>", _run_table(runs),
              f'<p class="note">{escape(DEFINITIONS)}</p>']
    for run in runs:
        parts.append(f"<details><summary>{escape(run.label)}, {run.sparsity:g} %, seed {run.config.seed}: "
                     f"{escape(str(run.folder))}</summary>{_state(run)}{_facts(run)}{_layer_table(run)}</details>")
    return f"{len(runs)} runs: {', '.join(kinds)}", parts


def render(title, parts, png):
    """The page as text; `png` holds the bytes of every Picture by its name."""
    body = "\n".join(part if isinstance(part, str) else _figure(part, png[part.name]) for part in parts)
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
            f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n")


def _figure(picture, png):
    source = base64.b64encode(png).decode("ascii")
    caption = escape(picture.caption)
    return (f'<figure id="{picture.name}"><img src="data:image/png;base64,{source}" alt="{caption}">'
            f"<figcaption>{caption}</figcaption></figure>")


def _state(run):
    text = f"{run.state}, {_minutes(run)} minutes"
    if run.summary is not None:
        return f"<p>{escape(text)}.</p>"
    return _warning(f"{text}. Layers are those of its newest checkpoint; what was logged may go further.")


def _facts(run):
    dense, sparse = sum(layer.dense_flops for layer in run.layers), sum(layer.flops for layer in run.layers)
    dead, filters = sum(layer.dead_filters for layer in run.layers), sum(layer.filters for layer in run.layers)
    short = {rank: sum(getattr(layer, rank) < layer.full_rank for layer in run.layers)
             for rank in ("numeric_rank", "structural_rank")}
    rank = run.config.rank
    rows = [
        ("Top-1 accuracy", _percent(run.top1)),
        ("Weights kept", f"{run.nonzero:,} of {run.prunable:,} ({100 * run.density:.3g} %)"),
        ("Multiply-adds for one image", f"{sparse:,} of {dense:,} ({100 * sparse / max(dense, 1):.3g} %)"),
        ("Dead filters", f"{dead:,} of {filters:,}"),
        ("Layers below full rank", f"{short['numeric_rank']} of {len(run.layers)} by the weights, "
                                   f"{short['structural_rank']} by the masks"),
        ("Rank term", f"λ = {rank.lambda_:g}, δ = {rank.delta:g}, on every {rank.every}" if rank.lambda_ else "none"),
        ("Seed", str(run.config.seed)),
        ("Folder", str(run.folder)),
    ]
    return _table(None, rows)


def _layer_table(run):
    last_k = {}
    if run.rank_updates:
        members = [layer.name for layer in run.layers if layer.in_rank_term]
        last_k = dict(zip(members, run.rank_updates[-1]["ranks"]))
    head = ["layer", "shape", "weights", "non-zeros", "density (%)", "full rank", "structural rank", "numeric rank"]
    head += ["last k"] * bool(last_k) + ["dead filters", "multiply-adds, dense", "multiply-adds, non-zeros"]
    rows = []
    for layer in run.layers:
        rows.append([layer.name, " × ".join(map(str, layer.shape)), f"{layer.weights:,}", f"{layer.nonzero:,}",
                     f"{100 * layer.density:.3g}", layer.full_rank, layer.structural_rank, layer.numeric_rank,
                     *([last_k.get(layer.name, "–")] if last_k else []),
                     f"{layer.dead_filters} of {layer.filters}", f"{layer.dense_flops:,}", f"{layer.flops:,}"])
    blank = [""] * (len(head) - 5)
    dense, sparse = sum(layer.dense_flops for layer in run.layers), sum(layer.flops for layer in run.layers)
    foot = [["all prunable", "", f"{run.prunable:,}", f"{run.nonzero:,}", f"{100 * run.density:.3g}",
             *blank[:-2], f"{dense:,}", f"{sparse:,}"],
            ["never pruned (biases, norms …)", "", f"{run.other_parameters:,}", f"{run.other_parameters:,}", "100",
             *blank],
            ["all parameters", "", f"{run.prunable + run.other_parameters:,}", f"{run.nonzero + run.other_parameters:,}",
             f"{100 * (run.nonzero + run.other_parameters) / (run.prunable + run.other_parameters):.3g}", *blank]]
    return _table(head, rows, foot)


def _method_table(groups):
    if not groups:
        return "<p>No run is finished.</p>"
    rows = []
    for (label, sparsity), members in sorted(groups.items(), key=lambda group: group[0][1]):
        top1, minutes = [run.top1 for run in members], [run.seconds / 60 for run in members]
        spread = f" ± {stdev(top1):.2f}" if len(top1) > 1 else ""
        kept = sorted({run.nonzero for run in members})
        seeds = ", ".join(str(run.config.seed) for run in members)
        rows.append([label, f"{sparsity:g}", f"{len(members)} ({seeds})", f"{mean(top1):.2f}{spread}",
                     " to ".join(f"{count:,}" for count in dict.fromkeys((kept[0], kept[-1]))),
                     _percent(100 * mean(figures.mean_rank(run, "numeric_rank") for run in members)),
                     _percent(100 * mean(figures.mean_rank(run, "structural_rank") for run in members)),
                     f"{mean(minutes):.1f}"])
    return _table(["method", "sparsity (%)", "seeds", "top-1 (%), mean ± std", "non-zeros",
                   "numeric rank, mean over layers", "structural rank, mean over layers", "minutes a run"], rows)


def _run_table(runs):
    return _table(["method", "sparsity (%)", "seed", "top-1 (%)", "non-zeros", "minutes", "state", "folder"],
                  [[run.label, f"{run.sparsity:g}", run.config.seed, "–" if run.top1 is None else f"{run.top1:.2f}",
                    f"{run.nonzero:,}", _minutes(run), run.state, run.folder] for run in runs])


def _table(head, rows, foot=()):
    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
    parts = ['<div class="table"><table>']
    if head is not None:
        parts.append(f"<thead>{line(head, 'th')}</thead>")
    parts.append("<tbody>" + "\n".join(line(row, "td") for row in rows) + "</tbody>")
    if foot:
        parts.append("<tfoot>" + "\n".join(line(row, "td") for row in foot) + "</tfoot>")
    return "".join(parts) + "</table></div>"


def _differing(runs):
    """Keys other than a seed's in which any of the runs differs from the first."""
    return sorted({key for run in runs[1:] for key in changed_keys(runs[0].config, run.config)} - set(OF_A_SEED))


def _warning(text):
    return f'<p class="warning">{escape(text)}</p>'


def _minutes(run):
    return f"{run.seconds / 60:.1f}"


def _percent(value):
    return "–" if value is None else f"{value:.2f} %"

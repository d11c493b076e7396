"""The figures of a report, each a matplotlib Figure of its own; colours are Okabe and Ito's, and viridis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rpg_ms.report.runs import Layer, Run
    from rpg_ms.tasks import Figure as TaskFigure

BLUE, VERMILLION, GREEN, ORANGE, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7"
SERIES = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, "#56B4E9", "#000000")
MARKERS = "osD^vPX*"  # one more than the colours, so that both together stay distinct for long
GREY = "#8a8a8a"
# The two marks in the row of a layer.
LARGE = {"color": ORANGE, "marker": "o", "markersize": 8, "fillstyle": "none", "linestyle": "none", "clip_on": False}
SMALL = {"color": BLUE, "marker": "D", "markersize": 4, "linestyle": "none", "clip_on": False}
LONGEST_NAME = 36


def training(run: Run) -> Figure:
    """The task's figure, loss, density and learning rate over the steps."""
    figure = _figure(8.2)
    measured, loss, density, rate = figure.subplots(4, sharex=True)
    name = run.figure.name
    measured.plot(*_series(run.evaluation, name), color=BLUE, marker="o", markersize=4, label="weights")
    averaged = [line for line in run.evaluation if isinstance(line.get(f"{name}_ema"), (int, float))]
    if averaged:
        style = {"color": VERMILLION, "marker": "s", "markersize": 4, "linestyle": "--"}
        measured.plot(*_series(averaged, f"{name}_ema"), label="their moving average", **style)
        measured.legend()
    if not run.evaluation:
        measured.text(0.5, 0.5, "no evaluation yet", transform=measured.transAxes, ha="center", color=GREY)
        measured.set_yticks([])
    alone = {"marker": "o"} if len(run.train) == 1 else {}  # a line of one point is not seen
    loss.plot(*_series(run.train, "loss"), color=VERMILLION, linewidth=1, **alone)
    known = [(0, line["density"]) for line in run.start] + [(line["step"], line["density"]) for line in run.topology]
    steps, densities = zip(*known or [(0, run.density)])
    last = max([run.step] + [line["step"] for line in (*run.train, *run.topology, *run.evaluation)])
    density.step([*steps, last], [100 * d for d in (*densities, densities[-1])], where="post", color=GREEN)
    density.set(yscale="log", ylim=(min(25, 80 * min(densities)), 120))
    density.yaxis.set(major_locator=LogLocator(subs=(1, 3)), major_formatter="{x:g}", minor_formatter=NullFormatter())
    rate.plot(*_series(run.train, "lr"), color=PURPLE, **alone)
    rate.set_ylim(bottom=0)
    rate.set(xlabel="step", xlim=(0, 1.02 * max(last, 1)))
    labels = (run.figure.axis, "training loss", "density (%)", "learning rate")
    for axes, label in zip((measured, loss, density, rate), labels):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.align_ylabels()
    return figure


def layers(run: Run) -> Figure:
    """Per layer: density, ranks as shares of the full rank, dead filters."""
    figure, (density, rank, dead) = _rows(run.layers, (1, 1.35, 0.8))
    rows = range(len(run.layers))
    density.barh(rows, [100 * layer.density for layer in run.layers], color=BLUE, height=0.7)
    density.set_xlabel("density (%)")
    rank.hlines(rows, 0, 100, color=GREY, linewidth=0.6, alpha=0.5)
    structural = [100 * layer.structural_share for layer in run.layers]
    rank.plot(structural, rows, label="structural rank of the mask", **LARGE)
    rank.plot([100 * layer.numeric_share for layer in run.layers], rows, label="numeric rank of the weights", **SMALL)
    rank.set(xlim=(0, 100), xlabel="rank (% of full rank)")
    shares = [100 * layer.dead_filters / layer.filters for layer in run.layers]
    dead.barh(rows, shares, color=VERMILLION, height=0.7)
    dead.set(xlim=(0, max(5, 1.1 * max(shares))), xlabel="dead filters (%)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def cost(run: Run) -> Figure:
    """Per layer, before and after: weights and multiply-adds, on logarithmic axes."""
    figure, (weights, flops) = _rows(run.layers, (1, 1))
    rows = range(len(run.layers))
    for axes, dense, sparse, label in (
        (weights, "weights", "nonzero", "weights"),
        (flops, "dense_flops", "flops", "multiply-adds for one image"),
    ):
        before = [getattr(layer, dense) for layer in run.layers]
        after = [getattr(layer, sparse) for layer in run.layers]
        axes.hlines(rows, after, before, color=GREY, linewidth=1)
        axes.plot(before, rows, label="dense", **LARGE)
        axes.plot(after, rows, label="non-zeros", **SMALL)
        axes.set_xscale("symlog", linthresh=1)  # logarithmic, with room for a 0
        lowest = 10 ** np.floor(np.log10(min(after))) if min(after) > 0 else 0
        axes.set(xlim=(lowest, 10 ** np.ceil(np.log10(max(before) + 1))), xlabel=label)
        axes.xaxis.set_minor_locator(NullLocator())
    figure.legend(*weights.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def rank_k(run: Run) -> Figure:
    """k of the rank term at every update, layers by updates, as a share of the full rank."""
    members = [layer for layer in run.layers if layer.in_rank_term]
    updates = run.rank_updates
    values = np.array([line["ranks"] for line in updates], float).T
    figure, (axes,) = _rows(members, (1,), [f"{_short(layer.name)}  ({layer.full_rank})" for layer in members])
    share = 100 * values / np.array([[layer.full_rank] for layer in members])
    image = axes.imshow(share, aspect="auto", cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
    axes.grid(False)
    axes.set(ylabel="layer (full rank)", xlabel="step of the topology update")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda place, _: str(updates[round(place)]["step"]) if 0 <= round(place) < len(updates) else "")
    )
    figure.colorbar(image, ax=axes, label="k (% of full rank)", pad=0.01)
    return figure


def figure_by_sparsity(groups: Mapping[tuple[str, float], Sequence[Run]], measured: TaskFigure) -> Figure:
    """The task's figure `measured` against sparsity, a line a label; `groups` as of `runs.by_label_and_sparsity`."""
    figure = _figure(5)
    axes = figure.subplots()
    _against_sparsity(axes, groups, lambda run: run.measured)
    axes.set_ylabel(measured.axis)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def rank_by_sparsity(groups: Mapping[tuple[str, float], Sequence[Run]]) -> Figure:
    """Numeric and structural rank as shares of the full rank, mean over the layers, against sparsity."""
    figure = _figure(5)
    numeric, structural = figure.subplots(1, 2, sharey=True)
    _against_sparsity(numeric, groups, lambda run: 100 * run.mean("numeric_share"))
    _against_sparsity(structural, groups, lambda run: 100 * run.mean("structural_share"))
    numeric.set(title="numeric rank of the weights", ylabel="rank (% of full rank, mean over the layers)")
    structural.set_title("structural rank of the masks")
    figure.legend(*numeric.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _figure(height: float) -> Figure:
    """A figure 9 inches wide and `height` inches high."""
    figure = Figure(figsize=(9, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    return figure


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    return [line["step"] for line in lines], [line[key] for line in lines]


def _rows(
    members: Sequence[Layer], widths: Sequence[float], names: Sequence[str] = ()
) -> tuple[Figure, Sequence[Axes]]:
    """A figure with a row for each layer, the first on top, and a panel of each relative width; they share the rows."""
    figure = _figure(max(2.8, 0.2 * len(members) + 1.3))
    panels = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
    names = names or [_short(layer.name) for layer in members]
    panels[0].set_yticks(range(len(members)), [_plain(name) for name in names], fontsize=8)
    panels[0].set_ylim(len(members) - 0.5, -0.5)
    for axes in panels:
        axes.grid(axis="x", alpha=0.3)
    return figure, panels


def _against_sparsity(
    axes: Axes, groups: Mapping[tuple[str, float], Sequence[Run]], value: Callable[[Run], float]
) -> None:
    """A line a label through the means over its runs, with standard deviations where there are several.

    Runs without any sparsity are what the others are measured against: a horizontal line.
    """
    sparsities = sorted({sparsity for _, sparsity in groups if sparsity > 0}) or [0.0]
    # Every halving of the density is as far on the axis as the next.
    places = {sparsity: -np.log2(max(100 - sparsity, 0.005) / 100) for sparsity in sparsities}
    lines = defaultdict(list)
    for label, sparsity in sorted(groups, key=lambda key: key[1]):
        values = [value(run) for run in groups[label, sparsity]]
        if sparsity in places:
            lines[label].append((places[sparsity], mean(values), stdev(values) if len(values) > 1 else 0.0))
        else:
            axes.axhline(mean(values), color=GREY, linestyle="--", label=_plain(f"{label} (0 %)"))
    gap = min(np.diff(list(places.values())), default=1.0)
    labels = [label for label in dict.fromkeys(label for label, _ in groups) if label in lines]
    for i, label in enumerate(labels):
        shift = min(0.05, 0.25 / len(labels)) * gap * (i - (len(labels) - 1) / 2)
        x, means, errors = np.transpose(lines[label])
        style = {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % len(MARKERS)], "linewidth": 1.2}
        style["linestyle"] = "-" if i < len(SERIES) else ":"
        axes.errorbar(x + shift, means, errors, markersize=6, capsize=3, label=_plain(label), **style)
    ticks = _apart(places)
    axes.set_xticks([places[sparsity] for sparsity in ticks], [f"{sparsity:g}" for sparsity in ticks])
    axes.margins(x=0.08)
    axes.set_xlabel("sparsity (%)")
    axes.grid(alpha=0.3)


def _apart(places: Mapping[float, float]) -> list[float]:
    """The sparsities whose labels do not touch: a tenth of the axis apart at least, the last among them."""
    *others, last = places
    shown, whole = [last], places[last] - min(places.values())
    for sparsity in reversed(others):
        if places[shown[0]] - places[sparsity] >= 0.1 * whole:
            shown.insert(0, sparsity)
    return shown


def _short(name: str) -> str:
    """A layer's name, its middle left out where it is very long."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def _plain(text: str) -> str:
    text = text.replace("$", r"\$")  # which would begin a formula
    return f" {text}" if text.startswith("_") else text  # which legends leave out

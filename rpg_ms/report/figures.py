"""The figures of a report, each a matplotlib Figure of its own; colours are Okabe and Ito's, and viridis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rpg_ms.report.runs import Layer, Run
    from rpg_ms.tasks import Figure as TaskFigure

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
)
SERIES = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = "osD^vPX*"  # one more than the colours, so that both together stay distinct for long
GREY = "#8a8a8a"
WIDTH = 9.0  # inches, as are all sizes
ROW = 0.2  # of a layer
LONGEST_NAME = 36


def training(run: Run) -> Figure:
    """The task's figure, loss, density and learning rate over the steps."""
    figure = _figure(8.2)
    measured, loss, density, rate = figure.subplots(4, sharex=True)
    name = run.figure.name
    measured.plot(*_series(run.evaluation, name), color=BLUE, marker="o", markersize=4, label="weights")
    averaged = [line for line in run.evaluation if isinstance(line.get(f"{name}_ema"), (int, float))]
    if averaged:
        measured.plot(
            *_series(averaged, f"{name}_ema"),
            color=VERMILLION,
            marker="s",
            markersize=4,
            linestyle="--",
            label="their moving average",
        )
        measured.legend()
    measured.set_ylabel(run.figure.axis)
    alone = {"marker": "o"} if len(run.train) == 1 else {}  # a line of one point is not seen
    loss.plot(*_series(run.train, "loss"), color=VERMILLION, linewidth=1, **alone)
    loss.set_ylabel("training loss")
    known = [(0, line["density"]) for line in run.start] + [(line["step"], line["density"]) for line in run.topology]
    steps, densities = zip(*known or [(0, run.density)])
    last = max([run.step] + [line["step"] for line in (*run.train, *run.topology, *run.evaluation)])
    density.step([*steps, last], [100 * d for d in (*densities, densities[-1])], where="post", color=GREEN)
    density.set_ylim(min(25, 80 * min(densities)), 120)
    _percent_on_log_axis(density)
    density.set_ylabel("density (%)")
    rate.plot(*_series(run.train, "lr"), color=PURPLE, **alone)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("step")
    rate.set_xlim(0, 1.02 * max(last, 1))
    for axes in (measured, loss, density, rate):
        axes.grid(alpha=0.3)
    if not run.evaluation:
        measured.text(0.5, 0.5, "no evaluation yet", transform=measured.transAxes, ha="center", color=GREY)
        measured.set_yticks([])
    figure.align_ylabels()
    return figure


def layers(run: Run) -> Figure:
    """Per layer: density, ranks as shares of the full rank, dead filters."""
    figure, (density, rank, dead) = _rows(run.layers, 3, (1, 1.35, 0.8))
    rows = np.arange(len(run.layers))
    density.barh(rows, [100 * layer.density for layer in run.layers], color=BLUE, height=0.7)
    density.set_xlabel("density (%)")
    rank.hlines(rows, 0, 100, color=GREY, linewidth=0.6, alpha=0.5)
    rank.plot(
        [100 * layer.structural_share for layer in run.layers],
        rows,
        "o",
        color=ORANGE,
        markersize=8,
        markerfacecolor="none",
        markeredgewidth=1.5,
        label="structural rank of the mask",
        clip_on=False,
    )
    rank.plot(
        [100 * layer.numeric_share for layer in run.layers],
        rows,
        "D",
        color=BLUE,
        markersize=3.5,
        label="numeric rank of the weights",
        clip_on=False,
    )
    rank.set_xlim(0, 100)
    rank.set_xlabel("rank (% of full rank)")
    shares = [100 * layer.dead_filters / layer.filters for layer in run.layers]
    dead.barh(rows, shares, color=VERMILLION, height=0.7)
    dead.set_xlim(0, max(5, 1.1 * max(shares)))
    dead.set_xlabel("dead filters (%)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    for axes in (density, rank, dead):
        axes.grid(axis="x", alpha=0.3)
    return figure


def cost(run: Run) -> Figure:
    """Per layer, before and after: weights and multiply-adds, on logarithmic axes."""
    figure, panels = _rows(run.layers, 2, (1, 1))
    rows = np.arange(len(run.layers))
    for axes, dense, sparse, label in (
        (panels[0], "weights", "nonzero", "weights"),
        (panels[1], "dense_flops", "flops", "multiply-adds for one image"),
    ):
        before = [getattr(layer, dense) for layer in run.layers]
        after = [getattr(layer, sparse) for layer in run.layers]
        axes.hlines(rows, after, before, color=GREY, linewidth=1)
        axes.plot(
            before,
            rows,
            "o",
            color=ORANGE,
            markersize=7,
            markerfacecolor="white",
            markeredgewidth=1.5,
            label="dense",
            clip_on=False,
        )
        axes.plot(after, rows, "D", color=BLUE, markersize=4, label="non-zeros", clip_on=False)
        axes.set_xscale("symlog", linthresh=1)  # logarithmic, with room for a 0
        lowest = 10 ** np.floor(np.log10(min(after))) if min(after) > 0 else 0
        axes.set_xlim(lowest, 10 ** np.ceil(np.log10(max(before) + 1)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def rank_k(run: Run) -> Figure:
    """k of the rank term at every update, layers by updates, as a share of the full rank."""
    members = [layer for layer in run.layers if layer.in_rank_term]
    updates = run.rank_updates
    values = np.array([line["ranks"] for line in updates], float).T
    share = 100 * values / np.array([[layer.full_rank] for layer in members])
    figure = _figure(max(2.8, ROW * len(members) + 1.2))
    axes = figure.subplots()
    image = axes.imshow(share, aspect="auto", cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
    _name_rows(axes, [f"{_short(layer.name)}  ({layer.full_rank})" for layer in members])
    axes.set_ylabel("layer (full rank)")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda place, _: str(updates[round(place)]["step"]) if 0 <= round(place) < len(updates) else "")
    )
    axes.set_xlabel("step of the topology update")
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
    numeric.set_title("numeric rank of the weights")
    structural.set_title("structural rank of the masks")
    numeric.set_ylabel("rank (% of full rank, mean over the layers)")
    figure.legend(*numeric.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    return figure


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    return [line["step"] for line in lines], [line[key] for line in lines]


def _percent_on_log_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if low <= tick <= high])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _rows(members: Sequence[Layer], panels: int, widths: Sequence[float]) -> tuple[Figure, np.ndarray]:
    """A figure with a row for each layer and several panels that share the layers' names."""
    figure = _figure(max(2.8, ROW * len(members) + 1.3))
    axes = figure.subplots(1, panels, sharey=True, gridspec_kw={"width_ratios": widths})
    _name_rows(axes[0], [_short(layer.name) for layer in members])
    return figure, axes


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_plain(name) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first layer on top


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
        axes.errorbar(
            x + shift,
            means,
            errors,
            color=SERIES[i % len(SERIES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=6,
            capsize=3,
            linewidth=1.2,
            linestyle="-" if i < len(SERIES) else ":",
            label=_plain(label),
        )
    ticks = _apart(places)
    axes.set_xticks([places[sparsity] for sparsity in ticks], [f"{sparsity:g}" for sparsity in ticks])
    axes.margins(x=0.08)
    axes.set_xlabel("sparsity (%)")
    axes.grid(alpha=0.3)


def _apart(places: Mapping[float, float], least: float = 0.1) -> list[float]:
    """The sparsities whose labels do not touch: a share of the axis apart at least, the last among them."""
    *others, last = places
    shown, whole = [last], places[last] - min(places.values())
    for sparsity in reversed(others):
        if places[shown[0]] - places[sparsity] >= least * whole:
            shown.insert(0, sparsity)
    return shown


def _short(name: str) -> str:
    """A layer's name, its middle left out where it is very long."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def _plain(text: str) -> str:
    text = text.replace("$", r"\$")  # which would begin a formula
    return f" {text}" if text.startswith("_") else text  # which legends leave out

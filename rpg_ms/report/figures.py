"""The figures of a report, each a matplotlib Figure of its own; colours are Okabe and Ito's, and viridis."""
from __future__ import annotations

from collections import defaultdict
from statistics import mean, stdev

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
SERIES = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = "osD^vPX*"  # one more than the colours, so that both together stay distinct for long
GREY = "#8a8a8a"
WIDTH = 9.0  # inches, as are all sizes
ROW = 0.2  # of a layer
LONGEST_NAME = 36


def training(run):
    """Accuracy, loss, density and learning rate over the steps."""
    figure = Figure(figsize=(WIDTH, 8.2), layout="constrained")
    accuracy, loss, density, rate = figure.subplots(4, sharex=True)
    accuracy.plot(*_series(run.evaluation, "top1"), color=BLUE, marker="o", markersize=4, label="weights")
    averaged = [line for line in run.evaluation if isinstance(line.get("top1_ema"), (int, float))]
    if averaged:
        accuracy.plot(*_series(averaged, "top1_ema"), color=VERMILLION, marker="s", markersize=4, linestyle="--",
                      label="their moving average")
        accuracy.legend()
    accuracy.set_ylabel("top-1 accuracy (%)")
    loss.plot(*_series(run.train, "loss"), color=VERMILLION, linewidth=1)
    loss.set_ylabel("training loss")
    steps, densities = _series(run.topology, "density")
    last = max([run.step] + [line["step"] for line in (*run.train, *run.topology, *run.evaluation)])
    now = densities[-1] if densities else run.density
    before = 1.0 if densities else now
    density.step([0, *steps, last], [100 * d for d in (before, *densities, now)], where="post", color=GREEN)
    _percent_on_log_axis(density)
    density.set_ylabel("density (%)")
    rate.plot(*_series(run.train, "lr"), color=PURPLE)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("step")
    rate.set_xlim(0, max(last, 1))
    for axes in (accuracy, loss, density, rate):
        axes.grid(alpha=0.3)
    if not run.evaluation:
        accuracy.text(0.5, 0.5, "no evaluation yet", transform=accuracy.transAxes, ha="center", color=GREY)
        accuracy.set_yticks([])
    figure.align_ylabels()
    return figure


def layers(run):
    """Per layer: density, ranks as shares of the full rank, dead filters."""
    figure, (density, rank, dead) = _rows(run.layers, 3, (1, 1.35, 0.8))
    rows = np.arange(len(run.layers))
    density.barh(rows, [100 * layer.density for layer in run.layers], color=BLUE, height=0.7)
    density.set_xlabel("density (%)")
    rank.hlines(rows, 0, 100, color=GREY, linewidth=0.6, alpha=0.5)
    rank.plot([100 * layer.structural_rank / layer.full_rank for layer in run.layers], rows, "o", color=ORANGE,
              markersize=8, markerfacecolor="none", markeredgewidth=1.5, label="structural rank of the mask",
              clip_on=False)
    rank.plot([100 * layer.numeric_rank / layer.full_rank for layer in run.layers], rows, "D", color=BLUE, markersize=3.5,
              label="numeric rank of the weights", clip_on=False)
    rank.set_xlim(0, 100)
    rank.set_xlabel("rank (% of full rank)")
    dead.barh(rows, [100 * layer.dead_filters / layer.filters for layer in run.layers], color=VERMILLION, height=0.7)
    dead.set_xlim(0, max(1, *(110 * layer.dead_filters / layer.filters for layer in run.layers)))
    dead.set_xlabel("dead filters (%)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    for axes in (density, rank, dead):
        axes.grid(axis="x", alpha=0.3)
    return figure


def cost(run):
    """Per layer, before and after: weights and multiply-adds, on logarithmic axes."""
    figure, panels = _rows(run.layers, 2, (1, 1))
    rows = np.arange(len(run.layers))
    for axes, before, after, label in (
            (panels[0], [layer.weights for layer in run.layers], [layer.nonzero for layer in run.layers], "weights"),
            (panels[1], [layer.dense_flops for layer in run.layers], [layer.flops for layer in run.layers],
             "multiply-adds for one image")):
        axes.hlines(rows, after, before, color=GREY, linewidth=1)
        axes.plot(before, rows, "o", color=ORANGE, markersize=7, markerfacecolor="white", markeredgewidth=1.5, label="dense",
                  clip_on=False)
        axes.plot(after, rows, "D", color=BLUE, markersize=4, label="non-zeros", clip_on=False)
        axes.set_xscale("symlog", linthresh=1)  # logarithmic, with room for a 0
        lowest = min(after)
        axes.set_xlim(0 if lowest < 1 else 10 ** np.floor(np.log10(lowest)), 10 ** np.ceil(np.log10(max(before) + 1)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def rank_k(run):
    """k of the rank term at every update, layers by updates, as a share of the full rank."""
    members = [layer for layer in run.layers if layer.in_rank_term]
    updates = run.rank_updates
    values = np.array([line["ranks"] for line in updates], float).T
    share = 100 * values / np.array([[layer.full_rank] for layer in members])
    figure = Figure(figsize=(WIDTH, max(2.8, ROW * len(members) + 1.2)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, aspect="auto", cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
    _name_rows(axes, [f"{_short(layer.name)}  ({layer.full_rank})" for layer in members])
    axes.set_ylabel("layer (full rank)")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(
        lambda place, _: str(updates[round(place)]["step"]) if 0 <= round(place) < len(updates) else ""))
    axes.set_xlabel("step of the topology update")
    figure.colorbar(image, ax=axes, label="k (% of full rank)", pad=0.01)
    return figure


def accuracy_by_sparsity(groups):
    """Top-1 accuracy against sparsity, a line a label; `groups` as `rpg_ms.report.page.by_label_and_sparsity`."""
    figure = Figure(figsize=(WIDTH, 5), layout="constrained")
    axes = figure.subplots()
    _against_sparsity(axes, groups, lambda run: run.top1)
    axes.set_ylabel("top-1 accuracy (%)")
    axes.legend(loc="best")
    return figure


def rank_by_sparsity(groups):
    """Numeric and structural rank as shares of the full rank, mean over the layers, against sparsity."""
    figure = Figure(figsize=(WIDTH, 5), layout="constrained")
    numeric, structural = figure.subplots(1, 2, sharey=True)
    _against_sparsity(numeric, groups, lambda run: 100 * mean_rank(run, "numeric_rank"))
    _against_sparsity(structural, groups, lambda run: 100 * mean_rank(run, "structural_rank"))
    numeric.set_title("numeric rank of the weights")
    structural.set_title("structural rank of the masks")
    numeric.set_ylabel("rank (% of full rank, mean over the layers)")
    handles, labels = numeric.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    return figure


def mean_rank(run, which):
    """Mean over the layers of rank / full rank; `which` is "numeric_rank" or "structural_rank"."""
    return mean(getattr(layer, which) / layer.full_rank for layer in run.layers)


def _series(lines, key):
    return [line["step"] for line in lines], [line[key] for line in lines]


def _percent_on_log_axis(axes):
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if low <= tick <= high]
    axes.set_yticks(ticks if len(ticks) > 1 else np.round(np.geomspace(low, high, 4), 2))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _rows(members, panels, widths):
    """A figure with a row for each layer and several panels that share the layers' names."""
    figure = Figure(figsize=(WIDTH, max(2.8, ROW * len(members) + 1.3)), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, gridspec_kw={"width_ratios": widths})
    _name_rows(axes[0], [_short(layer.name) for layer in members])
    return figure, axes


def _name_rows(axes, names):
    axes.set_yticks(range(len(names)), [_plain(name) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first layer on top


def _against_sparsity(axes, groups, value):
    """A line a label through the means over its runs, with standard deviations where there are several."""
    lines = defaultdict(list)
    for label, sparsity in sorted(groups, key=lambda key: key[1]):
        values = [value(run) for run in groups[label, sparsity]]
        lines[label].append((sparsity, mean(values), stdev(values) if len(values) > 1 else 0.0))
    labels = list(dict.fromkeys(label for label, _ in groups))
    places, ticks = _places([sparsity for _, sparsity in groups])
    for i, label in enumerate(labels):
        shift = 0.012 * (places[ticks[-1]] - places[ticks[0]] or 1) * (i - (len(labels) - 1) / 2)
        sparsities, means, errors = zip(*lines[label])
        axes.errorbar([places[s] + shift for s in sparsities], means, errors, color=SERIES[i % len(SERIES)],
                      marker=MARKERS[i % len(MARKERS)], markersize=6, capsize=3, linewidth=1.2, label=_plain(label))
    shown = _apart([places[tick] for tick in ticks])
    axes.set_xticks([places[ticks[i]] for i in shown], [f"{ticks[i]:g}" for i in shown])
    axes.margins(x=0.08)
    axes.set_xlabel("sparsity (%)")
    axes.grid(alpha=0.3)


def _places(sparsities):
    """`({sparsity: place on the axis}, sparsities in order)`: every halving of the density is as far as the next."""
    ticks = sorted(set(sparsities))
    return {sparsity: -np.log2(max(100 - sparsity, 0.005) / 100) for sparsity in ticks}, ticks


def _apart(places, least=0.06):
    """Indices of places whose labels do not touch: at least a share of the whole range apart."""
    shown = [0]
    for i, place in enumerate(places):
        if place - places[shown[-1]] >= least * (places[-1] - places[0]) and i:
            shown.append(i)
    return shown


def _short(name):
    """A layer's name, its middle left out where it is very long."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half - 1]}…{name[-half:]}"


def _plain(text):
    return text.replace("$", r"\$")  # which would begin a formula

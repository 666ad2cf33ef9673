"""Projections on a direction: histograms by behaviour, lines over layers, and categories apart at one layer.

Drawn from a `Projection`; what is written in the figures are the numbers of `refusal.directions.projections`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from circuits.plots.style import (
    FAINT,
    GRID,
    INK,
    NEGATIVE,
    POSITIVE,
    add_axes,
    add_head,
    add_legend,
    add_notes,
    name,
    new_figure,
    quiet_axes,
    tick_names,
    wrapped,
)
from refusal.directions.projections import ALL, COMPLIED, REFUSED, Projection, cohen_d, projection_table
from refusal.stats import auc_estimate
from refusal.wording import measured

COLOURS = {REFUSED: POSITIVE, COMPLIED: NEGATIVE}
"""Of the behaviours, in the order in which they are drawn."""
_BINS = 36
_MOST_PANELS = 8
_UNIT = "projection (units of the residual stream)"


def projection_histograms(model: str, projection: Projection, layers: Sequence[int] | None = None) -> Figure:
    """Return one histogram a layer of refused and of complied prompts, all categories together.

    Args:
        model: Its name.
        projection: Prompts on one direction per layer.
        layers: Which; None: all, or eight evenly spaced ones where there are more.
    """
    chosen = _some(projection.n_layers) if layers is None else list(layers)
    columns = min(len(chosen), 4)
    rows = -(-len(chosen) // columns)
    panel, height, gap = 2.75, 1.75, 0.85
    figure = new_figure(max(0.6 + columns * (panel + 0.25), 6.4), 1.05 + rows * (height + gap) + 0.55)
    _head(figure, model, projection, "projections")
    for place, layer in enumerate(chosen):
        row, column = divmod(place, columns)
        bottom = 1.05 + (rows - 1 - row) * (height + gap) + 0.15
        axes = add_axes(figure, 0.6 + column * (panel + 0.25), bottom, panel, height)
        _histogram(axes, projection, layer)
        if column == 0:
            axes.set_ylabel("prompts", fontsize=9, color=INK)
        if row == rows - 1:
            axes.set_xlabel(_UNIT, fontsize=8, color=INK)
    _legend(figure, projection, 0.45)
    notes = "d: separation in pooled standard deviations, AUC: refused above complied; 95 % intervals in brackets."
    add_notes(figure, wrapped(notes, figure.get_size_inches()[0] - 0.6, 8.5))
    return figure


def _some(n_layers: int) -> list[int]:
    return sorted(set(np.linspace(0, n_layers - 1, min(n_layers, _MOST_PANELS)).round().astype(int).tolist()))


def _histogram(axes: Axes, projection: Projection, layer: int) -> None:
    sides = {behaviour: projection.values[projection.rows(ALL, behaviour), layer] for behaviour in COLOURS}
    together = np.concatenate(list(sides.values()))
    bins = np.linspace(together.min(), together.max() + 1e-9, _BINS + 1).tolist()
    for behaviour, values in sides.items():
        axes.hist(values, bins=bins, color=COLOURS[behaviour], alpha=0.55, linewidth=0)
        if len(values):
            axes.axvline(values.mean(), color=COLOURS[behaviour], linewidth=1.4)
    quiet_axes(axes)
    axes.set_title(f"residuals_{layer}\n{_separation(projection, layer)}", fontsize=8, color=INK, loc="left")


def _separation(projection: Projection, layer: int) -> str:
    refused, complied = (projection.values[projection.rows(ALL, each), layer] for each in (REFUSED, COMPLIED))
    values, is_refused = np.concatenate([refused, complied]), np.repeat([True, False], [len(refused), len(complied)])
    d, auc = cohen_d(values, is_refused), auc_estimate(values, is_refused)
    return f"d {measured(d, 1)}, AUC {measured(auc, 3)}"


def projection_lines(model: str, projection: Projection) -> Figure:
    """Return mean projections over layers (left) and the separation in standard deviations (right).

    Thick lines are all categories together, with 95 % intervals; thin ones single categories.
    """
    panel, height, bottom = max(3.7, min(0.22 * projection.n_layers + 0.6, 6.5)), 3.1, 1.35
    figure = new_figure(0.85 + 2 * panel + 0.85 + 0.3, bottom + height + 0.95)
    _head(figure, model, projection, "projections over layers")
    left = add_axes(figure, 0.85, bottom, panel, height)
    right = add_axes(figure, 0.85 + panel + 0.85, bottom, panel, height)
    _means(left, projection)
    _separations(right, projection)
    for axes, label in ((left, f"mean {_UNIT}"), (right, "separation d (standard deviations)")):
        quiet_axes(axes)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.axhline(0, color=FAINT, linewidth=0.8, zorder=1)
        axes.set_ylabel(label, fontsize=9, color=INK)
        axes.set_xlabel("residuals_N", fontsize=9, color=INK)
        step = max(1, round(projection.n_layers / 12))
        axes.set_xticks(range(0, projection.n_layers, step))
    _legend(figure, projection, 0.45)
    notes = "Thick: all categories, bands 95 % intervals. Thin: single categories."
    add_notes(figure, wrapped(notes, figure.get_size_inches()[0] - 0.6, 8.5))
    return figure


def _means(axes: Axes, projection: Projection) -> None:
    table = projection_table([projection], n_draws=400)
    for behaviour, colour in COLOURS.items():
        for category in projection.categories[1:]:
            some = table[(table.category == category) & (table.behaviour == behaviour)]
            axes.plot(some.layer, some["mean"], color=colour, linewidth=0.7, alpha=0.45)
        every = table[(table.category == ALL) & (table.behaviour == behaviour)]
        axes.fill_between(every.layer, every.low, every.high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(every.layer, every["mean"], color=colour, linewidth=2, marker="o", markersize=4)


def _separations(axes: Axes, projection: Projection) -> None:
    layers = np.arange(projection.n_layers)
    for category in projection.categories[1:]:
        axes.plot(layers, _d(projection, category)[0], color=FAINT, linewidth=0.7, alpha=0.6)
    value, low, high = _d(projection, ALL)
    axes.fill_between(layers, low, high, color=INK, alpha=0.2, linewidth=0)
    axes.plot(layers, value, color=INK, linewidth=2, marker="o", markersize=4)


def _d(projection: Projection, category: str) -> Float[np.ndarray, "3 layer"]:
    """Return Cohen's d with its interval by layer; nan where it could not be computed."""
    refused, complied = (projection.rows(category, each) for each in (REFUSED, COMPLIED))
    rows, is_refused = np.concatenate([refused, complied]), np.repeat([True, False], [len(refused), len(complied)])
    found = [cohen_d(projection.values[rows, layer], is_refused) for layer in range(projection.n_layers)]
    ends = [(each.value, each.low, each.high) for each in found]
    return np.array([[np.nan if end is None else end for end in three] for three in ends]).T


def projections_by_category(model: str, projection: Projection, layer: int) -> Figure:
    """Return each category's refused and complied prompts at one layer: every prompt, mean and 95 % interval."""
    categories = projection.categories[1:]
    left = 0.45 + 0.075 * max(len(name(category)) for category in categories)
    panel, height, bottom = 6.0, 0.42 * len(categories) + 0.2, 1.45
    figure = new_figure(left + panel + 0.3, bottom + height + 0.95)
    _head(figure, model, projection, f"projections at residuals_{layer}")
    axes = add_axes(figure, left, bottom, panel, height)
    table = projection_table([projection], n_draws=400)
    generator = np.random.default_rng(0)
    for row, category in enumerate(categories):
        for (behaviour, colour), shift in zip(COLOURS.items(), (-0.16, 0.16), strict=True):
            values = projection.values[projection.rows(category, behaviour), layer]
            jitter = row + shift + generator.uniform(-0.1, 0.1, len(values))
            axes.plot(values, jitter, ".", color=colour, markersize=2.6, alpha=0.35, mew=0)
            place = (table.category == category) & (table.behaviour == behaviour) & (table.layer == layer)
            for _, numbers in table[place].iterrows():
                axes.hlines(row + shift, numbers.low, numbers.high, color=colour, linewidth=2.4)
                axes.plot([numbers["mean"]], [row + shift], "o", color=colour, markersize=5, mec="white", mew=0.8)
    quiet_axes(axes)
    axes.set_ylim(len(categories) - 0.5, -0.5)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    tick_names(axes, "y", range(len(categories)), categories, fontsize=9)
    axes.set_xlabel(_UNIT, fontsize=9, color=INK)
    _legend(figure, projection, 0.45)
    notes = "Dots: prompts. Circles: means with 95 % bootstrap intervals."
    add_notes(figure, wrapped(notes, figure.get_size_inches()[0] - 0.6, 8.5))
    return figure


def _head(figure: Figure, model: str, projection: Projection, what: str) -> None:
    how = "a direction found without the prompt" if projection.is_held_out else "a direction found on these prompts too"
    add_head(figure, f"{name(model, 34)}: {what}", f"on {name(projection.direction, 40)}: {how}")


def _legend(figure: Figure, projection: Projection, bottom: float) -> None:
    handles: list[Artist] = [
        Line2D([], [], color=colour, linewidth=6, label=f"{behaviour} (n = {len(projection.rows(ALL, behaviour))})")
        for behaviour, colour in COLOURS.items()
    ]
    add_legend(figure, handles, 0.25, bottom, ncols=2, handlelength=1.4, columnspacing=2.0)

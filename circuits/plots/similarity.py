"""The heatmap of similarity between categories, from a `Comparison`. Red is 0, green is 1, whatever the data are."""

from __future__ import annotations

from typing import Any

import numpy as np
import seaborn
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from circuits.plots.matrix import CELL, MANY, SCALE, SMALL_CELL, label_matrix, measured_cell, unmeasured_cell
from circuits.plots.style import (
    FAINT,
    INK,
    UNMEASURED,
    add_axes,
    add_head,
    add_notes,
    name,
    new_figure,
    wrapped,
)
from circuits.summary import used_prompts_text
from refusal.schemas import Comparison
from refusal.wording import estimate, interval, one_line, plural


def category_order(comparison: Comparison) -> list[str]:
    """Return the categories so that groups stand together; those that were not compared come last."""
    grouped = [category for group in comparison.groups or () for category in group]
    rest = [category for category in comparison.categories if category not in grouped]
    left_out = [category for category in comparison.support if category not in comparison.categories]
    return [*grouped, *rest, *left_out]


def similarity_values(comparison: Comparison, order: list[str]) -> Float[np.ndarray, "category category"]:
    """Return the similarity in a given order; nan where it was not measured, and 1 on the measured diagonal."""
    values = np.full((len(order), len(order)), np.nan)
    for i, a in enumerate(order):
        for j, b in enumerate(order):
            value = comparison.similarity.get(a, {}).get(b)
            values[i, j] = np.nan if value is None else value
    return values


def similarity_heatmap(comparison: Comparison) -> Figure:
    """Return the heatmap: value and 95 % interval in each cell, boxes around groups, why an entry is missing below."""
    order = category_order(comparison)
    cell = CELL if len(order) <= MANY else SMALL_CELL
    side = cell * max(len(order), 1)
    left = 0.45 + 0.075 * max(len(name(category)) for category in order) if order else 1.0
    width = left + max(side, 4.2) + 1.35
    notes = wrapped(_notes(comparison), width - 0.6, 8.5)
    bottom = 0.7 * left + 0.35 + 0.17 * (notes.count("\n") + 1)
    figure = new_figure(width, bottom + side + 1.05)
    _head(figure, comparison)
    add_notes(figure, notes)
    if order:
        axes = add_axes(figure, left, bottom, side, side)
        _draw_matrix(figure, axes, comparison, order)
        label_matrix(axes, order, faint=set(order) - set(comparison.categories))
    return figure


def _head(figure: Figure, comparison: Comparison) -> None:
    n = used_prompts_text(comparison)
    if comparison.average_similarity is None:
        line = f"mean transfer not measured; {n}"
    else:
        mean = estimate(comparison.average_similarity, comparison.average_similarity_ci)
        line = f"mean transfer {mean} at {comparison.decisive_site}; {n}; {plural(len(comparison.seeds), 'SAE seed')}"
    add_head(figure, f"{name(comparison.model, 48)}: {comparison.verdict}", line, 0.7)


def _notes(comparison: Comparison) -> str:
    notes = []
    is_measured = comparison.average_similarity is not None
    if is_measured:
        notes.append(
            "Cells: transfer, mean of both ways, with 95 % bootstrap interval; 1 = one mechanism, 0 = separate."
        )
    if comparison.groups:
        notes.append(f"Boxes: categories that share a mechanism, {plural(len(comparison.groups), 'group')}.")
    left_out = [(c, s.reason_left_out) for c, s in comparison.support.items() if s.reason_left_out is not None]
    notes += [f"Not compared: {name(category)} ({one_line(reason)})." for category, reason in left_out]
    if is_measured and np.isnan(similarity_values(comparison, list(comparison.categories))).any():
        notes.append("Hatched n/a: the own necessity of one of the two is too small there.")
    return " ".join(notes)


def _draw_matrix(figure: Figure, axes: Axes, comparison: Comparison, order: list[str]) -> None:
    values = similarity_values(comparison, order)
    small = len(order) > MANY
    axes.set_facecolor(UNMEASURED)
    axes.set(xlim=(0, len(order)), ylim=(len(order), 0))
    if np.isfinite(values).any():
        _, y0, x1, y1 = axes.get_position().extents
        inch = 1 / figure.get_size_inches()[0]
        bar = figure.add_axes((x1 + 0.3 * inch, y0, 0.16 * inch, y1 - y0))
        seaborn.heatmap(values, vmin=0, vmax=1, cmap=SCALE, ax=axes, cbar_ax=bar, linewidths=1, linecolor="white")
        _scale(bar, comparison, has_title=len(order) > 4)
    for i, a in enumerate(order):
        for j, b in enumerate(order):
            if np.isnan(values[i, j]):
                unmeasured_cell(axes, i, j, small)
            else:
                ends = comparison.similarity_ci.get(a, {}).get(b, (None, None)) if a != b else (None, None)
                measured_cell(axes, i, j, float(values[i, j]), "" if small else interval(ends))
    _boxes(axes, comparison, order)
    if comparison.average_similarity is None and len(order) > 3:
        _say_why_empty(axes, comparison, len(order), CELL if not small else SMALL_CELL)


def _say_why_empty(axes: Axes, comparison: Comparison, n: int, cell: float) -> None:
    ground = {"boxstyle": "round,pad=1.1", "facecolor": "white", "edgecolor": FAINT}
    text = "No transfer was measured\n\n" + wrapped(comparison.reason, 0.72 * n * cell, 10)
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 10, "linespacing": 1.4, "zorder": 4}
    axes.text(n / 2, n / 2, text, bbox=ground, parse_math=False, color=INK, **style)


def _scale(bar: Axes, comparison: Comparison, has_title: bool) -> None:
    thresholds = comparison.thresholds
    bar.set_yticks([0, thresholds["partially_modular"], thresholds["monolithic"], 1])
    bar.tick_params(length=2, labelsize=8.5, colors=INK)
    if has_title:
        bar.set_ylabel("similarity (ticks at 0, 1 and the thresholds)", fontsize=8.5, color=INK)


def _boxes(axes: Axes, comparison: Comparison, order: list[str]) -> None:
    for group in comparison.groups or ():
        start = order.index(group[0])
        axes.add_patch(
            Rectangle(
                (start, start), len(group), len(group), fill=False, ec=INK, linewidth=2.2, clip_on=False, zorder=3
            )
        )

"""The heatmap of similarity between categories, from a `Comparison`. Red is 0, green is 1, whatever the data are."""

from __future__ import annotations

from typing import Any

import numpy as np
import seaborn
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from circuits.plot_style import (
    FAINT,
    INK,
    UNMEASURED,
    add_axes,
    add_head,
    add_notes,
    name,
    new_figure,
    tick_names,
    wrapped,
)
from circuits.summary import used_prompts_text
from circuits.wording import estimate, interval, number, one_line, plural
from refusal.schemas import Comparison

SCALE = "RdYlGn"
"""Red to yellow to green; always from 0 to 1."""
_CELL, _SMALL_CELL = 0.78, 0.46
_MANY = 14
"""Categories beyond which cells are small and hold no interval."""


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
    cell = _CELL if len(order) <= _MANY else _SMALL_CELL
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
        _label(axes, comparison, order)
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
    small = len(order) > _MANY
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
                _unmeasured_cell(axes, i, j, small)
            else:
                ends = comparison.similarity_ci.get(a, {}).get(b, (None, None)) if a != b else (None, None)
                _measured_cell(axes, i, j, float(values[i, j]), "" if small else interval(ends))
    _boxes(axes, comparison, order)
    if comparison.average_similarity is None and len(order) > 3:
        _say_why_empty(axes, comparison, len(order), _CELL if not small else _SMALL_CELL)


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


def _measured_cell(axes: Axes, row: int, column: int, value: float, ends: str) -> None:
    ink = _ink_on(value)
    size = 10 if ends or axes.get_ylim()[0] <= _MANY else 7
    axes.text(
        column + 0.5, row + (0.42 if ends else 0.5), number(value), ha="center", va="center", color=ink, fontsize=size
    )
    if ends:
        axes.text(column + 0.5, row + 0.72, ends, ha="center", va="center", color=ink, fontsize=6.3)


def _ink_on(value: float) -> str:
    """Return black or white, whichever has more contrast with the colour of a value.

    Source: relative luminance as in WCAG 2.1; at 0.2 both have more than 4.
    """
    rgb = np.asarray(colormaps[SCALE](value)[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return "white" if float(linear @ (0.2126, 0.7152, 0.0722)) < 0.2 else "black"


def _unmeasured_cell(axes: Axes, row: int, column: int, small: bool) -> None:
    axes.add_patch(
        Rectangle((column, row), 1, 1, facecolor=UNMEASURED, edgecolor="#b9bfc6", hatch="////", linewidth=0, zorder=1)
    )
    ground = {"boxstyle": "round,pad=0.15", "facecolor": UNMEASURED, "edgecolor": "none"}
    axes.text(
        column + 0.5,
        row + 0.5,
        "n/a",
        ha="center",
        va="center",
        color=FAINT,
        fontsize=6 if small else 8.5,
        bbox=ground,
        zorder=2,
    )


def _boxes(axes: Axes, comparison: Comparison, order: list[str]) -> None:
    for group in comparison.groups or ():
        start = order.index(group[0])
        axes.add_patch(
            Rectangle(
                (start, start), len(group), len(group), fill=False, ec=INK, linewidth=2.2, clip_on=False, zorder=3
            )
        )


def _label(axes: Axes, comparison: Comparison, order: list[str]) -> None:
    at = [index + 0.5 for index in range(len(order))]
    size = 9.5 if len(order) <= _MANY else 8
    tick_names(axes, "x", at, order, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    tick_names(axes, "y", at, order, rotation=0, fontsize=size)
    axes.tick_params(length=0)
    for label, category in zip((*axes.get_xticklabels(), *axes.get_yticklabels()), (*order, *order), strict=True):
        label.set_color(INK if category in comparison.categories else FAINT)
    for spine in axes.spines.values():
        spine.set_visible(False)

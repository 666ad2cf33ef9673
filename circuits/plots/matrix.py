"""What heatmaps of categories against categories share: cells, their ink, names. Red is 0 and green is 1, always."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import seaborn
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from circuits.plots.style import FAINT, INK, UNMEASURED, tick_names
from refusal.wording import number

SCALE = "RdYlGn"
"""Red to yellow to green; always from 0 to 1."""
CELL, SMALL_CELL = 0.78, 0.46
"""Side of a cell in inches."""
MANY = 14
"""Categories beyond which cells are small and hold no interval."""


def draw_matrix(
    figure: Figure,
    axes: Axes,
    values: Float[np.ndarray, "category category"],
    below: Sequence[Sequence[str]],
    scale_title: str,
    ticks: Sequence[float] = (0, 0.5, 1),
) -> None:
    """Draw the cells of a matrix and the scale beside it; nan is hatched, what is below 0 or above 1 has the end's ink.

    Args:
        figure: Of the axes.
        axes: Empty axes.
        values: What decides the colour and is written in each cell.
        below: A smaller line for each cell.
        scale_title: What the numbers are.
        ticks: Of the scale.
    """
    n, small = len(values), len(values) > MANY
    axes.set_facecolor(UNMEASURED)
    axes.set(xlim=(0, n), ylim=(n, 0))
    if np.isfinite(values).any():
        _, y0, x1, y1 = axes.get_position().extents
        inch = 1 / figure.get_size_inches()[0]
        bar = figure.add_axes((x1 + 0.3 * inch, y0, 0.16 * inch, y1 - y0))
        seaborn.heatmap(values, vmin=0, vmax=1, cmap=SCALE, ax=axes, cbar_ax=bar, linewidths=1, linecolor="white")
        bar.set_yticks(list(ticks))
        bar.tick_params(length=2, labelsize=8.5, colors=INK)
        if n > 2:
            bar.set_ylabel(scale_title, fontsize=8.5, color=INK)
    for i in range(n):
        for j in range(n):
            if np.isnan(values[i, j]):
                unmeasured_cell(axes, i, j, small)
            else:
                measured_cell(axes, i, j, float(values[i, j]), "" if small else below[i][j])


def measured_cell(axes: Axes, row: int, column: int, value: float, ends: str) -> None:
    """Write a value, and a smaller line below it, into a cell."""
    ink = _ink_on(value)
    size = 10 if ends or axes.get_ylim()[0] <= MANY else 7
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


def unmeasured_cell(axes: Axes, row: int, column: int, small: bool) -> None:
    """Hatch a cell whose value could not be measured."""
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


def label_matrix(axes: Axes, order: Sequence[str], faint: Collection[str] = ()) -> None:
    """Name the rows and columns; some names in a fainter ink."""
    at = [index + 0.5 for index in range(len(order))]
    size = 9.5 if len(order) <= MANY else 8
    tick_names(axes, "x", at, order, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    tick_names(axes, "y", at, order, rotation=0, fontsize=size)
    axes.tick_params(length=0)
    for label, category in zip((*axes.get_xticklabels(), *axes.get_yticklabels()), (*order, *order), strict=True):
        label.set_color(FAINT if category in faint else INK)
    for spine in axes.spines.values():
        spine.set_visible(False)

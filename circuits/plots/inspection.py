"""The figure of a folder of published directions: norms and cosines over layers, a line a position."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from circuits.plots.selection import COLOURS
from circuits.plots.style import (
    GRID,
    INK,
    RING,
    add_axes,
    add_head,
    add_legend,
    add_notes,
    name,
    new_figure,
    quiet_axes,
    wrapped,
)
from refusal.directions.inspection import Inspection

_PANEL, _HEIGHT, _BOTTOM = 4.2, 2.8, 1.45


def inspection_figure(title: str, found: Inspection) -> Figure:
    """Return the figure."""
    published = found.published
    n_positions, n_layers, _ = published.mean_diffs.shape
    figure = new_figure(0.85 + 2 * _PANEL + 0.8 + 0.3, _BOTTOM + _HEIGHT + 1.2)
    left = add_axes(figure, 0.85, _BOTTOM, _PANEL, _HEIGHT)
    right = add_axes(figure, 0.85 + _PANEL + 0.8, _BOTTOM, _PANEL, _HEIGHT)
    for axes, values, heading in (
        (left, found.norms, "norm of the difference in means"),
        (right, found.cosines, "cosine with the selected direction"),
    ):
        _prepare(axes, heading, n_layers)
        for row in range(n_positions):
            colour = COLOURS[(n_positions - 1 - row) % len(COLOURS)]
            axes.plot(range(n_layers), values[row], color=colour, linewidth=1.6, marker="o", markersize=3.2)
        axes.plot([published.layer], [values[published.pos, published.layer]], **RING)
    right.set_ylim(min(-0.1, float(right.get_ylim()[0])), 1.05)
    state = "is" if published.is_consistent else "IS NOT"
    line = f"selected: pos {published.pos}, layer {published.layer}; direction.pt {state} mean_diffs[pos, layer]"
    add_head(figure, f"{name(title, 48)}: published directions", line)
    handles = [
        Line2D([], [], color=COLOURS[(n_positions - 1 - row) % len(COLOURS)], lw=1.6, label=f"pos {row - n_positions}")
        for row in range(n_positions)
    ]
    add_legend(figure, [*handles, Line2D([], [], label="selected", **RING)], 0.25, 0.55, ncols=6, columnspacing=1.5)
    note = (
        "Layers as published: the input of each block. The files hold means alone, so there are no intervals. Cosines "
        "of differences that are but rounding (the embeddings of equal tokens) are left out."
    )
    add_notes(figure, wrapped(note, figure.get_size_inches()[0] - 0.6, 8.5))
    return figure


def _prepare(axes: Axes, heading: str, n_layers: int) -> None:
    quiet_axes(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(heading, fontsize=9.5, color=INK, loc="left")
    axes.set_xlabel("layer (input of the block)", fontsize=9, color=INK)
    axes.set_xticks(range(0, n_layers, max(1, round(n_layers / 10))))

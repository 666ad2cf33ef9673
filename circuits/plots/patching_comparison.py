"""Two models side by side, from a `PatchingComparison`: maps, their difference, and the cosine of their directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from circuits.plots.patching import MODE_TITLES, SCALE, colour_scale, from_the_left, place_name
from circuits.plots.style import (
    FAINT,
    GRID,
    INK,
    POSITIVE,
    UNMEASURED,
    ImageFormat,
    add_axes,
    add_head,
    add_notes,
    name,
    new_figure,
    quiet_axes,
    save_figure,
    tick_names,
    wrapped,
)
from refusal.patching.records import CellComparison, MapComparison, PatchingComparison
from refusal.wording import number, plural

ALPHA = 0.05
"""Corrected p from which a difference is framed."""
LEAST = 0.05
"""Difference from which it is framed: with many pairs the smallest one is sure."""
_CELL, _SMALL, _MANY = (0.7, 0.36), (0.17, 0.17), 160


def draw_comparison(found: PatchingComparison, folder: Path, image_format: ImageFormat) -> list[Path]:
    """Write the pictures of a comparison and return their paths."""
    figures = {
        "layers": maps_figure(found, heads=False),
        "heads": maps_figure(found, heads=True),
        "directions": directions_figure(found),
    }
    written = []
    for stem, figure in figures.items():
        path = folder / f"{stem}.{image_format}"
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            written.append(save_figure(figure, path, image_format))
    return written


def maps_figure(found: PatchingComparison, *, heads: bool) -> Figure | None:
    """Return maps of both models and their difference, a row a map; None where there is none."""
    maps = [each for each in found.maps if (each.kind == "heads") == heads and each.cells]
    if not maps:
        return None
    grids = [_grid(each) for each in maps]
    sizes = [_size(rows, columns) for rows, columns, _ in grids]
    left, gap, between = 0.8, 0.45, 0.95
    wide = max(width for width, _ in sizes)
    width = max(8.0, left + 3 * wide + 2 * gap + 0.4)
    height = 2.75 + sum(high for _, high in sizes) + between * (len(sizes) - 1)
    figure = new_figure(width, height)
    top = height - 1.55
    for each, (rows, columns, cells), (own_width, own_height) in zip(maps, grids, sizes, strict=True):
        for place, side in enumerate(("first", "second", "difference")):
            axes = add_axes(figure, left + place * (wide + gap), top - own_height, own_width, own_height)
            _draw(axes, rows, columns, cells, side)
            said = (name(found.first, 26), name(found.second, 26), "second - first")[place]
            axes.set_title(f"{each.kind}, {MODE_TITLES[each.mode].split(':')[0]}\n{said}", fontsize=8.5)
            if place == 0:
                axes.set_ylabel("block", fontsize=9, color=INK)
        top -= own_height + between
    what = "attention heads" if heads else "layers and positions"
    line = f"share of m(clean) - m(corrupted); {plural(found.n_pairs, 'pair')} in common"
    add_head(figure, f"{name(found.first, 30)} and {name(found.second, 30)}: {what}", line)
    text = "Blue towards 1, orange below 0. Framed: a difference of at least .05 with a corrected p of at most .05."
    add_notes(figure, wrapped(text, width - 0.6, 8.5))
    colour_scale(figure, left)
    return figure


_Cells = dict[tuple[int, int], CellComparison]


def _grid(each: MapComparison) -> tuple[list[str], list[str], _Cells]:
    """Return the names of rows and columns, and the cells: layers by heads, or layers by places."""
    n_layers = 1 + max(cell.layer for cell in each.cells)
    rows = [str(layer) for layer in range(n_layers)]
    if each.kind == "heads":
        at = "all" if any(cell.place == "all" for cell in each.cells) else "-1"
        shown = [cell for cell in each.cells if cell.place == at and cell.head is not None]
        columns = [str(head) for head in range(1 + max(cell.head or 0 for cell in shown))]
        return rows, columns, {(cell.layer, cell.head or 0): cell for cell in shown}
    order = sorted({cell.place for cell in each.cells}, key=from_the_left)
    cells = {(cell.layer, order.index(cell.place)): cell for cell in each.cells}
    return rows, [place_name(place) for place in order], cells


def _size(rows: list[str], columns: list[str]) -> tuple[float, float]:
    wide, high = _SMALL if len(rows) * len(columns) > _MANY else _CELL
    return max(1.6, wide * len(columns)), max(0.8, high * len(rows))


def _draw(axes: Axes, rows: list[str], columns: list[str], cells: _Cells, side: str) -> None:
    values = np.full((len(rows), len(columns)), np.nan)
    for at, cell in cells.items():
        value = {"first": cell.first, "second": cell.second, "difference": cell.difference.value}[side]
        values[at] = np.nan if value is None else value
    axes.set_facecolor(UNMEASURED)
    axes.imshow(values, cmap=SCALE, vmin=-1, vmax=1, aspect="auto")
    is_dense = values.size > _MANY
    for (row, column), cell in cells.items():
        value = values[row, column]
        if not is_dense and np.isfinite(value):
            ink = "white" if abs(value) > 0.6 else INK
            axes.text(column, row, number(float(value)), ha="center", va="center", color=ink, fontsize=8)
        if side == "difference" and _is_different(cell):
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=INK, lw=1.3, clip_on=False))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=FAINT)
    step = max(1, len(rows) // 16)
    tick_names(axes, "y", range(0, len(rows), step), rows[::step], fontsize=7.5)
    step = max(1, len(columns) // 16) if is_dense else 1
    tick_names(axes, "x", range(0, len(columns), step), columns[::step], fontsize=7.5)


def _is_different(cell: CellComparison) -> bool:
    is_sure = cell.p_corrected is not None and cell.p_corrected <= ALPHA
    return is_sure and abs(_value(cell.difference.value)) >= LEAST


def directions_figure(found: PatchingComparison) -> Figure:
    """Return the cosine of the refusal directions by layer, with the ceilings of both models."""
    figure = new_figure(7.5, 4.9)
    axes = add_axes(figure, 0.9, 1.25, 6.2, 2.6)
    quiet_axes(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    x = range(len(found.directions))
    y = [_value(each.cosine.value) for each in found.directions]
    low = [max(0.0, _value(each.cosine.value) - _value(each.cosine.low)) for each in found.directions]
    high = [max(0.0, _value(each.cosine.high) - _value(each.cosine.value)) for each in found.directions]
    axes.errorbar(list(x), y, yerr=[low, high], color=POSITIVE, marker="o", capsize=2, label="cosine of the two models")
    for which, style in (("first", "--"), ("second", ":")):
        ceiling = [_value(getattr(each, f"ceiling_{which}")) for each in found.directions]
        model = name(getattr(found, which), 24)
        axes.plot(list(x), ceiling, color=FAINT, linestyle=style, label=f"halves of the pairs, {model}")
    axes.set_ylim(min(-0.05, *(value for value in (*y, 0.0) if np.isfinite(value))) - 0.05, 1.08)
    tick_names(axes, "x", list(x), [each.site.removeprefix("residuals_") for each in found.directions], fontsize=8)
    axes.set_xlabel("residual stream after block", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    line = f"cosine at the readout position, 95 % bootstrap interval; {plural(found.n_pairs, 'pair')} in common"
    add_head(figure, f"{name(found.first, 30)} and {name(found.second, 30)}: refusal directions", line)
    text = "A cosine of two models has a meaning only where one was tuned from the other, or both from one."
    add_notes(figure, wrapped(text, 6.9, 8.5))
    return figure


def _value(value: float | None) -> float:
    return float("nan") if value is None else value

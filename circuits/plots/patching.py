"""Heatmaps of activation patching, from `PatchingResults`: layers by position, attention heads, neurons by category.

Blue: the patch does what the other run does (towards 1); orange: the opposite; white: nothing. The colour ends at -1
and 1, the numbers do not. A frame marks a critical unit, hatching a cell that was not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from circuits.plots.style import (
    FAINT,
    GRID,
    INK,
    NEGATIVE,
    POSITIVE,
    UNMEASURED,
    add_axes,
    add_head,
    add_notes,
    name,
    new_figure,
    tick_names,
    wrapped,
)
from refusal.patching.records import MapRecord, PatchingResults, UnitRecord
from refusal.wording import interval, number, plural

SCALE = LinearSegmentedColormap.from_list("patching", [NEGATIVE, "#ffffff", POSITIVE])
KIND_TITLES = {
    "residuals": "residual stream after the block",
    "mlp": "what the MLP writes",
    "attention": "what the attention writes",
    "heads": "attention heads",
}
MODE_TITLES = {"denoise": "denoising: restored (sufficient)", "noise": "noising: removed (necessary)"}
_CELL_WIDTH, _CELL_HEIGHT = 0.78, 0.44
_SMALL = 0.2
_MANY_CELLS = 160
"""Cells of a panel beyond which they hold no numbers."""
_MANY_ROWS = 24
"""Rows of a panel beyond which cells are small."""


@dataclass(frozen=True)
class Panel:
    """One heatmap: units in rows and columns."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[int, int], UnitRecord]

    @property
    def is_dense(self) -> bool:
        """Whether cells are too many to hold numbers."""
        return len(self.rows) * len(self.columns) > _MANY_CELLS or len(self.rows) > _MANY_ROWS

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        wide, high = (_SMALL, _SMALL) if self.is_dense else (_CELL_WIDTH, _CELL_HEIGHT)
        return max(1.6, wide * len(self.columns)), max(0.9, high * len(self.rows))

    def values(self) -> Float[np.ndarray, "row column"]:
        """Return the effects; nan where none was measured."""
        found = np.full((len(self.rows), len(self.columns)), np.nan)
        for (row, column), unit in self.cells.items():
            found[row, column] = np.nan if unit.effect.value is None else unit.effect.value
        return found


def shown_maps(results: PatchingResults, kind: str, method: str | None = None) -> list[MapRecord]:
    """Return the maps of a kind to draw: the first ablation of each mode, measured where it was, else estimated."""
    found: dict[str, MapRecord] = {}
    for wanted in (method,) if method else ("exact", "integrated", "gradient"):
        for each in results.maps:
            if each.kind == kind and each.method == wanted and any(u.effect.n for u in each.units):
                found.setdefault(each.mode, each)
    return [found[mode] for mode in ("denoise", "noise") if mode in found]


def layer_panels(results: PatchingResults) -> list[Panel]:
    """Return the maps of layers by position, kind by kind, each mode."""
    kinds = ("residuals", "mlp", "attention")
    return [_layer_panel(each, results) for kind in kinds for each in shown_maps(results, kind)]


def head_panels(results: PatchingResults) -> list[Panel]:
    """Return the maps of attention heads, each mode: at every position where that was measured, else at the readout."""
    panels = []
    for each in shown_maps(results, "heads"):
        at = "all" if any(unit.place == "all" and unit.effect.n for unit in each.units) else "-1"
        panels.append(_head_panel(each, at, results))
    return panels


def layer_figure(results: PatchingResults) -> Figure | None:
    """Return the map of layers by position, a column of panels a kind, a row a mode; None where none was made."""
    kinds = [kind for kind in ("residuals", "mlp", "attention") if shown_maps(results, kind)]
    grid = [[_layer_panel(each, results) for each in shown_maps(results, kind)] for kind in kinds]
    if not grid:
        return None
    title = f"{name(results.model, 40)}: layers and positions"
    return _grid_figure(grid, title, _line(results, shown_maps(results, kinds[0])[0]))


def position_figure(results: PatchingResults) -> Figure | None:
    """Return the map of layers by every position, as estimated; None where prompts differ in length."""
    maps = shown_maps(results, "residuals", "integrated") or shown_maps(results, "residuals", "gradient")
    panels = [_layer_panel(each, results) for each in maps]
    if not panels or max(len(panel.columns) for panel in panels) < 5:
        return None
    title = f"{name(results.model, 40)}: the residual stream at every position"
    return _grid_figure([panels], title, _line(results, maps[0]), "position, from the end")


def head_figure(results: PatchingResults) -> Figure | None:
    """Return the map of attention heads; None where none was made."""
    panels = head_panels(results)
    if not panels:
        return None
    title = f"{name(results.model, 40)}: attention heads"
    return _grid_figure([panels], title, _line(results, shown_maps(results, "heads")[0]), "head")


def structure_figure(results: PatchingResults) -> Figure | None:
    """Return the agreement of categories over MLP neurons, a panel a layer; None where it was not measured."""
    if not results.structure:
        return None
    shown = results.structure[:: max(1, -(-len(results.structure) // 6))]
    cell, gap, left, bottom = 0.3, 0.5, 1.15, 1.5
    side = cell * len(shown[0].categories)
    figure = new_figure(max(7.5, left + len(shown) * (side + gap) + 0.4), bottom + side + 1.3)
    for place, each in enumerate(shown):
        axes = add_axes(figure, left + place * (side + gap), bottom, side, side)
        values = np.array([[_number(each.normalised[a][b]) for b in each.categories] for a in each.categories])
        axes.set_facecolor(UNMEASURED)
        axes.imshow(values, cmap=SCALE, vmin=-1, vmax=1)
        mean = each.mean
        low, high = mean.low, mean.high
        axes.set_title(f"{each.site}\n{number(mean.value)} {interval((low, high))}", fontsize=9, color=INK)
        _bare(axes)
        tick_names(axes, "x", range(len(each.categories)), each.categories, rotation=90, fontsize=7.5)
        tick_names(axes, "y", range(len(each.categories)), each.categories if place == 0 else [""] * len(values))
        axes.tick_params(labelsize=7.5)
    line = f"1: the same neurons as another category, 0: others; n = {results.pairs.n} pairs"
    add_head(figure, f"{name(results.model, 40)}: do categories use the same MLP neurons?", line)
    text = (
        "Agreement of attributions over neurons, over that of two halves of one category. In titles: mean over pairs "
    )
    width = figure.get_size_inches()[0] - 0.6
    add_notes(figure, wrapped(text + "of categories with 95 % bootstrap interval over contrast pairs.", width, 8.5))
    return figure


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _line(results: PatchingResults, shown: MapRecord) -> str:
    how = "measured" if shown.method == "exact" else f"estimated ({shown.method})"
    return f"share of m(clean) - m(corrupted), {how}, values: {shown.ablation}; {plural(results.pairs.n, 'pair')}"


def _layer_panel(each: MapRecord, results: PatchingResults) -> Panel:
    known = [unit for unit in each.units if unit.effect.n * 2 >= results.pairs.n]
    places = sorted({unit.place for unit in known}, key=from_the_left)
    cells = {(unit.layer, places.index(unit.place)): unit for unit in known}
    names = tuple(place_name(place) for place in places)
    rows = tuple(str(layer) for layer in range(results.n_layers))
    return Panel(f"{KIND_TITLES[each.kind]}\n{MODE_TITLES[each.mode]}", rows, names, cells)


def from_the_left(place: str) -> tuple[int, int]:
    """Return what puts blocks first, then positions in the order of the prompt."""
    return (0, 0) if place == "all" else (1, 0) if place == "content" else (2, int(place))


def place_name(place: str) -> str:
    """Return what a place is called on an axis."""
    return {"-1": "readout", "content": "words"}.get(place, place)


def _head_panel(each: MapRecord, at: str, results: PatchingResults) -> Panel:
    units = [unit for unit in each.units if unit.place == at and unit.head is not None]
    heads = range(results.n_heads)
    cells = {(unit.layer, unit.head): unit for unit in units if unit.head is not None}
    where = "at every position" if at == "all" else "at the readout position"
    rows = tuple(str(layer) for layer in range(results.n_layers))
    return Panel(f"{MODE_TITLES[each.mode]}\n{where}", rows, tuple(str(head) for head in heads), cells)


def _grid_figure(grid: list[list[Panel]], title: str, line: str, columns_named: str = "") -> Figure:
    """Return panels in columns; those of a column stand below each other."""
    widths = [max(panel.size[0] for panel in column) for column in grid]
    heights = [max(column[row].size[1] for column in grid if row < len(column)) for row in range(max(map(len, grid)))]
    left, gap, between, bottom = 0.75, 0.75, 0.95, 1.45
    width = max(7.5, left + sum(widths) + gap * (len(widths) - 1) + 0.4)
    height = bottom + sum(heights) + between * (len(heights) - 1) + 1.45
    figure = new_figure(width, height)
    for column, panels in enumerate(grid):
        for row, panel in enumerate(panels):
            x = left + sum(widths[:column]) + gap * column
            y = height - 1.45 - sum(heights[: row + 1]) - between * row
            axes = add_axes(figure, x, y, widths[column] if not panel.is_dense else panel.size[0], heights[row])
            _draw(axes, panel)
            if column == 0:
                axes.set_ylabel("block", fontsize=9, color=INK)
            if row == len(panels) - 1:
                axes.set_xlabel(columns_named, fontsize=9, color=INK)
    add_head(figure, title, line)
    text = (
        "0: the patch does nothing; 1: it does all that separates the two prompts. Blue towards 1, orange below 0. "
        "Framed: critical (p corrected for all units of the map, and an effect of some size). Hatched: not measured."
    )
    add_notes(figure, wrapped(text, width - 0.6, 8.5))
    colour_scale(figure, left)
    return figure


def colour_scale(figure: Figure, left: float) -> None:
    """Draw the scale of colours above the notes."""
    axes = add_axes(figure, left, 0.86, 2.0, 0.1)
    axes.imshow(np.linspace(-1, 1, 101)[None], cmap=SCALE, vmin=-1, vmax=1, aspect="auto", extent=(-1, 1, 0, 1))
    axes.set_yticks([])
    axes.set_xticks([-1, 0, 1])
    axes.tick_params(length=2, labelsize=7.5, colors=FAINT, pad=1)
    axes.spines[:].set_color(GRID)


def _draw(axes: Axes, panel: Panel) -> None:
    values = panel.values()
    axes.set_facecolor(UNMEASURED)
    axes.imshow(values, cmap=SCALE, vmin=-1, vmax=1, aspect="auto")
    axes.set_title(panel.title, fontsize=9, color=INK)
    for (row, column), unit in panel.cells.items():
        if unit.is_critical:
            box = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=INK, lw=1.4, zorder=3, clip_on=False)
            axes.add_patch(box)
        if not panel.is_dense and unit.effect.value is not None:
            _write(axes, row, column, unit)
    for row, column in np.argwhere(np.isnan(values)):
        ground: dict[str, Any] = {"facecolor": UNMEASURED, "edgecolor": "#b9bfc6", "hatch": "////", "linewidth": 0}
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **ground))
    _bare(axes)
    step = max(1, len(panel.rows) // 32)
    tick_names(axes, "y", range(0, len(panel.rows), step), panel.rows[::step], fontsize=8)
    step = max(1, len(panel.columns) // 16) if panel.is_dense else 1
    is_tight = panel.is_dense and max(map(len, panel.columns)) > 3
    tick_names(axes, "x", range(0, len(panel.columns), step), panel.columns[::step], fontsize=8, rotation=90 * is_tight)


def _write(axes: Axes, row: int, column: int, unit: UnitRecord) -> None:
    value = unit.effect.value or 0.0
    ink = "white" if abs(value) > 0.6 else INK
    ends = interval((unit.effect.low, unit.effect.high))
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
    axes.text(column, row - (0.14 if ends else 0), number(value), fontsize=8.5, **style)
    if ends:
        axes.text(column, row + 0.26, ends, fontsize=5.6, **style)


def _bare(axes: Axes) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=FAINT)

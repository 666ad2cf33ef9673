"""Heatmaps of refusal directions: cosines between categories, and what taking one direction away does to the others.

Drawn from `LayerGeometry` and `LayerTransfer`; red is 0, green is 1, whatever the data are, and the diagonal is 1. What
the diagonal would be with other prompts (noise ceiling), or what it rests on (own necessity), stands below it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from circuits.plots.matrix import CELL, MANY, SMALL_CELL, draw_matrix, label_matrix
from circuits.plots.style import INK, add_axes, add_head, add_notes, name, new_figure, wrapped
from refusal.directions.geometry_records import LayerGeometry, LayerTransfer
from refusal.measures import from_matrix
from refusal.schemas import Matrix
from refusal.wording import interval, measured, number

Groups = Sequence[Sequence[str]] | None


@dataclass(frozen=True)
class _Heatmap:
    """What a heatmap shows."""

    title: str
    line: str
    notes: str
    matrix: Matrix
    below: Callable[[str, str], str]
    """The smaller line in the cell of a row and a column."""
    scale_title: str


def cosine_heatmap(model: str, geometry: LayerGeometry, groups: Groups = None) -> Figure:
    """Return the heatmap of raw cosines between the categories' directions at a layer.

    Args:
        model: Its name, for the title.
        geometry: Of one layer.
        groups: Partition of the categories to order by and to draw boxes around.
    """
    line = (
        f"mean {measured(geometry.mean_cosine)}, ceiling {measured(geometry.mean_ceiling)}, without noise "
        f"{measured(geometry.mean_ratio)}; n = {geometry.mean_cosine.n} prompts"
    )
    notes = (
        "Cells: raw cosine (no unit) of the differences in means, refused less complied, at "
        f"residuals_{geometry.layer}, with 95 % bootstrap interval over prompts. Diagonal: noise ceiling (ceil), the "
        "cosine that the same category's direction would have with itself from as many other prompts; compare raw "
        "cosines with it. Without noise: raw over ceiling."
    )

    def below(row: str, column: str) -> str:
        """Return the interval, on the diagonal the ceiling."""
        if row != column:
            return interval(geometry.cosine_ci[row][column])
        ceiling = geometry.ceiling[row]
        return "ceil n/a" if ceiling is None else f"ceil {number(ceiling)}"

    title = f"{name(model, 34)}: directions at residuals_{geometry.layer}"
    return _heatmap(_Heatmap(title, line, notes, geometry.cosine, below, "raw cosine"), groups)


def transfer_heatmap(model: str, transfer: LayerTransfer, groups: Groups = None) -> Figure:
    """Return the heatmap of transfer: rows, the direction that is taken away; columns, the refusals measured.

    Args:
        model: Its name, for the title.
        transfer: Of one layer.
        groups: As for `cosine_heatmap`.
    """
    line = f"mean transfer {measured(transfer.mean_transfer)}; n = {transfer.mean_transfer.n} refused prompts"
    notes = (
        f"Row: whose direction is taken away ({transfer.intervention}). Column: on whose refused prompts it is "
        "measured. Cells: effect on the refusal metric (logits) as a share of that of the column's own direction, both "
        f"less random directions ({measured(transfer.random)} of the difference refused - complied), with 95 % "
        "bootstrap interval. Diagonal: own, the share of that difference that the own direction removes."
    )

    def below(row: str, column: str) -> str:
        """Return the interval, on the diagonal the own necessity."""
        if row != column:
            return interval(transfer.transfer_ci[row][column])
        return f"own {number(transfer.necessity[row].value)}"

    title = f"{name(model, 30)}: transfer of directions, residuals_{transfer.layer}"
    return _heatmap(_Heatmap(title, line, notes, transfer.transfer, below, "share of own effect"), groups)


def _order(matrix: Matrix, groups: Groups) -> list[str]:
    grouped = [category for group in groups or () for category in group if category in matrix]
    return [*grouped, *(category for category in matrix if category not in grouped)]


def _heatmap(shown: _Heatmap, groups: Groups) -> Figure:
    order = _order(shown.matrix, groups)
    side = (CELL if len(order) <= MANY else SMALL_CELL) * len(order)
    left = 0.45 + 0.075 * max(len(name(category)) for category in order)
    width = max(left + max(side, 4.2) + 1.35, 0.6 + 0.068 * len(shown.line))
    notes = wrapped(shown.notes, width - 0.6, 8.5)
    bottom = 0.7 * left + 0.35 + 0.17 * (notes.count("\n") + 1)
    figure = new_figure(width, bottom + side + 1.05)
    add_head(figure, shown.title, shown.line, 0.7)
    add_notes(figure, notes)
    axes = add_axes(figure, left, bottom, side, side)
    values = from_matrix(shown.matrix, order)
    draw_matrix(figure, axes, values, [[shown.below(a, b) for b in order] for a in order], shown.scale_title)
    for group in groups or ():
        if len(group) > 1 and set(group) <= set(order):
            start, n = order.index(group[0]), len(group)
            box = Rectangle((start, start), n, n, fill=False, ec=INK, linewidth=2.2, clip_on=False, zorder=3)
            axes.add_patch(box)
    label_matrix(axes, order)
    return figure

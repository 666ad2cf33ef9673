"""Dose-response of a refusal direction: share refused above, mean m below, one column for each intervention.

Beside the direction the range of random directions of equal norm; what they do is not owed to the direction.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from circuits.plots.style import (
    GRID,
    INK,
    add_axes,
    add_head,
    add_legend,
    add_notes,
    as_numbers,
    name,
    new_figure,
    quiet_axes,
    wrapped,
)
from refusal.directions.found import Found
from refusal.directions.schemas import DoseCurve

_COLOUR, _RANDOM = "#1f6fb2", "#8a9099"
_PANEL, _HEIGHT, _GAP, _BOTTOM = 3.3, 2.1, 0.5, 1.35
_PARTS = ("value", "low", "high")
_TITLES = {
    "addition": "added to complied prompts",
    "subtraction": "subtracted from refused prompts",
    "ablation": "ablated in refused prompts",
}
_DOSES = {
    "addition": "times the difference in means",
    "subtraction": "times the difference in means",
    "ablation": "share of the projection taken at each place",
}


def dose_figure(found: Found) -> Figure:
    """Return the figure; `found` has dose-response curves."""
    assert found.doses is not None, "without a direction there is nothing to draw"
    curves = found.doses.curves
    width = 0.85 + len(curves) * _PANEL + (len(curves) - 1) * _GAP + 0.3
    figure = new_figure(width, _BOTTOM + 2 * _HEIGHT + 0.35 + 1.2)
    for column, curve in enumerate(curves):
        left = 0.85 + column * (_PANEL + _GAP)
        lower = add_axes(figure, left, _BOTTOM, _PANEL, _HEIGHT)
        upper = add_axes(figure, left, _BOTTOM + _HEIGHT + 0.35, _PANEL, _HEIGHT)
        _draw_rates(upper, curve)
        _draw_metric(lower, curve)
        upper.set_title(_TITLES[curve.intervention], fontsize=9.5, color=INK, loc="left")
        upper.set_xticklabels([])
        lower.set_xlabel(_DOSES[curve.intervention], fontsize=9, color=INK)
        if column == 0:
            upper.set_ylabel("share refused", fontsize=9, color=INK)
            lower.set_ylabel("mean m, logits", fontsize=9, color=INK)
    counts = {curve.prompts: curve.points[0].refused.n for curve in curves}
    prompts = " and ".join(f"{n} {side}" for side, n in counts.items())
    add_head(figure, f"{name(found.directions.model, 48)}: dose and response", f"{prompts} test prompts")
    _foot(figure, len(curves[0].points[0].random_refused))
    return figure


def _prepare(axes: Axes, curve: DoseCurve) -> list[float]:
    quiet_axes(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    doses = [abs(point.dose) for point in curve.points]
    axes.set_xticks(doses)
    return doses


def _draw_rates(axes: Axes, curve: DoseCurve) -> None:
    doses = _prepare(axes, curve)
    value, low, high = (as_numbers([getattr(point.refused, part) for point in curve.points]) for part in _PARTS)
    axes.vlines(doses, low, high, color=_COLOUR, linewidth=1.3)
    axes.plot(doses, value, color=_COLOUR, linewidth=1.8, marker="o", markersize=4.5)
    _draw_random(axes, doses, [point.random_refused for point in curve.points])
    axes.set_ylim(-0.04, 1.04)


def _draw_metric(axes: Axes, curve: DoseCurve) -> None:
    doses = _prepare(axes, curve)
    value, low, high = (as_numbers([getattr(point.metric, part) for point in curve.points]) for part in _PARTS)
    axes.fill_between(doses, low, high, color=_COLOUR, alpha=0.2, linewidth=0)
    axes.plot(doses, value, color=_COLOUR, linewidth=1.8, marker="o", markersize=4.5)
    _draw_random(axes, doses, [point.random_metric for point in curve.points])
    axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")


def _draw_random(axes: Axes, doses: list[float], values: list[tuple[float, ...]]) -> None:
    if not all(values):
        return
    axes.fill_between(doses, [min(v) for v in values], [max(v) for v in values], color=_RANDOM, alpha=0.3, linewidth=0)
    means = [sum(v) / len(v) for v in values]
    axes.plot(doses, means, "--", color=_RANDOM, linewidth=1.4, marker="o", markersize=3)


def _foot(figure: Figure, n_random: int) -> None:
    handles = [
        Line2D([], [], color=_COLOUR, linewidth=1.8, marker="o", markersize=4.5, label="refusal direction"),
        Line2D([], [], color=_RANDOM, linestyle="--", linewidth=1.4, label=f"{n_random} random ones: mean"),
        Patch(color=_RANDOM, alpha=0.3, label="their range"),
    ]
    add_legend(figure, handles, 0.25, 0.5, ncols=3, handlelength=2.6, columnspacing=2.0)
    note = "Bars: 95 % Wilson intervals; bands: 95 % bootstrap intervals over prompts. m above 0 leans to refusing."
    add_notes(figure, wrapped(note, figure.get_size_inches()[0] - 0.6, 8.5))

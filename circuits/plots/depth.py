"""The depth profile from a `Comparison`: transfer above, effects below, over blocks; residual sites and writers apart.

The marks of onset, shared-from and commit are the residual sites where they were found. From the commit site on the
ground is shaded: there every model looks monolithic, because the output direction of a refusal is common to all. The
neurons of the blocks that write the decision are diamonds just before it, in the panel of the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from circuits.plots.style import (
    FAINT,
    GRID,
    INK,
    add_axes,
    add_head,
    add_legend,
    add_notes,
    add_text,
    name,
    new_figure,
    quiet_axes,
    wrapped,
)
from circuits.summary import used_prompts_text
from refusal.schemas import Comparison, DepthPoint, Interval
from refusal.sites import Site, SiteKind
from refusal.wording import number, plural

_SHADE = "#e9e6df"
_DECISIVE: dict[str, Any] = {
    "marker": "o",
    "markersize": 11,
    "mfc": "none",
    "mec": INK,
    "mew": 1.5,
    "linestyle": "none",
}
_KIND_TITLES = {
    SiteKind.RESIDUALS: "residual stream after the block",
    SiteKind.MLP: "what the MLP writes",
    SiteKind.ATTENTION: "what the attention writes",
}
_BEFORE_BLOCK = 0.5
"""How far left of a block's residual site its neurons are drawn, in blocks."""
_PANEL_HEIGHTS = (2.3, 2.5)
_BOTTOM, _GAP, _MARKS, _HEAD = 2.1, 0.3, 0.62, 0.95
"""Heights in inches: legend and note, between the panels, marks of the anchors, title."""


@dataclass(frozen=True)
class Curve:
    """A line of the figure: which number, with which interval, and how it looks."""

    label: str
    value: Callable[[DepthPoint], float | None]
    ends: Callable[[DepthPoint], Interval] | None
    colour: str
    style: str = "-"


TRANSFER = Curve("transfer (cross / own, less random)", lambda p: p.transfer, lambda p: p.transfer_ci, "#11706b")
EFFECTS = (
    Curve("own: necessity of a category's own circuit", lambda p: p.own, lambda p: p.own_ci, "#1f6fb2"),
    Curve("cross: another category's circuit", lambda p: p.cross, None, "#c8501e", "--"),
    Curve("random sets, matched", lambda p: p.random, None, "#8a9099", ":"),
    Curve("direct effect, later writes held", lambda p: p.direct, None, "#6b4c9a", "-."),
)


def depth_profile(comparison: Comparison) -> Figure:
    """Return the figure of transfer and effects by depth, one column for each kind of site that was studied."""
    columns = _columns(comparison)
    n_blocks = max((len(points) for points in columns.values()), default=1)
    panel = min(max(3.6 if len(columns) > 1 else 7.1, 0.42 * n_blocks + 0.6), 9.0)
    width = max(0.85 + len(columns) * panel + (len(columns) - 1) * 0.35 + 0.3, 8.25)
    height = _BOTTOM + _PANEL_HEIGHTS[1] + _GAP + _PANEL_HEIGHTS[0] + _MARKS + _HEAD
    figure = new_figure(width, height)
    _head(figure, comparison)
    neurons = [point for point in comparison.depth_profile if Site.parse(point.site).kind is SiteKind.NEURONS]
    for column, (kind, points) in enumerate(columns.items()):
        inside = neurons if column == 0 else []
        left = 0.85 + column * (panel + 0.35)
        lower = add_axes(figure, left, _BOTTOM, panel, _PANEL_HEIGHTS[1])
        upper = add_axes(figure, left, _BOTTOM + _PANEL_HEIGHTS[1] + _GAP, panel, _PANEL_HEIGHTS[0])
        _draw(upper, points, comparison, (TRANSFER,))
        _draw(lower, points, comparison, EFFECTS)
        _thresholds(upper, comparison)
        _draw_neurons(upper, inside, (TRANSFER,))
        _draw_neurons(lower, inside, EFFECTS)
        _decisive(upper, [*points, *inside], comparison)
        _anchors(upper, lower, comparison)
        upper.set_xticklabels([])
        lower.set_xlabel(f"{kind.value}_N: {_KIND_TITLES[kind]}, N", fontsize=9, color=INK)
        if column == 0:
            upper.set_ylabel("share of own effect", fontsize=9, color=INK)
            lower.set_ylabel("share of the difference in m", fontsize=9, color=INK)
    _same_scale(figure)
    _foot(figure, comparison)
    return figure


def _columns(comparison: Comparison) -> dict[SiteKind, list[DepthPoint]]:
    """Return the points by kind of site, residual sites first, each in order of depth."""
    found: dict[SiteKind, list[DepthPoint]] = {}
    for kind in (SiteKind.RESIDUALS, SiteKind.MLP, SiteKind.ATTENTION):
        points = [point for point in comparison.depth_profile if Site.parse(point.site).kind is kind]
        if points:
            found[kind] = sorted(points, key=lambda point: Site.parse(point.site))
    return found


def _head(figure: Figure, comparison: Comparison) -> None:
    n = used_prompts_text(comparison)
    seeds = f"; {plural(len(comparison.seeds), 'SAE seed')}" if comparison.seeds else ""
    line = f"{comparison.verdict}; means over {plural(len(comparison.categories), 'category')}, {n}{seeds}"
    add_head(figure, f"{name(comparison.model, 48)}: sharing by depth", line)
    if not comparison.depth_profile:
        width, height = figure.get_size_inches()
        text = wrapped(f"Nothing was measured. {comparison.reason}", width - 0.8, 10)
        add_text(figure, 0.3, height - 1.3, text, fontsize=10, va="top")


def _layer(point: DepthPoint) -> int:
    return Site.parse(point.site).layer


def _place(point: DepthPoint) -> float:
    """Return where a point stands on the axis of blocks."""
    site = Site.parse(point.site)
    return site.layer - (_BEFORE_BLOCK if site.kind is SiteKind.NEURONS else 0)


def _draw_neurons(axes: Axes, points: Sequence[DepthPoint], curves: Sequence[Curve]) -> None:
    for point in points:
        for curve in curves:
            value = curve.value(point)
            if value is None:
                continue
            low, high = (None, None) if curve.ends is None else curve.ends(point)
            if low is not None and high is not None:
                axes.vlines(_place(point), low, high, color=curve.colour, linewidth=1.2)
            axes.plot([_place(point)], [value], marker="D", markersize=5.5, color=curve.colour, linestyle="none")


def _draw(axes: Axes, points: Sequence[DepthPoint], comparison: Comparison, curves: Sequence[Curve]) -> None:
    layers = [_layer(point) for point in points]
    axes.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
    step = max(1, round(len(layers) / 16))
    axes.set_xticks(layers[::step], labels=[str(layer) for layer in layers[::step]])
    quiet_axes(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    if comparison.commit_site is not None:
        axes.axvspan(Site.parse(comparison.commit_site).layer - 0.3, max(layers) + 0.5, color=_SHADE, zorder=0, lw=0)
    for curve in curves:
        values = _numbers([curve.value(point) for point in points])
        if curve.ends is not None:
            low, high = (_numbers([curve.ends(point)[end] for point in points]) for end in (0, 1))
            if len(points) > 1:
                axes.fill_between(layers, low, high, color=curve.colour, alpha=0.18, linewidth=0)
            else:
                axes.vlines(layers, low, high, color=curve.colour, linewidth=1.2)
        axes.plot(layers, values, curve.style, color=curve.colour, linewidth=1.8, marker="o", markersize=4.2)
    if all(curve.value(point) is None for curve in curves for point in points):
        middle: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        axes.text(0.5, 0.25, "not measured", color=FAINT, fontsize=10, **middle)


def _numbers(values: Sequence[float | None]) -> Float[np.ndarray, " site"]:
    return np.array([np.nan if value is None else value for value in values])


def _thresholds(axes: Axes, comparison: Comparison) -> None:
    for key in ("monolithic", "partially_modular"):
        value = comparison.thresholds[key]
        axes.axhline(value, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            key.replace("_", " "),
            (1, value),
            xycoords=axes.get_yaxis_transform(),
            xytext=(-2, 2),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
            color=FAINT,
        )


def _decisive(axes: Axes, points: Sequence[DepthPoint], comparison: Comparison) -> None:
    for point in points:
        if point.site == comparison.decisive_site and point.transfer is not None:
            axes.plot([_place(point)], [point.transfer], **_DECISIVE)


def _anchors(upper: Axes, lower: Axes, comparison: Comparison) -> None:
    anchors = (
        ("onset", comparison.onset_site),
        ("shared from", comparison.shared_from_site),
        ("commit", comparison.commit_site),
    )
    low, high = upper.get_xlim()
    for row, (label, site) in enumerate(reversed(anchors)):
        layer = None if site is None else Site.parse(site).layer
        if layer is None or not low <= layer <= high:
            continue
        for axes in (upper, lower):
            axes.axvline(layer, color=FAINT, linewidth=1, linestyle=":", zorder=1)
        # Each mark has a line of its own, so that marks of neighbouring blocks cannot collide.
        top = 1 + (12 * row + 12) / (72 * _PANEL_HEIGHTS[0])
        transform = upper.get_xaxis_transform()
        upper.plot([layer, layer], [1, top], ":", color=FAINT, linewidth=1, transform=transform, clip_on=False)
        to_left = layer >= (low + high) / 2
        upper.annotate(
            label,
            (layer, top),
            xytext=(-4 if to_left else 4, 0),
            xycoords=transform,
            textcoords="offset points",
            ha="right" if to_left else "left",
            va="top",
            fontsize=8.5,
            color=INK,
        )


def _same_scale(figure: Figure) -> None:
    """Give each row of panels one scale that holds 0, 1 and every value."""
    for row in (0, 1):
        panels = figure.axes[row::2]
        if panels:
            low = min(0.0, *(axes.get_ylim()[0] for axes in panels))
            high = max(1.05, *(axes.get_ylim()[1] for axes in panels))
            for axes in panels:
                axes.set_ylim(low - 0.02, high)


def _foot(figure: Figure, comparison: Comparison) -> None:
    thresholds = comparison.thresholds
    limits = f"thresholds {number(thresholds['monolithic'])} and {number(thresholds['partially_modular'])}"
    handles: list[Artist] = [
        Line2D([], [], color=curve.colour, linestyle=curve.style, marker="o", markersize=4.2, label=curve.label)
        for curve in (TRANSFER, *EFFECTS)
    ]
    handles.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label=limits))
    handles.append(Line2D([], [], label="decisive site: the verdict is read here", **_DECISIVE))
    if any(Site.parse(point.site).kind is SiteKind.NEURONS for point in comparison.depth_profile):
        diamond: dict[str, Any] = {"marker": "D", "markersize": 5.5, "color": FAINT, "linestyle": "none"}
        handles.append(Line2D([], [], label="MLP neurons of blocks that write the decision", **diamond))
    handles.append(Patch(color=_SHADE, label="at and after commit: every model looks monolithic here"))
    add_legend(figure, handles, 0.25, 0.5, ncols=2, handlelength=2.6, columnspacing=2.5)
    note = (
        "Bands: 95 % bootstrap intervals over prompts and SAE seeds. m: log-odds of refusing at the first answer; "
        "the difference is refused less complied (own, cross, random) or less counterfactual (direct)."
    )
    add_notes(figure, wrapped(note, figure.get_size_inches()[0] - 0.6, 8.5))

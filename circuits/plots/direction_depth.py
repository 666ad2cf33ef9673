"""Directions by depth: how alike the categories' directions are, how many there are, and what else they resemble.

`direction_depth` has cosine, noise ceiling and transfer above, the number of directions below. From the commit site on
the ground is shaded: there the directions of every model are alike. `components_plot` is one layer's spectrum beside
the cross-validated choice. `specificity_plot` is another contrast's cosine with the refusal direction and its null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from circuits.plots.style import (
    FAINT,
    GRID,
    INK,
    add_axes,
    add_head,
    add_legend,
    add_notes,
    name,
    new_figure,
    quiet_axes,
    wrapped,
)
from refusal.config import AnalysisConfig
from refusal.directions.geometry_records import LayerGeometry, LayerSpecificity, LayerTransfer, Specificity
from refusal.schemas import Measure
from refusal.sites import Site
from refusal.wording import number

_SHADE = "#e9e6df"
_TRANSFER, _RAW, _CEILING, _RATIO = "#11706b", "#1f6fb2", "#8a9099", "#c8501e"
_NUMBER = "#6b4c9a"
_LEFT, _RIGHT = 0.85, 0.3


def direction_depth(
    model: str,
    geometry: Sequence[LayerGeometry],
    transfer: Sequence[LayerTransfer] = (),
    commit_site: str | None = None,
    thresholds: AnalysisConfig | None = None,
) -> Figure:
    """Return the figure of likeness (above) and number (below) of the categories' directions over layers.

    Args:
        model: Its name.
        geometry: In order of depth.
        transfer: In order of depth; may be empty.
        commit_site: Where the decision is made; None: not known, nothing is shaded.
        thresholds: Drawn as dashed lines; None: the defaults.
    """
    thresholds = thresholds or AnalysisConfig()
    panel = min(max(7.1, 0.3 * len(geometry) + 0.6), 11.0)
    bottom, heights, gap = 1.75, (1.9, 3.0), 0.3
    figure = new_figure(_LEFT + panel + _RIGHT, bottom + sum(heights) + gap + 0.95)
    n = geometry[0].mean_cosine.n
    n_categories = len(geometry[0].cosine)
    add_head(
        figure,
        f"{name(model, 44)}: refusal directions by depth",
        f"means over pairs of {n_categories} categories; n = {n} prompts, readout position",
    )
    lower = add_axes(figure, _LEFT, bottom, panel, heights[0])
    upper = add_axes(figure, _LEFT, bottom + heights[0] + gap, panel, heights[1])
    layers = [each.layer for each in geometry]
    for axes in (upper, lower):
        _layer_axis(axes, layers, commit_site)
    handles: list[Artist] = [
        _line(upper, layers, [each.mean_ceiling for each in geometry], _CEILING, "noise ceiling of the cosine", ":"),
        _line(upper, layers, [each.mean_cosine for each in geometry], _RAW, "raw cosine between categories"),
        _line(
            upper, layers, [each.mean_ratio for each in geometry], _RATIO, "cosine without noise (raw / ceiling)", "--"
        ),
    ]
    if transfer:
        at = [each.layer for each in transfer]
        handles.append(_line(upper, at, [each.mean_transfer for each in transfer], _TRANSFER, "transfer (ablation)"))
    for value in (thresholds.monolithic_threshold, thresholds.partially_modular_threshold):
        upper.axhline(value, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    low, high = upper.get_ylim()
    upper.set_ylim(min(-0.02, max(low, -1.05)), max(1.06, min(high, 1.5)))
    upper.set_ylabel("mean over pairs (no unit)", fontsize=9, color=INK)
    upper.set_xticklabels([])
    handles.append(
        _line(lower, layers, [each.spectrum.effective_number for each in geometry], _NUMBER, "effective number")
    )
    handles.append(_most(lower, geometry))
    lower.set_ylim(0, n_categories + 0.6)
    lower.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    lower.set_ylabel("directions", fontsize=9, color=INK)
    lower.set_xlabel("residuals_N: residual stream after block N", fontsize=9, color=INK)
    limits = f"thresholds {number(thresholds.monolithic_threshold)}, {number(thresholds.partially_modular_threshold)}"
    handles.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label=limits))
    if commit_site is not None:
        handles.append(Patch(color=_SHADE, label="from commit on: no evidence"))
    add_legend(figure, handles, 0.25, 0.42, ncols=3, handlelength=2.4, columnspacing=1.6)
    add_notes(figure, wrapped(_depth_notes(transfer), figure.get_size_inches()[0] - 0.6, 8.5))
    return figure


def _depth_notes(transfer: Sequence[LayerTransfer]) -> str:
    how = f" Transfer: {transfer[0].intervention}." if transfer else ""
    return f"Bands: 95 % intervals over prompts.{how}"


def _most(axes: Axes, geometry: Sequence[LayerGeometry]) -> Artist:
    """Draw the number of directions that hold 0.9 of what is reproducible."""
    style: dict[str, Any] = {"marker": "D", "markersize": 5, "color": _TRANSFER, "linestyle": "none"}
    found = [(each.layer, each.needed.for_most) for each in geometry if each.needed.for_most is not None]
    axes.plot([layer for layer, _ in found], [most for _, most in found], **style)
    return Line2D([], [], label="directions for 0.9 of held-out", **style)


def _layer_axis(axes: Axes, layers: Sequence[int], commit_site: str | None) -> None:
    axes.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
    step = max(1, round(len(layers) / 16))
    axes.set_xticks(layers[::step], labels=[str(layer) for layer in layers[::step]])
    quiet_axes(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    if commit_site is not None:
        commit = Site.parse(commit_site).layer
        axes.axvspan(commit - 0.3, max(layers) + 0.5, color=_SHADE, zorder=0, lw=0)


def _line(
    axes: Axes, layers: Sequence[int], measures: Sequence[Measure], colour: str, label: str, style: str = "-"
) -> Artist:
    """Draw measures with their intervals, and return what the legend shows."""
    values, low, high = (_numbers([getattr(each, end) for each in measures]) for end in ("value", "low", "high"))
    if len(layers) > 1:
        axes.fill_between(layers, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.vlines(layers, low, high, color=colour, linewidth=1.0, alpha=0.7)
    axes.plot(layers, values, style, color=colour, linewidth=1.8, marker="o", markersize=4.2)
    return Line2D([], [], color=colour, linestyle=style, marker="o", markersize=4.2, label=label)


def _numbers(values: Sequence[float | None]) -> Float[np.ndarray, " value"]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


# Components of one layer ---------------------------------------------------------------------------------------------


def components_plot(model: str, geometry: LayerGeometry) -> Figure:
    """Return the principal components of the categories' directions, beside how many hold on held-out prompts."""
    n = len(geometry.cosine)
    panel, height, bottom = 4.1, 2.9, 1.2
    figure = new_figure(_LEFT + 2 * panel + 0.85 + _RIGHT, bottom + height + 0.95)
    add_head(
        figure,
        f"{name(model, 40)}: how many directions at residuals_{geometry.layer}?",
        f"{n} categories, n = {geometry.mean_cosine.n} prompts; effective number "
        f"{number(geometry.spectrum.effective_number.value)}",
    )
    left = add_axes(figure, _LEFT, bottom, panel, height)
    right = add_axes(figure, _LEFT + panel + 0.85, bottom, panel, height)
    _spectrum(left, geometry)
    _held_out(right, geometry)
    for axes in (left, right):
        quiet_axes(axes)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    notes = (
        "Left: eigenvalues of the matrix of cosines over the number of categories, not centred, with 95 % bootstrap "
        f"intervals; an even share is {number(1 / n)}. Right: held-out differences in means predicted from training "
        f"ones projected on r components, {geometry.needed.n_folds} folds; bars: one standard error of the excess over "
        "the best r."
    )
    add_notes(figure, wrapped(notes, figure.get_size_inches()[0] - 0.6, 8.5))
    return figure


def _spectrum(axes: Axes, geometry: LayerGeometry) -> None:
    spectrum = geometry.spectrum
    shown, label = (spectrum.corrected, "without noise") if spectrum.corrected else (spectrum.raw, "raw")
    at = np.arange(1, len(shown) + 1)
    values, low, high = (_numbers([getattr(each, end) for each in shown]) for end in ("value", "low", "high"))
    axes.bar(at, values, color=_RATIO if spectrum.corrected else _RAW, width=0.62, alpha=0.85, label=label)
    axes.vlines(at, low, high, color=INK, linewidth=1.2)
    if spectrum.corrected:
        raw = _numbers([each.value for each in spectrum.raw])
        axes.plot(at, raw, linestyle="none", marker="_", markersize=13, mew=2, color=_RAW, label="raw")
    axes.set_ylim(min(0.0, float(np.nanmin(values, initial=0))) - 0.01, 1.05)
    axes.set_xlabel("principal component", fontsize=9, color=INK)
    axes.set_ylabel("share of squared length", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)


def _held_out(axes: Axes, geometry: LayerGeometry) -> None:
    needed = geometry.needed
    r = np.arange(len(needed.error))
    error, se = np.array(needed.error), np.array(needed.error_se)
    axes.errorbar(r, error, yerr=se, color=_RAW, linewidth=1.8, marker="o", markersize=4.2, elinewidth=1.2, capsize=2)
    marks = [(needed.chosen, "s", f"within one standard error of the best: {needed.chosen}")]
    if needed.for_most is not None:
        marks.append((needed.for_most, "D", f"for 0.9 of what is reproducible: {needed.for_most}"))
    for place, marker, label in marks:
        size = 12 if marker == "s" else 8
        style: dict[str, Any] = {"markersize": size, "mfc": "none", "mec": INK, "mew": 1.4, "linestyle": "none"}
        axes.plot([place], [error[place]], marker=marker, label=label, **style)
    axes.set_ylim(bottom=min(0.0, float(error.min())) - 0.02)
    axes.set_xlabel("directions, r", fontsize=9, color=INK)
    axes.set_ylabel("held-out squared error (share of r = 0)", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="upper right")


# Specificity ---------------------------------------------------------------------------------------------------------

_RAW_MEANS = (
    ("mean_positive", "contrast direction with the raw mean of its first class", "#8a6100", "--"),
    ("refusal_mean_positive", "refusal direction with that raw mean", _NUMBER, "-."),
)


def specificity_plot(model: str, found: Sequence[Specificity]) -> Figure:
    """Return the cosines of other contrasts' directions with the refusal direction over layers, a panel each."""
    n_layers = max(len(each.layers) for each in found)
    panel = min(max(4.3, 0.3 * n_layers + 0.6), 8.0)
    heights, bottom, gap = (1.9, 2.9), 1.75, 0.3
    width = _LEFT + len(found) * panel + (len(found) - 1) * 0.4 + _RIGHT
    figure = new_figure(max(width, 8.2), bottom + sum(heights) + gap + 1.15)
    add_head(
        figure,
        f"{name(model, 40)}: is it refusal?",
        f"n = {found[0].n_refused} refused and {found[0].n_complied} complied prompts of the study; readout position",
    )
    handles: list[Artist] = []
    for column, each in enumerate(found):
        left = _LEFT + column * (panel + 0.4)
        lower = add_axes(figure, left, bottom, panel, heights[0])
        upper = add_axes(figure, left, bottom + heights[0] + gap, panel, heights[1])
        handles = [*_draw_cosine(upper, each), *_draw_raw_means(lower, each)]
        upper.set_title(
            f"{name(each.positive, 20)} - {name(each.negative, 20)} (n = {each.n_positive} + {each.n_negative})",
            fontsize=9.5,
            color=INK,
            loc="left",
            parse_math=False,
        )
        upper.set_xticklabels([])
        lower.set_xlabel("residuals_N: residual stream after block N", fontsize=9, color=INK)
        for axes in (upper, lower):
            if column == 0:
                axes.set_ylabel("cosine (no unit)", fontsize=9, color=INK)
            else:
                axes.set_yticklabels([])
    add_legend(figure, handles, 0.25, 0.5, ncols=2, handlelength=2.6, columnspacing=2.0)
    notes = (
        f"Bands: 95 % bootstrap intervals over prompts and texts. Null: labels of the contrast shuffled "
        f"{found[0].permutations} times. A cosine inside the null, or where no ceiling is drawn (it is 0 or below), "
        "says nothing."
    )
    add_notes(figure, wrapped(notes, figure.get_size_inches()[0] - 0.6, 8.5))
    return figure


def _draw_cosine(axes: Axes, found: Specificity) -> list[Artist]:
    """Draw the cosine with the refusal direction, its ceiling and its null."""
    layers = [each.layer for each in found.layers]
    _layer_axis(axes, layers, None)
    _null_band(axes, found.layers)
    axes.axhline(0, color=FAINT, linewidth=0.8, zorder=1)
    drawn = _line(axes, layers, [each.cosine for each in found.layers], _RATIO, "cosine with the refusal direction")
    ceiling = _numbers([each.ceiling for each in found.layers])
    axes.plot(layers, ceiling, color=INK, linewidth=1.6, marker="_", markersize=9, mew=2, linestyle=":")
    axes.set_ylim(-1.08, 1.08)
    return [
        drawn,
        Line2D([], [], color=INK, linewidth=1.6, linestyle=":", label="noise ceiling of that cosine"),
        Patch(color=_SHADE, label="null of that cosine: labels shuffled, 95 %"),
    ]


def _draw_raw_means(axes: Axes, found: Specificity) -> list[Artist]:
    """Draw the cosines of both directions with the raw mean of the first class."""
    layers = [each.layer for each in found.layers]
    _layer_axis(axes, layers, None)
    axes.axhline(0, color=FAINT, linewidth=0.8, zorder=1)
    axes.set_ylim(-1.08, 1.08)
    return [
        _line(axes, layers, [getattr(each, field) for each in found.layers], colour, label, style)
        for field, label, colour, style in _RAW_MEANS
    ]


def _null_band(axes: Axes, layers: Sequence[LayerSpecificity]) -> None:
    at = [each.layer for each in layers]
    low, high = (_numbers([getattr(each, end) for each in layers]) for end in ("null_low", "null_high"))
    if len(at) > 1:
        axes.fill_between(at, low, high, color=_SHADE, linewidth=0, zorder=0)
    else:
        axes.bar(at, high - low, bottom=low, width=0.5, color=_SHADE, zorder=0)

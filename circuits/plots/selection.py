"""The scores of candidate directions over layers and positions: bypass, induce and KL, one panel each.

A line is a position under one kind of ablation. Grey grounds are what the filters leave out; a ring is what was
selected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from circuits.plots.style import (
    FAINT,
    GRID,
    INK,
    RING,
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
from refusal.directions.schemas import Candidate, Selection
from refusal.schemas import Interval

COLOURS = ("#1f6fb2", "#c8501e", "#3a8f5c", "#8a4fb0", "#b58900", "#4d4d4d", "#c2356b", "#2a9da8")
_STYLES = {"zero": "--", "complied": "-"}
_LEFT_OUT = "#eceef0"
_PANEL, _HEIGHT, _GAP, _BOTTOM = 3.5, 2.9, 0.75, 1.75
"""Inches: width and height of a panel, between panels, below them."""


@dataclass(frozen=True)
class Panel:
    """One score."""

    title: str
    unit: str
    value: Callable[[Candidate], float | None]
    ends: Callable[[Candidate], Interval]
    baseline: Callable[[Selection], float]
    limit: Callable[[Selection], float | None] = lambda selection: None
    """Where the filter cuts."""
    keeps_below: bool = True


PANELS = (
    Panel(
        "bypass: refused prompts, direction ablated",
        "mean m, logits",
        lambda each: each.bypass,
        lambda each: each.bypass_ci,
        lambda selection: selection.baseline_refused,
    ),
    Panel(
        "induce: complied prompts, difference added",
        "mean m, logits",
        lambda each: each.induce,
        lambda each: each.induce_ci,
        lambda selection: selection.baseline_complied,
        lambda selection: selection.filters.min_induce,
        keeps_below=False,
    ),
    Panel(
        "KL: complied prompts, direction ablated",
        "nats at the first token",
        lambda each: each.kl,
        lambda each: each.kl_ci,
        lambda selection: 0.0,
        lambda selection: selection.filters.max_kl,
    ),
)


def selection_figure(found: Found) -> Figure:
    """Return the figure; `found` has a selection."""
    selection = found.selection
    assert selection is not None, "without a direction there is nothing to draw"
    width = 0.85 + len(PANELS) * _PANEL + (len(PANELS) - 1) * _GAP + 0.3
    figure = new_figure(width, _BOTTOM + _HEIGHT + 1.25)
    positions = sorted({each.position for each in selection.candidates}, reverse=True)
    colours = {position: COLOURS[index % len(COLOURS)] for index, position in enumerate(positions)}
    for index, panel in enumerate(PANELS):
        axes = add_axes(figure, 0.85 + index * (_PANEL + _GAP), _BOTTOM, _PANEL, _HEIGHT)
        _draw(axes, panel, selection, colours)
    line = f"{selection.n_refused} refused and {selection.n_complied} complied validation prompts"
    add_head(figure, f"{name(found.directions.model, 48)}: candidate refusal directions", line)
    _foot(figure, selection, colours)
    return figure


def _draw(axes: Axes, panel: Panel, selection: Selection, colours: dict[int, str]) -> None:
    quiet_axes(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(panel.title, fontsize=9.5, color=INK, loc="left")
    axes.set_ylabel(panel.unit, fontsize=9, color=INK)
    axes.set_xlabel("residuals_N: stream after block N", fontsize=9, color=INK)
    kinds = dict.fromkeys(each.ablate_to for each in selection.candidates)
    for position, colour in colours.items():
        for kind in kinds:
            alike = [each for each in selection.candidates if (each.position, each.ablate_to) == (position, kind)]
            _line(axes, panel, alike, colour)
    axes.axhline(panel.baseline(selection), color=INK, linewidth=0.9, linestyle=":")
    last = selection.n_layers - 1
    axes.set_xlim(-0.5, last + 0.5)
    step = max(1, round(selection.n_layers / 12))
    axes.set_xticks(range(0, selection.n_layers, step))
    first_too_deep = int(selection.filters.max_depth * selection.n_layers) - 1
    axes.axvspan(first_too_deep - 0.5, last + 0.5, color=_LEFT_OUT, zorder=0, lw=0)
    limit = panel.limit(selection)
    if limit is not None:
        low, high = axes.get_ylim()
        low, high = min(low, limit - 0.05 * (high - low)), max(high, limit + 0.05 * (high - low))
        axes.axhspan(*((limit, high) if panel.keeps_below else (low, limit)), color=_LEFT_OUT, zorder=0, lw=0)
        axes.set_ylim(low, high)
    chosen = selection.candidates[selection.chosen]
    axes.plot([chosen.layer], as_numbers([panel.value(chosen)]), **RING)


def _line(axes: Axes, panel: Panel, candidates: list[Candidate], colour: str) -> None:
    layers = [each.layer for each in candidates]
    values = as_numbers([panel.value(each) for each in candidates])
    low, high = (as_numbers([panel.ends(each)[end] for each in candidates]) for end in (0, 1))
    style = _STYLES[candidates[0].ablate_to]
    axes.fill_between(layers, low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(layers, values, style, color=colour, linewidth=1.6, marker="o", markersize=3.6)


def _foot(figure: Figure, selection: Selection, colours: dict[int, str]) -> None:
    handles = [
        Line2D([], [], color=colour, linewidth=1.6, marker="o", markersize=3.6, label=f"position {position}")
        for position, colour in colours.items()
    ]
    words = {"zero": "ablation to zero, as published", "complied": "ablation to the value in complied prompts"}
    kinds = dict.fromkeys(each.ablate_to for each in selection.candidates)
    handles += [
        Line2D([], [], color=FAINT, linestyle=_STYLES[kind], linewidth=1.6, label=words[kind]) for kind in kinds
    ]
    handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=":", label="without intervention"))
    handles.append(Line2D([], [], label="selected", **RING))
    add_legend(figure, handles, 0.25, 0.55, ncols=4, handlelength=2.6, columnspacing=2.0)
    note = (
        "Bands: 95 % bootstrap intervals over prompts. Grey: left out by the depth, induce or KL filter. m: log-odds "
        "of refusing at the first answer token."
    )
    add_notes(figure, wrapped(note, figure.get_size_inches()[0] - 0.6, 8.5))

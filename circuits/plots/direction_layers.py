"""What layers tell of refusal at the readout position: probes, separation, norm of the difference in means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from circuits.plots.selection import COLOURS
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
from refusal.schemas import Measure

_PANEL, _HEIGHT, _GAP, _BOTTOM = 2.75, 2.5, 0.7, 1.35
_PROBES = {"logistic": "logistic", "mass_mean": "mass-mean", "mass_mean_covariance": "mass-mean with covariance"}


def layers_figure(found: Found) -> Figure:
    """Return the figure: probe accuracy, probe AUC, separation and norm, over layers."""
    directions = found.directions
    figure = new_figure(0.85 + 4 * _PANEL + 3 * _GAP + 0.3, _BOTTOM + _HEIGHT + 1.2)
    panels = [add_axes(figure, 0.85 + i * (_PANEL + _GAP), _BOTTOM, _PANEL, _HEIGHT) for i in range(4)]
    titles = (
        ("probe accuracy", "share right, held out"),
        ("probe AUC", "AUC, held out"),
        ("separation of test prompts", "standard deviations"),
        ("norm of the difference in means", "length"),
    )
    for axes, (title, unit) in zip(panels, titles, strict=True):
        _prepare(axes, title, unit, len(directions.separation))
    for kind, colour in zip(_PROBES, COLOURS, strict=False):
        results = [each for each in directions.probes if each.kind == kind]
        _line(panels[0], [each.accuracy for each in results], colour)
        _line(panels[1], [each.auc for each in results], colour)
    for axes in panels[:2]:
        axes.set_ylim(min(0.45, axes.get_ylim()[0]), 1.02)
        axes.axhline(0.5, color=INK, linewidth=0.9, linestyle=":")
    _line(panels[2], [each.separation for each in directions.separation], INK)
    shades = np.linspace(0.75, 0.0, len(directions.positions) + 1)[1:]
    for shade, norms in zip(shades, directions.norms, strict=True):
        panels[3].plot(range(len(norms)), norms, color=str(shade), linewidth=1.5, marker="o", markersize=3.4)
    line = (
        f"{directions.probes[0].accuracy.n} prompts for probes (cross-validated); separation: "
        f"{directions.separation[0].separation.n} test prompts along the training prompts' difference in means"
    )
    add_head(figure, f"{name(directions.model, 48)}: refusal by layer, readout position", line)
    handles = [
        Line2D([], [], color=colour, linewidth=1.6, marker="o", markersize=3.6, label=label)
        for label, colour in zip(_PROBES.values(), COLOURS, strict=False)
    ]
    add_legend(figure, handles, 0.25, 0.5, ncols=3, handlelength=2.6, columnspacing=2.0)
    several = len(directions.positions) > 1
    note = "Bands: 95 % intervals (accuracy: Wilson; AUC: Newcombe; separation: Hedges and Olkin); dotted: chance"
    note += f"; norm: a line a position, darkest {directions.positions[-1]}." if several else "."
    add_notes(figure, wrapped(note, figure.get_size_inches()[0] - 0.6, 8.5))
    return figure


def _prepare(axes: Axes, title: str, unit: str, n_layers: int) -> None:
    quiet_axes(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=9.5, color=INK, loc="left")
    axes.set_ylabel(unit, fontsize=9, color=INK)
    axes.set_xlabel("residuals_N", fontsize=9, color=INK)
    axes.set_xticks(range(0, n_layers, max(1, round(n_layers / 8))))


def _line(axes: Axes, measures: Sequence[Measure], colour: str) -> None:
    layers = range(len(measures))
    values, low, high = (as_numbers([getattr(each, part) for each in measures]) for part in ("value", "low", "high"))
    axes.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(layers, values, color=colour, linewidth=1.6, marker="o", markersize=3.6)

"""Two figures of what models did: the OR-Bench table (categories by models), and safety against over-refusal.

Drawn from `AnalysisResults` with matplotlib's objects, never pyplot: no global state, no display. Sizes are in inches.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from refusal.artefacts import atomic_write
from refusal.evaluation.rates import AnalysisResults, CategoryAnalysis
from refusal.figures import any_script
from refusal.schemas import Rate

_INK, _FAINT, _GRID, _EMPTY = "#1f2328", "#626a73", "#d9dde2", "#eceef0"
_COLOURS = ("#1f6fb2", "#c8501e", "#3a8f5c", "#8a4fb0", "#b58900", "#4d4d4d", "#c2356b", "#2a9da8")
"""Told apart by every kind of colour vision as far as eight can be; markers differ too."""
_CELL_WIDTH, _CELL_HEIGHT = 1.25, 0.46
_LONGEST_NAME = 26
_SOURCES = ("toxic", "safe (80k)", "safe (hard-1k)")
_MARKERS = ("o", "D", "s", "^", "v", "P", "X", "p", "h")
"""As many as do not divide the number of colours, so that pairs come again late."""


def _rates(row: CategoryAnalysis) -> dict[str, Rate]:
    rates = (row.rates.refusal_toxic, row.rates.over_refusal_safe, row.rates.over_refusal_hard)
    return dict(zip(_SOURCES, rates, strict=True))


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}\u2026"


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Figure, left: float, bottom: float, text: str, **style: Any) -> None:
    width, height = figure.get_size_inches()
    figure.text(left / width, bottom / height, text, parse_math=False, **({"color": _INK, "va": "baseline"} | style))


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    total_width, total_height = figure.get_size_inches()
    return figure.add_axes((left / total_width, bottom / total_height, width / total_width, height / total_height))


def rates_table(results: AnalysisResults) -> Figure:
    """Return the OR-Bench table: share refused by category and model, with interval and n, for each kind of prompts."""
    models = list(results.models)
    categories = list(dict.fromkeys(name for model in results.models.values() for name in model.categories))
    measured = [rates for model in results.models.values() for rates in map(_rates, [model.overall])]
    kinds = [kind for kind in _SOURCES if any(rates[kind].n for rates in measured)]
    side, rows = _CELL_WIDTH * len(models), [*categories, "all"]
    left = 0.5 + 0.085 * max(map(len, rows))
    names = 0.3 + 0.042 * max(len(_short(model)) for model in models)
    height = _CELL_HEIGHT * len(rows)
    over = 0.3 + 0.03 * len(_short(models[-1]))
    figure = _new_figure(max(left + (side + 0.35) * len(kinds) + over, 7.0), height + names + 1.55)
    top = height + 0.6
    _write(figure, 0.3, top + names + 0.58, "Share of prompts refused", fontsize=14, weight="bold")
    _write(
        figure, 0.3, 0.2, "Per cent, with Wilson 95 % interval and n. Full refusals only.", fontsize=8.5, color=_FAINT
    )
    for index, kind in enumerate(kinds):
        axes = _axes(figure, left + index * (side + 0.35), 0.6, side, height)
        _write(figure, left + index * (side + 0.35), top + names + 0.1, textwrap.shorten(kind, 40), fontsize=10.5)
        _draw_cells(axes, results, rows, kind)
        _label_cells(axes, models, rows if index == 0 else [])
    return figure


def _draw_cells(axes: Axes, results: AnalysisResults, rows: list[str], kind: str) -> None:
    axes.set(xlim=(0, len(results.models)), ylim=(len(rows), 0))
    for column, model in enumerate(results.models.values()):
        for row, name in enumerate(rows):
            found = model.overall if name == "all" else model.categories.get(name)
            rate = _rates(found)[kind] if found is not None else None
            _draw_cell(axes, column, row, rate, is_bad=kind != "toxic")
    axes.axhline(len(rows) - 1, color=_INK, linewidth=1.2)
    axes.spines[:].set_visible(False)


def _draw_cell(axes: Axes, column: int, row: int, rate: Rate | None, *, is_bad: bool) -> None:
    """Draw a share: the darker, the more is refused; blue where that is right, red where it is wrong."""
    is_known = rate is not None and rate.value is not None
    share = rate.value if rate is not None and rate.value is not None else 0.0
    red, green, blue = (0.784, 0.314, 0.118) if is_bad else (0.122, 0.435, 0.698)
    depth = 0.06 + 0.84 * share
    colour = tuple(1 - depth * (1 - part) for part in (red, green, blue)) if is_known else _EMPTY
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
    ink = "white" if share > (0.8 if is_bad else 0.7) else _INK
    if rate is None or not is_known:
        axes.text(column + 0.5, row + 0.5, "no prompts", ha="center", va="center", fontsize=7.5, color=_FAINT)
        return
    low, high = (100 * end if end is not None else None for end in (rate.low, rate.high))
    ends = "" if low is None or high is None else f"[{low:.0f}, {high:.0f}]  "
    axes.text(column + 0.5, row + 0.36, f"{100 * share:.0f}", ha="center", va="center", fontsize=10.5, color=ink)
    axes.text(column + 0.5, row + 0.76, f"{ends}n {rate.n}", ha="center", va="center", fontsize=6.6, color=ink)


def _label_cells(axes: Axes, models: list[str], rows: list[str]) -> None:
    axes.xaxis.tick_top()
    axes.set_xticks(
        [index + 0.5 for index in range(len(models))],
        labels=map(_short, models),
        parse_math=False,
        fontsize=8.5,
        rotation=35,
        ha="left",
    )
    axes.set_yticks([index + 0.5 for index in range(len(rows))], labels=rows, parse_math=False, fontsize=9.5)
    axes.tick_params(length=0, colors=_INK)


def trade_off(results: AnalysisResults) -> Figure:
    """Return safety (toxic prompts refused) against over-refusal (safe prompts refused), with intervals both ways.

    A panel a kind of safe prompts. Models are told apart by colour and marker, and named with their n beside.
    """
    rates = {name: _rates(model.overall) for name, model in results.models.items()}
    kinds = [kind for kind in _SOURCES[1:] if any(r[kind].n and r["toxic"].n for r in rates.values())] or [_SOURCES[1]]
    side, left, gap = 4.2, 0.85, 0.75
    names_at = left + len(kinds) * (side + gap) - gap + 0.45
    height = side + 1.95
    figure = _new_figure(names_at + 2.9, height)
    _write(figure, 0.3, height - 0.42, "Safety and over-refusal", fontsize=14, weight="bold")
    line = "A point a model; best is top left. Bars: Wilson 95 % intervals. Full refusals only."
    _write(figure, 0.3, height - 0.68, line, fontsize=9.5, color=_FAINT)
    for index, kind in enumerate(kinds):
        axes = _axes(figure, left + index * (side + gap), 0.65, side, side)
        _draw_frame(axes, f"{kind} prompts refused (%)", "toxic prompts refused (%)" if index == 0 else "")
        for row, found in enumerate(rates.values()):
            _draw_point(axes, found[kind], found["toxic"], _style(row), _size(row, len(rates)))
        if not any(found[kind].n and found["toxic"].n for found in rates.values()):
            axes.text(50, 50, "no model was asked\nboth toxic and safe prompts", ha="center", color=_FAINT, fontsize=10)
    for row, (name, found) in enumerate(rates.items()):
        bottom = 0.65 + side - 0.2 - 0.5 * row
        colour, marker = _style(row)
        n = ", ".join(f"{found[kind].n} {kind.split(' (')[-1].rstrip(')')}" for kind in kinds)
        _write(figure, names_at + 0.22, bottom, _short(name), fontsize=9.5)
        _write(figure, names_at + 0.22, bottom - 0.18, f"n {found['toxic'].n} toxic, {n}", fontsize=7.5, color=_FAINT)
        dot = _axes(figure, names_at, bottom - 0.03, 0.16, 0.16)
        dot.plot([0], [0], marker=marker, color=colour, markersize=7)
        dot.set_axis_off()
    return figure


def _size(row: int, n_models: int) -> float:
    """Return the size of a marker, in points: earlier ones are larger, so that none hides another in the same place."""
    return 7 + 2.5 * min(n_models - 1 - row, 3)


def _style(index: int) -> tuple[str, str]:
    return _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]


def _draw_frame(axes: Axes, below: str, beside: str) -> None:
    axes.plot([0, 100], [0, 100], color=_FAINT, linewidth=0.8, linestyle=(0, (4, 4)), zorder=1)
    axes.text(72, 70, "refuses both alike", rotation=45, color=_FAINT, fontsize=8, ha="center", va="top")
    axes.set(xlim=(-3, 103), ylim=(-3, 103))
    axes.set_xlabel(below, fontsize=9.5, color=_INK)
    axes.set_ylabel(beside, fontsize=9.5, color=_INK)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(length=0, colors=_INK, labelsize=8.5)


def _draw_point(axes: Axes, safe: Rate, toxic: Rate, style: tuple[str, str], size: float) -> None:
    if safe.value is None or toxic.value is None:
        return
    colour, marker = style
    x, y = 100 * safe.value, 100 * toxic.value
    bars: dict[str, Any] = {}
    for axis, rate, centre in (("xerr", safe, x), ("yerr", toxic, y)):
        if rate.low is not None and rate.high is not None:
            bars[axis] = [[max(centre - 100 * rate.low, 0.0)], [max(100 * rate.high - centre, 0.0)]]
    axes.errorbar(x, y, fmt=marker, color=colour, markersize=size, elinewidth=1.3, capsize=2, zorder=3, **bars)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, the same bytes for the same content."""
    with atomic_write(path) as beside, any_script():
        figure.savefig(beside, format="png", dpi=150, metadata={})

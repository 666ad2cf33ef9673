"""The training curves of a site's SAEs: reconstruction, sparsity and dead latents, by step.

Three panels over one axis of steps; a line a seed, held-out rows solid and training rows dotted. The step whose weights
were kept is a ring, so that one sees whether training was stopped too early and whether the SAE learned its rows by
heart (the lines part). Knows no artefacts; `circuits.sae_history` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from circuits.plots.style import FAINT, GRID, INK, add_axes, add_text, name, new_figure, quiet_axes, wrapped
from refusal.wording import number, plural

COLOURS = ("#1f6fb2", "#c8501e", "#11706b", "#6b4c9a", "#8a6100", "#8a9099")
"""Of the seeds in order; later seeds take them again."""
_PANEL, _GAP = 2.45, 0.62
_LEFT, _BOTTOM, _HEIGHT, _HEAD = 0.7, 1.12, 2.2, 0.95


@dataclass(frozen=True)
class Point:
    """A look at an SAE during its training."""

    step: int
    fvu_train: float
    fvu_heldout: float | None
    l0: float
    """Mean number of active latents on training rows."""
    dead_share: float
    """Share of latents that were not active on 2,000 rows of training."""


@dataclass(frozen=True)
class Course:
    """One SAE's training."""

    model: str
    site: str
    seed: int
    shape: str
    """Architecture and width in words."""
    k: float | None
    """Active latents a row that were asked for."""
    n_rows: tuple[int, int]
    """Training and held-out rows."""
    points: tuple[Point, ...]
    best_step: int | None
    """Step whose weights were kept."""

    @property
    def steps(self) -> list[int]:
        """Steps at which it was looked at."""
        return [point.step for point in self.points]

    def best(self) -> Point | None:
        """Return the point of the step whose weights were kept."""
        return next((point for point in self.points if point.step == self.best_step), None)


@dataclass(frozen=True)
class _Panel:
    """What a panel shows."""

    label: str
    value: Callable[[Point], float | None]
    beside: Callable[[Point], float | None] | None = None
    """Drawn dotted in the same panel."""


_PANELS = (
    _Panel("FVU (1 = no better than the mean)", lambda p: p.fvu_heldout, lambda p: p.fvu_train),
    _Panel("L0: active latents a row", lambda p: p.l0),
    _Panel("dead latents, share", lambda p: p.dead_share),
)


def training_curves(courses: Sequence[Course]) -> Figure:
    """Return the figure of the SAEs of one site, at least one; the first seed first."""
    width = _LEFT + 3 * _PANEL + 2 * _GAP + 0.25
    figure = new_figure(width, _BOTTOM + _HEIGHT + _HEAD)
    _head(figure, courses)
    for column, panel in enumerate(_PANELS):
        axes = add_axes(figure, _LEFT + column * (_PANEL + _GAP), _BOTTOM, _PANEL, _HEIGHT)
        _draw(axes, panel, courses)
    if any((value or 0) > 0 for course in courses for p in course.points for value in (p.fvu_train, p.fvu_heldout)):
        figure.axes[0].set_yscale("log")
        _plain_numbers(figure.axes[0])
    for axes in figure.axes[1:]:
        axes.set_ylim(bottom=0)
    if figure.axes[2].get_ylim()[1] < 0.1:
        figure.axes[2].set_ylim(top=0.1)
    if courses[0].k is not None:
        _target(figure.axes[1], courses[0].k)
    _foot(figure, courses)
    return figure


def _head(figure: Figure, courses: Sequence[Course]) -> None:
    first, height = courses[0], figure.get_size_inches()[1]
    title = f"{name(first.model, 44)}, {first.site}: SAE training"
    add_text(figure, 0.3, height - 0.4, title, fontsize=13, weight="bold", va="baseline")
    train, heldout = first.n_rows
    line = f"{first.shape}; {plural(len(courses), 'seed')}; n = {train} training rows, {heldout} held out"
    add_text(figure, 0.3, height - 0.66, line, fontsize=9, va="baseline", color=FAINT)


def _draw(axes: Axes, panel: _Panel, courses: Sequence[Course]) -> None:
    quiet_axes(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(panel.label, fontsize=9, color=INK, loc="left")
    axes.set_xlabel("training step", fontsize=8.5, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for number_, course in enumerate(courses):
        colour = COLOURS[number_ % len(COLOURS)]
        if panel.beside is not None:
            axes.plot(course.steps, _values(course, panel.beside), ":", color=colour, linewidth=1.3)
        axes.plot(course.steps, _values(course, panel.value), "-", color=colour, linewidth=1.5)
        best = course.best()
        at_best = None if best is None else panel.value(best)
        if best is not None and at_best is not None:
            axes.plot([best.step], [at_best], color=colour, **_BEST)
    axes.set_xlim(left=0)


_BEST: dict[str, Any] = {"marker": "o", "markersize": 7.5, "mfc": "none", "mew": 1.6, "linestyle": "none"}


def _values(course: Course, value: Callable[[Point], float | None]) -> list[float]:
    found = (value(point) for point in course.points)
    return [float("nan") if each is None else each for each in found]


def _plain_numbers(axes: Axes) -> None:
    """Label a logarithmic axis with numbers as people write them, a few to a decade."""
    low, high = axes.get_ylim()
    ticks = [m * 10.0**e for e in range(-8, 3) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    ticks = ticks[:: max(1, -(-len(ticks) // 7))]
    axes.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)


def _target(axes: Axes, k: float) -> None:
    axes.axhline(k, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.set_ylim(top=max(axes.get_ylim()[1], 1.25 * k))
    text: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "ha": "right"}
    axes.annotate(f"asked for: k = {k:g}", (1, k), xytext=(-2, 4), fontsize=7.5, color=FAINT, **text)


def _foot(figure: Figure, courses: Sequence[Course]) -> None:
    handles: list[Artist] = [
        Line2D([], [], color=COLOURS[place % len(COLOURS)], linewidth=1.5, label=_seed_label(course))
        for place, course in enumerate(courses)
    ]
    handles += [
        Line2D([], [], color=FAINT, linewidth=1.5, label="held-out rows"),
        Line2D([], [], color=FAINT, linewidth=1.3, linestyle=":", label="training rows"),
        Line2D([], [], color=FAINT, label="weights kept", **_BEST),
    ]
    width, height = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.25 / width, 0.34 / height),
        ncols=min(6, len(handles)),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handlelength=2.2,
        columnspacing=1.6,
    )
    note = "L0 and dead latents: training rows; a latent is dead when it was not active on 2,000 rows of training."
    add_text(figure, 0.3, 0.14, wrapped(note, width - 0.6, 8), fontsize=8, va="bottom", color=FAINT)


def _seed_label(course: Course) -> str:
    best = course.best()
    found = None if best is None else best.fvu_heldout if best.fvu_heldout is not None else best.fvu_train
    return f"seed {course.seed}" + ("" if found is None else f": FVU {number(found, 3)}")

"""The training curves of a site's SAEs from their histories: reconstruction, sparsity and dead latents, by step.

Three panels over one axis of steps; a line a seed, held-out rows solid and training rows dotted. The step whose weights
were kept is a ring, so that one sees whether training was stopped too early and whether the SAE learned its rows by
heart (the lines part).
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

from circuits.plot_style import FAINT, GRID, INK, add_axes, add_text, name, new_figure, quiet_axes, wrapped
from circuits.wording import number, plural
from refusal.artefacts import ResultPaths
from refusal.sae.records import METRICS_FILE, HistoryPoint, SaeMetrics, TrainingHistory
from refusal.sites import Site

COLOURS = ("#1f6fb2", "#c8501e", "#11706b", "#6b4c9a", "#8a6100", "#8a9099")
"""Of the seeds in order; later seeds take them again."""
_PANEL, _GAP = 2.45, 0.62
_LEFT, _BOTTOM, _HEIGHT, _HEAD = 0.7, 1.12, 2.2, 0.95


@dataclass(frozen=True)
class Course:
    """One SAE's training."""

    history: TrainingHistory
    metrics: SaeMetrics

    @property
    def steps(self) -> list[int]:
        """Steps at which it was looked at."""
        return [point.step for point in self.history.points]

    def best(self) -> HistoryPoint | None:
        """Return the point of the step whose weights were kept."""
        return next((point for point in self.history.points if point.step == self.metrics.best_step), None)


def read_courses(paths: ResultPaths, model: str, site: Site, seeds: Sequence[int | None]) -> list[Course]:
    """Return the trainings of the SAEs of a site in the order of `seeds`; nothing for pretrained SAEs.

    Raises:
        ArtefactError: A history or metrics are damaged.
    """
    folders = [paths.sae(model, site, seed if number else None) for number, seed in enumerate(seeds)]
    files = [folder / f"{site.name}_training_history.json" for folder in folders]
    return [
        Course(TrainingHistory.load(path), SaeMetrics.load(path.parent / METRICS_FILE))
        for path in files
        if path.exists()
    ]


@dataclass(frozen=True)
class _Panel:
    """What a panel shows."""

    label: str
    value: Callable[[HistoryPoint], float | None]
    beside: Callable[[HistoryPoint], float | None] | None = None
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
    figure.axes[0].set_yscale("log")
    _plain_numbers(figure.axes[0])
    for axes in figure.axes[1:]:
        axes.set_ylim(bottom=0)
    if figure.axes[2].get_ylim()[1] < 0.1:
        figure.axes[2].set_ylim(top=0.1)
    k = courses[0].metrics.settings.get("k")
    if isinstance(k, int | float):
        _target(figure.axes[1], float(k))
    _foot(figure, courses)
    return figure


def _head(figure: Figure, courses: Sequence[Course]) -> None:
    first, height = courses[0].metrics, figure.get_size_inches()[1]
    title = f"{name(first.model, 44)}, {first.site}: SAE training"
    add_text(figure, 0.3, height - 0.4, title, fontsize=13, weight="bold", va="baseline")
    rows = "" if first.train is None else f"n = {first.train.n_rows} training rows"
    heldout = "" if first.heldout is None else f", {first.heldout.n_rows} held out"
    shape = f"{first.architecture}, {first.d_sae} latents"
    line = f"{shape}; {plural(len(courses), 'seed')}; {rows}{heldout}"
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


def _values(course: Course, value: Callable[[HistoryPoint], float | None]) -> list[float]:
    found = (value(point) for point in course.history.points)
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
    note = "L0 and dead latents: training rows; a latent is dead when it was not active for two passes over the rows."
    add_text(figure, 0.3, 0.14, wrapped(note, width - 0.6, 8), fontsize=8, va="bottom", color=FAINT)


def _seed_label(course: Course) -> str:
    best = course.best()
    found = None if best is None else best.fvu_heldout if best.fvu_heldout is not None else best.fvu_train
    return f"seed {course.history.seed}" + ("" if found is None else f": FVU {number(found, 3)}")

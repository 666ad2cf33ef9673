"""What all figures share: canvas, colours, text that takes names as they are, saving. Knows no artefacts.

Figures are made with matplotlib's objects (`Figure`, Agg canvas) and never through pyplot, so drawing changes no global
state and needs no display. Sizes are in inches and points: what is readable does not depend on the amount of data.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from refusal.artefacts import atomic_write
from refusal.figures import any_script
from refusal.wording import shorten

ImageFormat = Literal["png", "svg", "pdf"]

INK, FAINT, GRID = "#1f2328", "#626a73", "#d9dde2"
"""Colours of text, of secondary text and of lines that only guide the eye."""
POSITIVE, NEGATIVE = "#1f6fb2", "#c8501e"
"""Colours of signs: towards refusal, towards compliance. They differ for every kind of colour vision."""
UNMEASURED = "#eceef0"
"""Ground of a cell that could not be measured; it is hatched besides."""
LONGEST_NAME = 28
"""Characters of a name before it is cut."""
RING: dict[str, Any] = {"marker": "o", "markersize": 10, "mfc": "none", "mec": INK, "mew": 1.5, "linestyle": "none"}
"""How what was selected is marked."""
_DPI = 150
_NO_DATE: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches that draws with Agg."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Return axes whose place and size are given in inches."""
    total_width, total_height = figure.get_size_inches()
    return figure.add_axes((left / total_width, bottom / total_height, width / total_width, height / total_height))


def add_text(figure: Figure, left: float, bottom: float, text: str, **style: Any) -> None:
    """Write text at a place in inches; `$` and the like are text, not mathematics."""
    width, height = figure.get_size_inches()
    figure.text(left / width, bottom / height, drawable(text), parse_math=False, **({"color": INK} | style))


def add_head(figure: Figure, title: str, line: str, line_from_top: float = 0.68) -> None:
    """Write a figure's title and, its baseline some inches from the top, a line below it."""
    height = figure.get_size_inches()[1]
    add_text(figure, 0.3, height - 0.42, title, fontsize=14, weight="bold", va="baseline")
    add_text(figure, 0.3, height - line_from_top, line, fontsize=9.5, va="baseline", color=FAINT)


def add_notes(figure: Figure, notes: str) -> None:
    """Write notes at the foot of a figure; their lines are broken already, by `wrapped` at 8.5 points."""
    add_text(figure, 0.3, 0.15, notes, fontsize=8.5, va="bottom", color=FAINT, linespacing=1.3)


def add_legend(figure: Figure, handles: Sequence[Artist], left: float, bottom: float, **layout: Any) -> None:
    """Add a legend whose lower left corner is given in inches; `layout` says columns and gaps."""
    width, height = figure.get_size_inches()
    place = {"loc": "lower left", "bbox_to_anchor": (left / width, bottom / height)}
    figure.legend(handles=handles, frameon=False, fontsize=8.5, labelcolor=INK, **place, **layout)


def name(text: str, longest: int = LONGEST_NAME) -> str:
    """Return a name on one line, cut where it is too long, in characters that the font has."""
    return drawable(shorten(text, longest))


@cache
def _known_characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def drawable(text: str) -> str:
    """Return `text` with characters that the font lacks replaced by their code, e.g. U+4E2D."""
    known = _known_characters()
    return "".join(char if char == "\n" or ord(char) in known else f"[U+{ord(char):04X}]" for char in text)


def wrapped(text: str, inches: float, points: float) -> str:
    """Return `text` in lines that fit a width at a font size, taking .52 em for a character."""
    return textwrap.fill(drawable(text), max(20, int(inches * 72 / (0.52 * points))))


def tick_names(axes: Axes, axis: Literal["x", "y"], at: Sequence[float], names: Sequence[str], **style: Any) -> None:
    """Label the ticks of an axis with names."""
    set_ticks = axes.set_xticks if axis == "x" else axes.set_yticks
    set_ticks(list(at), labels=[name(each) for each in names], parse_math=False, color=INK, **style)


def quiet_axes(axes: Axes) -> None:
    """Take away what carries no information: two spines and the tick marks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(length=0, colors=INK, labelsize=8.5)


def as_numbers(values: Sequence[float | None]) -> Float[np.ndarray, " point"]:
    """Return values to draw, nan where nothing was measured."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


class Picture:
    """A figure as notebooks show it.

    Args:
        figure: Whatever a function of this package has drawn.
        dpi: Dots per inch.
    """

    def __init__(self, figure: Figure, dpi: int = 72) -> None:
        self.figure = figure
        self.dpi = dpi

    def _repr_png_(self) -> bytes:
        """Return the picture; the name is IPython's."""
        content = io.BytesIO()
        self.figure.savefig(content, format="png", dpi=self.dpi, metadata={})
        return content.getvalue()


def save_figure(figure: Figure, path: Path, image_format: ImageFormat) -> Path:
    """Write a figure atomically, the same bytes for the same content, and return its path."""
    with (
        atomic_write(path) as beside,
        any_script(),
        matplotlib.rc_context({"svg.hashsalt": "refusal-circuits", "svg.fonttype": "path"}),
    ):
        # Compressing harder takes longer than drawing, for a tenth of the size.
        how: dict[str, Any] = {"pil_kwargs": {"compress_level": 4}} if image_format == "png" else {}
        figure.savefig(beside, format=image_format, dpi=_DPI, metadata=_NO_DATE[image_format], **how)
    return path

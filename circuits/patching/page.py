"""The page section of activation patching: what the template shows of `PatchingResults`, and a page of its own.

Heatmaps are tables whose cells are coloured, so that the section needs no script and no picture. Whatever comes from
data is escaped by the template engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from circuits.page_templates import asset, template
from circuits.plots.patching import KIND_TITLES, MODE_TITLES, Panel, head_panels, layer_panels
from refusal import __version__, wording
from refusal.patching.records import LatentRecord, PatchingComparison, PatchingResults, UnitRecord
from refusal.patching.sentences import in_words

MOST_CELLS = 600
"""Cells of a heatmap beyond which the report links to the model's own page."""
MOST_LATENTS = 60
"""Latents that are listed; the CSV file holds all."""
_BLUE, _ORANGE = (31, 111, 178), (200, 80, 30)


@dataclass(frozen=True)
class HeatCell:
    """A coloured cell."""

    text: str
    style: str
    """Colours, from numbers alone."""
    hint: str
    """What is shown when the pointer rests on it."""
    is_critical: bool


@dataclass(frozen=True)
class HeatTable:
    """A heatmap as a table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell | None, ...]], ...]
    """Name of the row and its cells; None: not measured."""
    n_cells: int


@dataclass(frozen=True)
class PatchingSection:
    """What the template shows of one model."""

    results: PatchingResults
    words: tuple[str, ...]
    """What was found, in sentences."""
    layers: tuple[HeatTable, ...]
    heads: tuple[HeatTable, ...]
    latents: tuple[LatentRecord, ...]
    figures: Mapping[str, str]
    """Pictures by name, relative to the page."""


@dataclass(frozen=True)
class ComparedModels:
    """Two models that were compared, and the page that shows it."""

    first: str
    second: str
    n_pairs: int
    page: str
    """Relative to the result folder."""


@dataclass(frozen=True)
class PatchingPart:
    """What the report shows of patching."""

    sections: Sequence[PatchingSection] = ()
    """A model each."""
    compared: Sequence[ComparedModels] = ()


NO_PATCHING = PatchingPart()
"""What the report shows where nothing was patched."""


def patching_section(
    results: PatchingResults, figures: Mapping[str, str], most_cells: int | None = None
) -> PatchingSection:
    """Return what is shown of a model.

    Args:
        results: What was found.
        figures: Pictures by name, relative to the page.
        most_cells: Heatmaps with more cells are left out; None: none is.
    """
    layers, heads = (
        tuple(table for table in map(_table, panels) if most_cells is None or table.n_cells <= most_cells)
        for panels in (layer_panels(results), head_panels(results))
    )
    return PatchingSection(results, in_words(results), layers, heads, results.latents[:MOST_LATENTS], figures)


def _table(panel: Panel) -> HeatTable:
    rows = tuple(
        (name, tuple(_cell(panel.cells.get((row, column)), panel.is_dense) for column in range(len(panel.columns))))
        for row, name in enumerate(panel.rows)
    )
    return HeatTable(panel.title.replace("\n", ", "), panel.columns, rows, len(panel.rows) * len(panel.columns))


def _cell(unit: UnitRecord | None, is_dense: bool) -> HeatCell | None:
    if unit is None or unit.effect.value is None:
        return None
    value = unit.effect.value
    interval = wording.interval((unit.effect.low, unit.effect.high))
    p = "" if unit.p_corrected is None else f", corrected p {unit.p_corrected:.2g}"
    hint = f"{unit.name} at {unit.place}: {wording.number(value)} {interval}, n = {unit.effect.n}{p}"
    return HeatCell("" if is_dense else wording.number(value), heat_style(value), hint, unit.is_critical)


def heat_style(value: float) -> str:
    """Return the colours of a cell: blue towards 1, orange below 0, white text where the ground is dark.

    >>> heat_style(0.5), heat_style(-2.0)
    ('background:rgba(31,111,178,0.50)', 'background:rgba(200,80,30,1.00);color:#fff')
    """
    red, green, blue = _BLUE if value >= 0 else _ORANGE
    strength = min(1.0, abs(value))
    ink = ";color:#fff" if strength > 0.6 else ""
    return f"background:rgba({red},{green},{blue},{strength:.2f}){ink}"


def patching_page(results: PatchingResults, figures: Mapping[str, str]) -> str:
    """Return the page of one model's patching: self-contained but for the pictures, which lie beside it."""
    section = patching_section(results, figures)
    return _page(f"Where refusal is decided: {wording.one_line(results.model)}", sections=[section], comparisons=[])


def comparison_page(found: PatchingComparison, figures: Mapping[str, str]) -> str:
    """Return the page of a comparison of two models."""
    title = f"{wording.one_line(found.first)} against {wording.one_line(found.second)}"
    return _page(title, sections=[], comparisons=[(found, figures)])


def _page(
    title: str,
    sections: Sequence[PatchingSection],
    comparisons: Sequence[tuple[PatchingComparison, Mapping[str, str]]],
) -> str:
    return template("patching_page.html.j2").render(
        title=title,
        sections=sections,
        comparisons=comparisons,
        style=Markup(asset("report.css") + asset("patching.css")),
        version=__version__,
        kinds=KIND_TITLES,
        modes=MODE_TITLES,
    )

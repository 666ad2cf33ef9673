"""The results as tables: CSV for programs, LaTeX for papers. Rows and columns are those of `patching.json`.

Every number comes with its interval and n. What was not measured is an empty field.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from refusal.artefacts import atomic_write
from refusal.patching.attention import GROUPS
from refusal.patching.records import (
    MapRecord,
    PatchingComparison,
    PatchingResults,
    RefusalsRecord,
    UnitRecord,
)
from refusal.schemas import Measure
from refusal.untrusted.spreadsheet import plain_cell

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """One table."""

    name: str
    """File name without suffix."""
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


_REFUSALS = ("refusal", "refusal_low", "refusal_high", "refused", "n", "unclear")


def _columns(name: str) -> tuple[str, ...]:
    """Return the columns of a number with its interval."""
    return (name, f"{name}_low", f"{name}_high", f"{name}_n")


def _measure(measure: Measure | None) -> tuple[Cell, ...]:
    if measure is None:
        return (None, None, None, None)
    return (measure.value, measure.low, measure.high, measure.n)


def _refusals(found: RefusalsRecord) -> tuple[Cell, ...]:
    rate = found.refusal
    return (rate.value, rate.low, rate.high, rate.k, rate.n, found.n_unclear)


def _unit(record: MapRecord, unit: UnitRecord) -> tuple[Cell, ...]:
    return (
        *(record.kind, record.method, record.mode, record.ablation, unit.name, unit.layer, unit.head, unit.place),
        *_measure(unit.effect),
        *(unit.score, unit.p, unit.p_corrected, unit.is_critical),
    )


def tables(results: PatchingResults) -> list[Table]:
    """Return the tables of a model's results; those without rows are left out."""
    unit = (
        *("kind", "method", "mode", "ablation", "unit", "layer", "head", "place", *_columns("effect")),
        *("score", "p", "p_corrected", "critical"),
    )
    layer_rows = [_unit(each, u) for each in results.maps for u in each.units if u.head is None]
    head_rows = [_unit(each, u) for each in results.maps for u in each.units if u.head is not None]
    found = [
        Table("layers", "Effects of patching layers, as shares of the gap.", unit, tuple(layer_rows)),
        Table("heads", "Effects of patching attention heads, as shares of the gap.", unit, tuple(head_rows)),
        Table(
            "agreement",
            "Agreement of estimates with exact patching.",
            ("kind", "mode", "ablation", "method", "spearman", "pearson", "units"),
            tuple((e.kind, e.mode, e.ablation, e.method, e.spearman, e.pearson, e.n) for e in results.agreement),
        ),
        Table(
            "writes",
            f"What is written to m and along the refusal direction ({results.direction_site}).",
            ("unit", "layer", "head", *_columns("to_m"), *_columns("to_direction")),
            tuple((w.name, w.layer, w.head, *_measure(w.to_metric), *_measure(w.to_direction)) for w in results.writes),
        ),
        _attention(results),
        Table(
            "validation",
            "Refusals with units ablated or kept.",
            ("kind", "condition", "units", "sets", *_REFUSALS),
            tuple((c.kind, c.name, c.n_units, c.draws, *_refusals(c.refusals)) for c in results.validation),
        ),
        Table(
            "clamping",
            "Refusals with a direction or latents clamped.",
            ("what", "site", "strength", "prompts", *_REFUSALS),
            tuple(
                (c.what, c.site, dose.strength, side, *_refusals(getattr(dose, name)))
                for c in results.clamping
                for name, side in (("suppress", "refused as they are"), ("force", "complied as they are"))
                for dose in c.doses
            ),
        ),
        _latents(results),
        Table(
            "structure",
            "Do categories use the same MLP neurons? 1: the same.",
            ("site", "first", "second", "raw", "normalised"),
            tuple(
                (s.site, first, second, s.raw[first][second], s.normalised[first][second])
                for s in results.structure
                for first in s.categories
                for second in s.categories
            ),
        ),
        Table(
            "unusable",
            "Pairs and prompts that were not used.",
            ("id", "reason"),
            tuple((each.id, each.reason) for each in results.pairs.unusable),
        ),
    ]
    return [table for table in found if table.rows]


def _attention(results: PatchingResults) -> Table:
    header = ("layer", "head", "side", "group", *_columns("share"), "per_token")
    rows = tuple(
        (e.layer, e.head, e.side, group, *_measure(e.shares[group]), e.per_token[group])
        for e in results.attention
        for group in GROUPS
    )
    return Table("attention", "Where critical heads look from the readout position.", header, rows)


def _latents(results: PatchingResults) -> Table:
    header = ("site", "latent", "circuits", "attribution", *_columns("denoise"), *_columns("noise"))
    rows = tuple(
        (
            *(e.site, e.latent, " ".join(e.circuits), e.attribution),
            *_measure(None if e.denoise is None else e.denoise.effect),
            *_measure(None if e.noise is None else e.noise.effect),
            *(len(e.top_prompts), e.n_refused, " ".join(f"{name}:{n}" for name, n in e.categories.items())),
            " ".join(prompt.id for prompt in e.top_prompts),
        )
        for e in results.latents
    )
    return Table(
        "latents",
        "Latents of circuits, their effects and their top prompts.",
        (*header, "top", "top_refused", "top_categories", "top_prompts"),
        rows,
    )


def comparison_tables(found: PatchingComparison) -> list[Table]:
    """Return the tables of a comparison of two models."""
    maps = Table(
        "maps",
        f"Effects in {found.first} and {found.second}.",
        ("kind", "mode", "unit", "place", "first", "second", *_columns("difference"), "d_z", "p_corrected"),
        tuple(
            (
                *(each.kind, each.mode, cell.name, cell.place, cell.first, cell.second),
                *_measure(cell.difference),
                *(cell.effect_size, cell.p_corrected),
            )
            for each in found.maps
            for cell in each.cells
        ),
    )
    directions = Table(
        "directions",
        f"Cosine of the refusal directions of {found.first} and {found.second}.",
        ("site", *_columns("cosine"), "ceiling_first", "ceiling_second", "norm_first", "norm_second"),
        tuple(
            (d.site, *_measure(d.cosine), d.ceiling_first, d.ceiling_second, d.norm_first, d.norm_second)
            for d in found.directions
        ),
    )
    return [maps, directions]


def write_tables(results: PatchingResults | PatchingComparison, folder: Path, *, latex: bool) -> list[Path]:
    """Write every table as CSV, and as LaTeX where asked for; return the paths, and remove those of earlier runs."""
    found = tables(results) if isinstance(results, PatchingResults) else comparison_tables(results)
    written = [_write(folder / "tables" / f"{table.name}.csv", as_csv(table)) for table in found]
    if latex:
        written += [_write(folder / "tables" / f"{table.name}.tex", as_latex(table)) for table in found]
    for path in (folder / "tables").glob("*"):
        if path not in written:
            path.unlink()
    return written


def _write(path: Path, text: str) -> Path:
    with atomic_write(path) as beside:
        beside.write_bytes(text.encode("utf-8", "replace"))
    return path


def as_csv(table: Table) -> str:
    """Return a table as CSV with a header; numbers have six significant digits, texts are no formulas."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.header)
    writer.writerows([plain_cell(_number(cell)) for cell in row] for row in table.rows)
    return text.getvalue()


def _number(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)


_LATEX = str.maketrans(
    {
        **{char: f"\\{char}" for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)


def as_latex(table: Table) -> str:
    r"""Return a table as LaTeX that needs the packages booktabs and longtable.

    >>> print(as_latex(Table("a", "50 %.", ("x_1", "y"), ((0.5, None),))))  # doctest: +ELLIPSIS
    % needs \usepackage{booktabs,longtable}
    \begin{longtable}{lr}
    \caption{50 \%.}\label{tab:a}\\
    ...
    0.50 &  \\
    \bottomrule
    \end{longtable}
    <BLANKLINE>
    """
    head = " & ".join(_latex(name) for name in table.header) + r" \\"
    lines = [
        r"% needs \usepackage{booktabs,longtable}",
        rf"\begin{{longtable}}{{l{'r' * (len(table.header) - 1)}}}",
        rf"\caption{{{_latex(table.caption)}}}\label{{tab:{table.name}}}\\",
        *(r"\toprule", head, r"\midrule", r"\endfirsthead"),
        *(r"\toprule", head, r"\midrule", r"\endhead"),
        *(" & ".join(_latex(_short(cell)) for cell in row) + r" \\" for row in table.rows),
        *(r"\bottomrule", r"\end{longtable}", ""),
    ]
    return "\n".join(lines)


def _latex(text: str) -> str:
    return text.translate(_LATEX)


def _short(cell: Cell) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else _number(cell)

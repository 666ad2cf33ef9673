"""A circuit as a picture: rows are sites, the deepest on top; in a row the nodes from largest to smallest attribution.

Only the largest nodes and the strongest edges are drawn; the figure says how many are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from circuits.graph import Node, SparseFeatureCircuit
from circuits.plots.style import (
    FAINT,
    GRID,
    INK,
    NEGATIVE,
    POSITIVE,
    add_axes,
    add_head,
    add_legend,
    add_notes,
    add_text,
    name,
    new_figure,
    wrapped,
)
from refusal.sites import Site
from refusal.wording import interval, number, one_line, plural

NODES_A_SITE = 8
"""Nodes drawn at a site, the error node among them."""
MOST_NODES = 128
"""Nodes drawn in all: with many sites each has fewer."""
EDGES_A_STEP = 12
"""Edges drawn between two sites on average; with many sites half of it, so that strands stay apart."""
_COLUMN, _ROW, _LEFT, _HEAD = 1.5, 1.0, 1.45, 0.9
_AREA = (26.0, 420.0)
"""Area of the smallest and the largest node, square points."""


@dataclass(frozen=True)
class Drawn:
    """What of a circuit is drawn, and where: x counts nodes in a row, y counts rows upwards."""

    places: dict[Node, tuple[float, float]]
    rows: dict[Site, list[Node]]
    edges: list[tuple[Node, Node, float]]


def choose(circuit: SparseFeatureCircuit, nodes_a_site: int = NODES_A_SITE) -> Drawn:
    """Return the largest nodes of each site, in a row by attribution with the error node last, and strongest edges."""
    sites = circuit.sites
    per_site = max(2, min(nodes_a_site, MOST_NODES // max(len(sites), 1)))
    steps = len(sites) - 1
    most_edges = steps * (EDGES_A_STEP if steps <= 6 else EDGES_A_STEP // 2)
    rows: dict[Site, list[Node]] = {}
    for site in sites:
        at_site = circuit.nodes_at(site)
        errors = [node for node in at_site if node.is_error]
        latents = [node for node in at_site if not node.is_error][: per_site - len(errors)]
        rows[site] = sorted(latents, key=lambda node: -circuit.record(node).attribution) + errors
    places = {node: (float(x), float(y)) for y, row in enumerate(rows.values()) for x, node in enumerate(row)}
    return Drawn(places, rows, circuit.strongest_edges(places)[:most_edges])


def circuit_plot(circuit: SparseFeatureCircuit) -> Figure:
    """Return the picture of a circuit."""
    drawn = choose(circuit)
    columns = max((len(row) for row in drawn.rows.values()), default=0)
    width = max(_LEFT + columns * _COLUMN + 0.2, 10.2)
    row = _ROW if len(drawn.rows) <= 9 else 0.72
    notes = wrapped(_notes(circuit, drawn), width - 0.6, 8.5)
    bottom = 0.85 + 0.17 * (notes.count("\n") + 1)
    figure = new_figure(width, bottom + max(len(drawn.rows), 1) * row + _HEAD)
    _head(figure, circuit)
    add_notes(figure, notes)
    axes = add_axes(figure, _LEFT, bottom, width - _LEFT - 0.1, max(len(drawn.rows), 1) * row)
    axes.set_axis_off()
    axes.set(xlim=(-0.3, (width - _LEFT - 0.1) / _COLUMN - 0.3), ylim=(-0.5, max(len(drawn.rows), 1) - 0.5))
    if drawn.rows:
        _draw_rows(axes, circuit, drawn)
        _draw_edges(axes, drawn)
        _draw_nodes(axes, circuit, drawn)
        _legend(figure, 0.15 + 0.17 * (notes.count("\n") + 1) + 0.1)
    else:
        reason = " ".join(one_line(notice) for notice in circuit.header.notices) or "The circuit has no nodes."
        add_text(figure, 0.3, bottom + 0.5 * row, wrapped(reason, width - 0.8, 11), fontsize=11, va="center")
    return figure


def _head(figure: Figure, circuit: SparseFeatureCircuit) -> None:
    header = circuit.header
    ranking = "integrated gradients" if header.method == "attribution" else "correlation with refusal"
    line = (
        f"circuit by {ranking}; n = {header.n_refused} refused, {header.n_complied} complied prompts; "
        f"SAE seed {header.sae_seed}"
    )
    if header.metric_refused is not None:
        line += f"; m of refused prompts {number(header.metric_refused, signed=True)} logits"
    add_head(figure, f"{name(header.category)}, {name(header.model, 48)}", line)


def _notes(circuit: SparseFeatureCircuit, drawn: Drawn) -> str:
    if not drawn.rows:
        return ""
    n_nodes, n_edges = len(circuit), circuit.graph.number_of_edges()
    notes = [
        "Labels: latent (#) or error node, then its part of m(refused) - m(counterfactual) in logits with the 95 % "
        "bootstrap interval.",
        f"Drawn: {len(drawn.places)} of {plural(n_nodes, 'node')}, the largest of each site, and {len(drawn.edges)} of "
        f"{plural(n_edges, 'edge')}, the strongest; left out: {plural(n_nodes - len(drawn.places), 'node')} and "
        f"{plural(n_edges - len(drawn.edges), 'edge')}.",
    ]
    remainder = [value for value in circuit.header.edge_remainder.values() if value is not None]
    if remainder:
        ends = dict.fromkeys((number(min(remainder)), number(max(remainder))))
        notes.append(f"Share of a site's attribution that no edge explains: {' to '.join(ends)}.")
    return " ".join([*notes, *(one_line(notice) for notice in circuit.header.notices)])


def _draw_rows(axes: Axes, circuit: SparseFeatureCircuit, drawn: Drawn) -> None:
    for y, (site, row) in enumerate(drawn.rows.items()):
        axes.axhline(y, color=GRID, linewidth=0.7, zorder=0)
        of = len(circuit.nodes_at(site))
        style: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(
            site.name, (0, y), xytext=(-78, 2), fontsize=9.5, weight="bold", color=INK, annotation_clip=False, **style
        )
        axes.annotate(
            f"{len(row)} of {plural(of, 'node')}",
            (0, y),
            xytext=(-78, -9),
            fontsize=7.5,
            color=FAINT,
            annotation_clip=False,
            **style,
        )


def _draw_edges(axes: Axes, drawn: Drawn) -> None:
    strongest = max((abs(weight) for _, _, weight in drawn.edges), default=1.0) or 1.0
    for source, target, weight in reversed(drawn.edges):
        (x0, y0), (x1, y1) = drawn.places[source], drawn.places[target]
        middle = (y0 + y1) / 2
        curve = Path([(x0, y0), (x0, middle), (x1, middle), (x1, y1)], [Path.MOVETO, *[Path.CURVE4] * 3])
        share = abs(weight) / strongest
        axes.add_patch(
            PathPatch(
                curve,
                fill=False,
                edgecolor=_colour(weight),
                linewidth=0.5 + 3.2 * share,
                alpha=0.2 + 0.5 * share,
                zorder=1,
            )
        )


def _draw_nodes(axes: Axes, circuit: SparseFeatureCircuit, drawn: Drawn) -> None:
    largest = max(abs(circuit.record(node).attribution) for node in drawn.places) or 1.0
    halo: Mapping[str, Any] = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.82}
    marks: dict[str, list[tuple[float, float, float, str]]] = {"o": [], "s": []}
    for node, (x, y) in drawn.places.items():
        record = circuit.record(node)
        area = _AREA[0] + (_AREA[1] - _AREA[0]) * abs(record.attribution) / largest
        marks["s" if node.is_error else "o"].append((x, y, area, _colour(record.attribution)))
        right = (area**0.5 / 2 + 3, 0)
        text = f"{node} {number(record.attribution, signed=True)}\n{interval(record.interval)}".rstrip()
        axes.annotate(
            text.replace(" ", "\n", 1),
            (x, y),
            xytext=right,
            textcoords="offset points",
            fontsize=7.3,
            va="center",
            color=INK,
            linespacing=1.15,
            bbox=dict(halo),
            zorder=4,
        )
    for marker, found in marks.items():
        if found:
            xs, ys, areas, colours = zip(*found, strict=True)
            axes.scatter(xs, ys, s=areas, marker=marker, color=colours, edgecolors="white", lw=1, zorder=3)


def _colour(value: float) -> str:
    return POSITIVE if value >= 0 else NEGATIVE


def _legend(figure: Figure, bottom: float) -> None:
    def mark(marker: str, colour: str, size: float, label: str) -> Line2D:
        """Return a legend entry without a line."""
        return Line2D([], [], marker=marker, color=colour, linestyle="none", markersize=size, label=label)

    handles = [
        mark("o", POSITIVE, 9, "towards refusal"),
        mark("o", NEGATIVE, 9, "towards compliance"),
        mark("s", FAINT, 8, "error node (what the SAE misses)"),
        mark("o", FAINT, 4, "smaller = less attribution"),
        Line2D([], [], color=FAINT, linewidth=3, label="wider edge = more passed on"),
    ]
    add_legend(figure, handles, 0.2, bottom, ncols=5, columnspacing=1.6, handletextpad=0.5)

"""What the page's scripts draw from: a small, rounded copy of the artefacts, embedded in the page as JSON.

Fields are short because there are many; what they mean stands beside each. How much of the circuits and of the texts is
embedded is given by `Limits`, and the page says what was left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from circuits.graph import Node, SparseFeatureCircuit
from circuits.plots.similarity import category_order
from refusal.record import Record
from refusal.schemas import (
    CircuitFile,
    Comparison,
    DepthPoint,
    Interval,
    IntervalMatrix,
    Matrix,
    ModelOutputs,
    PromptLabel,
    RefusalLabels,
    Report,
)
from refusal.sites import Site

MEASURES = {"jaccard": "weighted Jaccard", "cosine": "cosine", "decoder_cosine": "cosine in decoder space"}
"""Names of the structural measures as the page calls them."""


Measured = tuple[float | None, float | None, float | None]
"""Value, lower and upper end of its 95 % interval."""


@dataclass(frozen=True)
class Limits:
    """How much is embedded in the page."""

    nodes_a_site: int
    edges: int
    prompts_a_latent: int
    prompt_characters: int
    response_characters: int


STEPS = (Limits(24, 400, 5, 600, 400), Limits(12, 160, 3, 300, 200), Limits(8, 80, 1, 160, 120), Limits(8, 40, 0, 0, 0))
"""From generous to frugal; the first that keeps the page small is taken."""


@dataclass(frozen=True)
class Texts:
    """Prompts and responses of one model, as far as they are at hand."""

    labels: Mapping[str, PromptLabel]
    prompts: Mapping[str, str]
    responses: Mapping[str, str]

    @classmethod
    def of(cls, labels: RefusalLabels | None, outputs: ModelOutputs | None) -> Texts:
        """Return the texts of two artefacts, either of which may be missing."""
        found = outputs.outputs if outputs else ()
        return cls(
            {label.id: label for label in (labels.prompts if labels else ())},
            {output.id: output.prompt for output in found},
            {output.id: output.response for output in found},
        )


class PageMatrix(Record):
    """One view of the heatmap."""

    key: str
    label: str
    note: str = Field(description="What a value means and where it comes from.")
    values: list[list[float | None]] = Field(description="Rows and columns as the categories of the model.")
    low: list[list[float | None]] | None = Field(description="Lower ends of 95 % intervals; null: none was computed.")
    high: list[list[float | None]] | None
    directed: bool = Field(description="Whether row -> column differs from column -> row.")


class PageNode(Record):
    """A node of a circuit."""

    s: int = Field(description="Index of the site.")
    l: int | None = Field(description="Latent; null for the error node.")  # noqa: E741 - short on purpose, see above
    a: float = Field(description="Attribution, logits.")
    i: tuple[float | None, float | None] = Field(description="95 % interval of the attribution.")
    d: Measured = Field(description="What it adds to m when only the circuit is kept, logits, with interval.")
    t: float = Field(description="Stability, share of bootstrap draws.")
    f: tuple[float, float] = Field(description="Share of refused and of complied prompts on which it is active.")
    p: list[str] = Field(description="Ids of its top prompts.")


class PageSite(Record):
    """A site of a circuit."""

    name: str
    n: int = Field(description="Nodes of the circuit at the site, before any were left out.")
    size: int | None = Field(description="Chosen number of latents.")
    faithfulness: Measured
    completeness: Measured
    remainder: float | None = Field(description="Share of attribution that no edge explains.")


class PageCircuit(Record):
    """A circuit, cut to its largest nodes and strongest edges."""

    category: str
    method: str
    seed: int
    n: tuple[int, int] = Field(description="Refused and complied prompts.")
    notices: tuple[str, ...]
    sites: list[PageSite]
    nodes: list[PageNode]
    edges: list[tuple[int, int, float]] = Field(description="Indices of source and target node, weight in logits.")
    n_edges: int = Field(description="Edges before any were left out.")


class PageModel(Record):
    """Everything drawn of one model."""

    name: str
    categories: list[str] = Field(description="In groups; those not compared come last.")
    groups: list[list[int]] | None = Field(description="Indices of categories.")
    n: dict[str, int] = Field(description="Refused prompts used of each category.")
    left_out: dict[str, str] = Field(description="Why a category is not compared.")
    reason: str = Field(description="The sentence of the verdict, shown where nothing was measured.")
    matrices: list[PageMatrix]
    depth: list[DepthPoint]
    anchors: dict[str, str | None]
    thresholds: dict[str, float]
    circuits: list[PageCircuit]
    answers: dict[str, tuple[str, str]] = Field(description="By prompt id: what the model did, and its response.")


class PageData(Record):
    """The JSON that is embedded in the page."""

    models: list[PageModel]
    prompts: dict[str, tuple[str, str, str]] = Field(description="By id: category, data set label, text.")
    embeds_texts: bool
    measures: dict[str, str]


def page_data(report: Report, texts: Mapping[str, Texts], limits: Limits) -> PageData:
    """Return what the page draws from.

    Args:
        report: Everything that was found.
        texts: Prompts and responses by model.
        limits: How much to embed.
    """
    models = [_model(report, name, texts[name], limits) for name in report.models]
    prompts: dict[str, tuple[str, str, str]] = {}
    for model in models:
        known = texts[model.name]
        for prompt in _named(model.circuits):
            if prompt in known.prompts and prompt in known.labels:
                label, text = known.labels[prompt], _cut(known.prompts[prompt], limits.prompt_characters)
                prompts.setdefault(prompt, (label.category, label.dataset_label, text))
    return PageData(models=models, prompts=prompts, embeds_texts=bool(prompts), measures=MEASURES)


def _model(report: Report, name: str, texts: Texts, limits: Limits) -> PageModel:
    comparison = report.comparisons[name]
    order = category_order(comparison)
    circuits = [_circuit(report.circuits[name][c], limits) for c in order if c in report.circuits[name]]
    answers: dict[str, tuple[str, str]] = {
        prompt: (texts.labels[prompt].behaviour, _cut(texts.responses[prompt], limits.response_characters))
        for prompt in _named(circuits)
        if prompt in texts.responses and prompt in texts.labels
    }
    return PageModel(
        name=name,
        categories=order,
        groups=[[order.index(c) for c in group] for group in comparison.groups] if comparison.groups else None,
        n={category: support.n_used for category, support in comparison.support.items()},
        left_out={c: s.reason_left_out for c, s in comparison.support.items() if s.reason_left_out is not None},
        reason=comparison.reason,
        matrices=matrices(comparison, order),
        depth=sorted(comparison.depth_profile, key=lambda point: Site.parse(point.site)),
        anchors={
            "onset": comparison.onset_site,
            "shared from": comparison.shared_from_site,
            "commit": comparison.commit_site,
            "decisive": comparison.decisive_site,
        },
        thresholds=comparison.thresholds,
        circuits=circuits,
        answers=answers,
    )


def _named(circuits: Iterable[PageCircuit]) -> list[str]:
    """Return the ids of all top prompts, each once."""
    return list(dict.fromkeys(prompt for circuit in circuits for node in circuit.nodes for prompt in node.p))


def matrices(comparison: Comparison, order: Sequence[str]) -> list[PageMatrix]:
    """Return the views of the heatmap: similarity, transfer, the structural measures and the original rule."""
    where = f" at {comparison.decisive_site}" if comparison.decisive_site else ""
    views = [
        _view("similarity", f"Similarity{where}", _SIMILARITY, order, comparison.similarity),
        _view("transfer", f"Transfer{where}, row onto column", _TRANSFER, order, comparison.transfer),
    ]
    views[0] = _with_intervals(views[0], order, comparison.similarity_ci)
    views[1] = _with_intervals(views[1], order, comparison.transfer_ci).model_copy(update={"directed": True})
    structure = comparison.structural_similarity
    for key, label in MEASURES.items():
        ceiling = structure.noise_ceiling.get(key, {})
        both = {a: {b: _both(ceiling.get(a), ceiling.get(b)) for b in order} for a in order} if ceiling else {}
        for suffix, name, note, matrix in (
            ("raw", "raw", _RAW, structure.raw.get(key, {})),
            ("ceiling", "noise ceiling", _CEILING, both),
            ("normalised", "over its ceiling", _NORMALISED, structure.normalised.get(key, {})),
        ):
            views.append(_view(f"{key} {suffix}", f"Structure: {label}, {name}", note, order, matrix))
    note = f"The original rule ({comparison.baseline.rule}), for comparison only. It decides nothing. No interval."
    return [*views, _view("baseline", "Baseline: original rule", note, order, comparison.baseline.similarity)]


_SIMILARITY = "Mean of the transfer both ways, with its 95 % bootstrap interval over prompts and SAE seeds."
_TRANSFER = (
    "Share of the column's own effect that ablating the row's circuit has on the column's refused prompts, less random "
    "sets; 95 % bootstrap interval. Rows and columns differ where one mechanism is a part of the other."
)
_RAW = "Agreement of the two categories' attribution vectors. Read it beside its ceiling only. No interval."
_CEILING = (
    "What two halves of one category reach (diagonal), and the geometric mean of both ceilings (pairs): as much as "
    "agreement can be at this n. No interval."
)
_NORMALISED = "Raw agreement over its ceiling; n/a where the ceiling is too low to divide by. No interval."


def _both(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None or a < 0 or b < 0 else math.sqrt(a * b)


def _view(key: str, label: str, note: str, order: Sequence[str], matrix: Matrix) -> PageMatrix:
    values = [[_short(matrix.get(a, {}).get(b)) for b in order] for a in order]
    return PageMatrix(key=key, label=label, note=note, values=values, low=None, high=None, directed=False)


def _with_intervals(view: PageMatrix, order: Sequence[str], intervals: IntervalMatrix) -> PageMatrix:
    ends = [[intervals.get(a, {}).get(b, (None, None)) if a != b else (None, None) for b in order] for a in order]
    low, high = ([[_short(pair[end]) for pair in row] for row in ends] for end in (0, 1))
    return view.model_copy(update={"low": low, "high": high})


def _circuit(file: CircuitFile, limits: Limits) -> PageCircuit:
    circuit = SparseFeatureCircuit.from_file(file)
    kept: list[Node] = []
    for site in circuit.sites:
        at_site = circuit.nodes_at(site)
        errors = [node for node in at_site if node.is_error]
        latents = [node for node in at_site if not node.is_error][: limits.nodes_a_site - len(errors)]
        kept += [*sorted(latents, key=lambda node: -circuit.record(node).attribution), *errors]
    place = {node: index for index, node in enumerate(kept)}
    edges = circuit.strongest_edges(kept)[: limits.edges]
    return PageCircuit(
        category=file.category,
        method=file.method,
        seed=file.sae_seed,
        n=(file.n_refused, file.n_complied),
        notices=file.notices,
        sites=[_site(circuit, site) for site in circuit.sites],
        nodes=[_node(circuit, node, limits) for node in kept],
        edges=[(place[source], place[target], _rounded(weight)) for source, target, weight in edges],
        n_edges=circuit.graph.number_of_edges(),
    )


def _site(circuit: SparseFeatureCircuit, site: Site) -> PageSite:
    curve = next((curve for curve in circuit.header.curves if curve.site == site.name), None)
    faithfulness = completeness = _measured(None, (None, None))
    if curve is not None:
        # the chosen size lies between two that were tried: the figures are those of the larger
        at = next(place for place, size in enumerate(curve.size) if size >= curve.chosen_size)
        faithfulness = _measured(curve.faithfulness[at], curve.faithfulness_ci[at])
        completeness = _measured(curve.completeness[at], curve.completeness_ci[at])
    return PageSite(
        name=site.name,
        n=len(circuit.nodes_at(site)),
        size=curve.chosen_size if curve else None,
        faithfulness=faithfulness,
        completeness=completeness,
        remainder=_short(circuit.header.edge_remainder.get(site.name)),
    )


def _node(circuit: SparseFeatureCircuit, node: Node, limits: Limits) -> PageNode:
    record = circuit.record(node)
    return PageNode(
        s=circuit.sites.index(node.site),
        l=node.latent,
        a=_rounded(record.attribution),
        i=(_short(record.interval[0]), _short(record.interval[1])),
        t=_rounded(record.stability),
        d=_measured(record.minimality, record.minimality_ci),
        f=(_rounded(record.frequency_refused), _rounded(record.frequency_complied)),
        p=list(record.top_prompts[: limits.prompts_a_latent]),
    )


def _measured(value: float | None, ends: Interval) -> Measured:
    return _short(value), _short(ends[0]), _short(ends[1])


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _short(value: float | None) -> float | None:
    return None if value is None else _rounded(value)


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[:characters] + "…"


_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def script_json(data: PageData) -> str:
    """Return the data as JSON that no HTML parser can take for markup and that can be written as UTF-8.

    `<`, `>`, `&`, the line separators of JavaScript and lone surrogates are written as escapes.
    """
    text = json.dumps(data.model_dump(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)

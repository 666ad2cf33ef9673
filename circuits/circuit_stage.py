"""The circuits stage: one circuit per category, written to `circuits/MODEL_CATEGORY_circuit.json`.

The steps are those of `circuits.discovery`; this module runs them for one model and fills the artefacts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from circuits.attribution import NodeAttributions
from circuits.attribution_file import AttributionFile
from circuits.direct import direct_effects, studied_sites
from circuits.discovery import (
    SIZES,
    CircuitDiscoverer,
    Curves,
    attribute,
    choose_size,
    discoverer,
    dosed_latents,
    measure_curves,
    minimality,
    path_gradients,
)
from circuits.edges import EdgeEnds, edges_between
from circuits.evidence import Evidence, SiteCode
from circuits.nodes import NodeSelection, bootstrap_means, circuit_nodes, percentile_interval
from refusal.artefacts import ResultPaths
from refusal.config import Config
from refusal.schemas import CircuitEdge, CircuitFile, SizeCurve
from refusal.sites import Site, SiteKind

log = logging.getLogger(__name__)


def discover_circuits(config: Config, model_name: str, paths: ResultPaths) -> None:
    """Find the circuit of every category and write the artefacts of the circuits stage.

    A model without refusals or openers is no error: each category gets an empty circuit whose notice says why.

    Raises:
        ArtefactError: An artefact of an earlier stage is missing or damaged.
    """
    evidence = Evidence(config, model_name, paths)
    circuits = list(_without_circuit(evidence, model_name, config.circuit.method))
    if evidence.missing is None:
        file = _attributions(evidence, studied_sites(evidence, direct_effects(evidence)), config.circuit.ig_steps)
        study = CircuitStudy(config, evidence, file)
        circuits += study.circuits(model_name)
        file.save(paths.attributions(model_name))
    else:
        log.warning("%s: no circuits: %s", model_name, evidence.missing)
    for circuit in circuits:
        circuit.save(paths.circuit(model_name, circuit.category))


def _attributions(evidence: Evidence, sites: list[Site], n_steps: int) -> AttributionFile:
    gradients = path_gradients(evidence, sites, n_steps)
    ids = tuple(evidence.contrasts.prompt_ids[row] for row in evidence.refused_rows())
    file = AttributionFile(ids, gradients)
    for site in sites:
        for seed in evidence.seeds_of(site):
            file.nodes[site, seed] = attribute(evidence, evidence.code(site, seed), gradients)
    return file


def _without_circuit(evidence: Evidence, model_name: str, method: str) -> Iterable[CircuitFile]:
    """Yield an empty circuit, with the reason, for each category that cannot have one."""
    for category, count in evidence.contrasts.counts.items():
        reason = evidence.missing or count.reason_left_out
        if reason is not None:
            yield CircuitFile.build(
                model=model_name,
                category=category,
                method=method,
                sae_seed=evidence.seeds[0],
                n_refused=count.n_refused,
                n_complied=count.n_complied,
                metric_refused=None,
                metric_complied=None,
                completeness_residual={},
                nodes=(),
                edges=(),
                edge_remainder={},
                curves=(),
                notices=(f"no circuit: {reason}",),
            )


class CircuitStudy:
    """The circuits of one model, seen through the first SAE seed."""

    def __init__(self, config: Config, evidence: Evidence, file: AttributionFile) -> None:
        self.seed = config.seed
        self.max_nodes = config.circuit.max_nodes
        self.evidence = evidence
        self.file = file
        self.codes = [evidence.code(site, evidence.seeds[0]) for site in sorted(file.gradients.gradient)]
        self.method: CircuitDiscoverer = discoverer(config.circuit.method, evidence)

    def circuits(self, model_name: str) -> list[CircuitFile]:
        """Return the circuit of every category in use; fixes its size at each site on the way."""
        curves = self._curves()
        for index, code in enumerate(self.codes):
            self.file.sizes[code.site] = tuple(
                self._size(category, of_category[index]) for category, of_category in enumerate(curves)
            )
        scores = [self.method.scores(code, self._nodes(code.site)) for code in self.codes]
        chosen = [
            dosed_latents(each, self.file.sizes[code.site]) > 0 for each, code in zip(scores, self.codes, strict=True)
        ]
        names = self.evidence.contrasts.categories
        return [
            self._circuit(model_name, index, [torch.nonzero(sets[index]).ravel() for sets in chosen], curves[index])
            for index in tqdm(range(len(names)), desc="circuits: nodes and edges", unit="category", disable=None)
        ]

    def _nodes(self, site: Site) -> NodeAttributions:
        return self.file.nodes[site, self.evidence.seeds[0]]

    def _curves(self) -> list[list[Curves]]:
        """Return the size curves as `[category][site]`."""
        sizes = tuple(size for size in SIZES if size <= self.max_nodes)
        folds = [[self.method.scores(code, self._nodes(code.site), fold) for fold in (0, 1)] for code in self.codes]
        names = self.evidence.contrasts.categories
        return [
            measure_curves(
                self.evidence,
                index,
                self.codes,
                [[s[index] for s in both] for both in folds],
                self.file.gradients,
                sizes,
            )
            for index in tqdm(range(len(names)), desc="circuits: size curves", unit="category", disable=None)
        ]

    def _size(self, category: int, curve: Curves) -> float:
        """Return the size of a category's circuit at a site: each fold's circuits on the prompts that chose them.

        The dose is tuned on the discovery fold, so that the effects measured later on the other fold did not choose it.
        """
        fold = self.evidence.contrasts.fold[self.evidence.contrasts.rows(category, refused=True)]
        shares = []
        for half in (0, 1):
            change = float(curve.change[fold == half].mean())
            if change > 0:
                shares.append(curve.removed[half][:, fold == half].mean(1) / change)
        return choose_size(curve.sizes, np.mean(shares, axis=0).tolist()) if shares else float(curve.sizes[0])

    def _circuit(self, model_name: str, category: int, chosen: list[Tensor], curves: list[Curves]) -> CircuitFile:
        contrasts = self.evidence.contrasts
        refused = np.array(self.evidence.refused_rows())
        rows = tuple(int(row) for row in np.flatnonzero(contrasts.category[refused] == category))
        edges, remainder = self._edges(category, chosen, rows)
        added = minimality(self.evidence, category, self.codes, chosen)
        generator = np.random.default_rng([self.seed, 4, category])
        nodes = []
        for code, latents, each_adds in zip(self.codes, chosen, added, strict=True):
            adds = dict(zip(latents.tolist(), each_adds, strict=True))
            selection = NodeSelection(category, adds, math.ceil(self.file.sizes[code.site][category]), rows)
            nodes += circuit_nodes(selection, code, self._nodes(code.site), contrasts, generator)
        return CircuitFile.build(
            model=model_name,
            category=contrasts.categories[category],
            method=self.method.method,
            sae_seed=self.evidence.seeds[0],
            n_refused=len(rows),
            n_complied=len(contrasts.rows(category, refused=False)),
            metric_refused=float(self.file.gradients.metric[list(rows)].mean()),
            metric_complied=None,
            completeness_residual={str(code.site): self._residual(code, list(rows)) for code in self.codes},
            nodes=tuple(nodes),
            edges=tuple(edges),
            edge_remainder=remainder,
            curves=tuple(
                self._size_curve(curve, code.site, category) for curve, code in zip(curves, self.codes, strict=True)
            ),
            notices=(),
        )

    def _residual(self, code: SiteCode, rows: list[int]) -> float:
        """Return sum |attributions - (m - m_cf)| / sum |m - m_cf| over a category's prompts at a site."""
        nodes = self._nodes(code.site)
        change = (self.file.gradients.metric - self.file.gradients.metric_cf[code.site])[rows]
        total = (nodes.latents.sum(1) + nodes.error)[rows]
        return float((total - change).abs().sum() / change.abs().sum().clamp_min(1e-12))

    def _edges(
        self, category: int, chosen: list[Int[Tensor, " _"]], rows: tuple[int, ...]
    ) -> tuple[list[CircuitEdge], dict[str, float | None]]:
        """Return the edges into each site and, per site, the share of its attribution that none explains.

        Edges come from the previous site with SAEs. Neurons are part of the way between two such sites, so what they
        send on is shown too but explains nothing more.
        """
        prompts = [int(row) for row in self.evidence.contrasts.rows(category, refused=True)]
        edges: list[CircuitEdge] = []
        remainder: dict[str, float | None] = {}
        for target in range(1, len(self.codes)):
            site = self.codes[target].site
            gradient = self.file.gradients.gradient[site][list(rows)]
            for source in self._sources(target):
                ends = EdgeEnds(self.codes[source], self.codes[target], chosen[source], chosen[target])
                found = edges_between(self.evidence, ends, prompts, gradient, self._nodes(site).latents[list(rows)])
                edges += found.edges
                if self.codes[source].site.kind is not SiteKind.NEURONS:
                    remainder[str(site)] = found.remainder
        return edges, remainder

    def _sources(self, target: int) -> list[int]:
        """Return the places of the sites that edges into a site come from."""
        neurons = [index for index, code in enumerate(self.codes[:target]) if code.site.kind is SiteKind.NEURONS]
        others = [index for index in range(target) if index not in neurons]
        between = [index for index in neurons if not others or index > others[-1]]
        return [*others[-1:], *between]

    def _size_curve(self, curve: Curves, site: Site, category: int) -> SizeCurve:
        """Return the curve as published: each prompt judged by the circuit that the other fold chose."""
        fold = self.evidence.contrasts.fold[self.evidence.contrasts.rows(category, refused=True)]
        index = np.arange(len(fold))
        kept, removed = curve.kept[1 - fold, :, index], curve.removed[1 - fold, :, index]
        generator = np.random.default_rng([self.seed, 5, category, site.layer])
        weights = np.concatenate([np.full((1, len(fold)), 1 / len(fold)), bootstrap_means(len(fold), generator)])
        change = weights @ curve.change
        faithfulness = weights @ kept / change[:, None]
        completeness = 1 - weights @ removed / change[:, None]
        return SizeCurve(
            site=str(site),
            size=curve.sizes,
            faithfulness=tuple(float(x) for x in faithfulness[0]),
            completeness=tuple(float(x) for x in completeness[0]),
            faithfulness_ci=tuple(percentile_interval(column) for column in faithfulness[1:].T),
            completeness_ci=tuple(percentile_interval(column) for column in completeness[1:].T),
            chosen_size=math.ceil(self.file.sizes[site][category]),
        )

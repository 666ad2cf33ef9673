"""The circuits stage: one circuit per category, written to `circuits/MODEL_CATEGORY_circuit.json`.

The steps are those of `circuits.discovery`; this module runs them for one model and fills the artefacts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.attribution import EdgeTarget, NodeAttributions, PathGradients, latent_gradients
from circuits.attribution_file import AttributionFile
from circuits.discovery import (
    CircuitDiscoverer,
    Curves,
    attribute,
    choose_size,
    discoverer,
    measure_curves,
    path_gradients,
    size_grid,
    top_latents,
)
from circuits.evidence import Evidence, SiteCode
from refusal.artefacts import ResultPaths
from refusal.config import Config
from refusal.schemas import CircuitEdge, CircuitFile, CircuitNode, Interval, NodeRef, SizeCurve
from refusal.sites import Site

log = logging.getLogger(__name__)

STABILITY_DRAWS = 200
"""Bootstrap draws for the interval and the stability of nodes."""
TOP_PROMPTS = 5


def discover_circuits(config: Config, model_name: str, paths: ResultPaths) -> None:
    """Find the circuit of every category and write the artefacts of the circuits stage.

    A model without refusals or openers is no error: each category gets an empty circuit whose notice says why.

    Raises:
        ArtefactError: An artefact of an earlier stage is missing or damaged.
    """
    evidence = Evidence(config, model_name, paths)
    if evidence.missing is not None:
        log.warning("%s: no circuits: %s", model_name, evidence.missing)
        for category in evidence.categories:
            _empty(evidence, model_name, category, config.circuit.method, evidence.missing).save(
                paths.circuit(model_name, category)
            )
        return
    gradients = path_gradients(evidence, evidence.sites, config.circuit.ig_steps)
    ids = tuple(evidence.contrasts.prompt_ids[row] for row in evidence.refused_rows())
    file = AttributionFile(ids, gradients)
    for seed in evidence.seeds:
        for site in evidence.sites:
            file.nodes[site, seed] = attribute(evidence, evidence.code(site, seed), gradients)
    study = _CircuitStudy(config, evidence, file)
    curves = study.curves()
    for index, site in enumerate(evidence.sites):
        file.sizes[site] = _size([of_category[index] for of_category in curves], evidence)
    for index, category in enumerate(evidence.contrasts.categories):
        circuit = study.circuit(model_name, index, curves[index])
        circuit.save(paths.circuit(model_name, category))
    for category, count in evidence.contrasts.counts.items():
        if count.reason_left_out is not None:
            empty = _empty(evidence, model_name, category, config.circuit.method, count.reason_left_out)
            empty.save(paths.circuit(model_name, category))
    file.save(paths.attributions(model_name))


def _size(curves: list[Curves], evidence: Evidence) -> int:
    """Return the size for one site: each fold's circuits judged on the prompts that chose them, mean over categories.

    The dose is tuned on the discovery fold so that the effects measured later, on the other fold, did not choose it.
    """
    shares = []
    for index, curve in enumerate(curves):
        fold = evidence.contrasts.fold[evidence.contrasts.rows(index, refused=True)]
        for half in (0, 1):
            change = float(curve.change[fold == half].mean())
            if change > 0:
                shares.append(curve.removed[half][:, fold == half].mean(1) / change)
    if not shares:
        return curves[0].sizes[0]
    return choose_size(curves[0].sizes, [float(share) for share in np.mean(shares, axis=0)])


class _CircuitStudy:
    """Fills the circuit file of each category from attributions, curves and edges of the first SAE seed."""

    def __init__(self, config: Config, evidence: Evidence, file: AttributionFile) -> None:
        self.config = config
        self.evidence = evidence
        self.file = file
        self.seed = evidence.seeds[0]
        self.codes = [evidence.code(site, self.seed) for site in evidence.sites]
        self.method: CircuitDiscoverer = discoverer(config.circuit.method, evidence)
        self.scores = [self.method.scores(code, self.nodes(code.site)) for code in self.codes]

    def nodes(self, site: Site) -> NodeAttributions:
        return self.file.nodes[site, self.seed]

    @property
    def gradients(self) -> PathGradients:
        return self.file.gradients

    def curves(self) -> list[list[Curves]]:
        """Return the size curves as `[category][site]`."""
        sizes = size_grid(self.config.circuit.max_nodes, len(self.codes))
        by_fold = [[self.method.scores(code, self.nodes(code.site), fold) for fold in (0, 1)] for code in self.codes]
        return [
            measure_curves(
                self.evidence,
                index,
                self.codes,
                [[scores[index] for scores in folds] for folds in by_fold],
                self.gradients,
                sizes,
            )
            for index in range(len(self.evidence.contrasts.categories))
        ]

    def circuit(self, model_name: str, category: int, curves: list[Curves]) -> CircuitFile:
        """Return the circuit of one category."""
        contrasts = self.evidence.contrasts
        name = contrasts.categories[category]
        rows = self.category_rows(category)
        chosen = {
            code.site: torch.nonzero(top_latents(scores, self.file.sizes[code.site])[category]).ravel()
            for code, scores in zip(self.codes, self.scores, strict=True)
        }
        edges, remainder = self.edges(category, chosen)
        metric = self.gradients.metric[rows]
        return CircuitFile.build(
            model=model_name,
            category=name,
            method=self.method.method,
            sae_seed=self.seed,
            n_refused=len(rows),
            n_complied=len(contrasts.rows(category, refused=False)),
            metric_refused=float(metric.mean()),
            metric_complied=None,
            completeness_residual={str(code.site): self.residual(code, rows) for code in self.codes},
            nodes=tuple(node for code in self.codes for node in self.site_nodes(code, category, chosen[code.site])),
            edges=tuple(edges),
            edge_remainder=remainder,
            curves=tuple(
                _size_curve(curve, code.site, self.file.sizes[code.site], self.evidence, category)
                for curve, code in zip(curves, self.codes, strict=True)
            ),
            notices=(),
        )

    def category_rows(self, category: int) -> list[int]:
        """Return the rows of the attribution tensors that belong to a category."""
        refused = np.array(self.evidence.refused_rows())
        return [int(row) for row in np.flatnonzero(self.evidence.contrasts.category[refused] == category)]

    def residual(self, code: SiteCode, rows: list[int]) -> float | None:
        """Return the mean completeness residual |sum of attributions - (m - m_cf)| / |m - m_cf| of a site."""
        nodes = self.nodes(code.site)
        change = (self.gradients.metric - self.gradients.metric_cf[code.site])[rows]
        total = (nodes.latents.sum(1) + nodes.error)[rows]
        return float(((total - change).abs().sum() / change.abs().sum().clamp_min(1e-12)))

    def site_nodes(self, code: SiteCode, category: int, latents: Tensor) -> list[CircuitNode]:
        """Return the circuit's nodes at a site, the error node last."""
        rows = self.category_rows(category)
        values = self.nodes(code.site).latents[rows].double().numpy()
        generator = np.random.default_rng([self.config.seed, category])
        weights = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), STABILITY_DRAWS) / len(rows)
        draws = weights @ values
        size = self.file.sizes[code.site]
        picked = np.argsort(-draws, axis=1)[:, :size]
        contrasts = self.evidence.contrasts
        sides = [contrasts.rows(category, refused=side) for side in (True, False)]
        frequency = [(code.latents[torch.from_numpy(side)] > 0).float().mean(0) for side in sides]
        nodes = []
        for latent in sorted((int(x) for x in latents), key=lambda x: -float(values[:, x].mean())):
            nodes.append(
                CircuitNode(
                    site=str(code.site),
                    latent=latent,
                    attribution=float(values[:, latent].mean()),
                    interval=_interval(draws[:, latent]),
                    stability=float((picked == latent).any(1).mean()),
                    frequency_refused=float(frequency[0][latent]),
                    frequency_complied=float(frequency[1][latent]),
                    top_prompts=self.top_prompts(code, latent),
                )
            )
        error = self.nodes(code.site).error[rows].double().numpy()
        nodes.append(
            CircuitNode(
                site=str(code.site),
                latent=None,
                attribution=float(error.mean()),
                interval=_interval(weights @ error),
                stability=1.0,
                frequency_refused=1.0,
                frequency_complied=1.0,
                top_prompts=(),
            )
        )
        return nodes

    def top_prompts(self, code: SiteCode, latent: int) -> tuple[str, ...]:
        """Return the ids of the prompts on which a latent is most active."""
        values = code.latents[:, latent]
        best = values.topk(min(TOP_PROMPTS, len(values))).indices
        return tuple(self.evidence.contrasts.prompt_ids[int(row)] for row in best if values[row] > 0)

    def edges(self, category: int, chosen: dict[Site, Tensor]) -> tuple[list[CircuitEdge], dict[str, float | None]]:
        """Return the edges between consecutive sites and, per site, the share of attribution that none explains."""
        edges: list[CircuitEdge] = []
        remainder: dict[str, float | None] = {}
        for source, target in zip(self.codes, self.codes[1:], strict=False):
            found, explained = self.edges_between(category, source, target, chosen)
            edges += found
            remainder[str(target.site)] = explained
        return edges, remainder

    def edges_between(
        self, category: int, source: SiteCode, target: SiteCode, chosen: dict[Site, Tensor]
    ) -> tuple[list[CircuitEdge], float | None]:
        """Return edges from the source's circuit nodes and error node to the target's latents, and the remainder."""
        latents, sources = chosen[target.site], chosen[source.site]
        if not len(latents):
            return [], None
        refused = self.evidence.refused_rows()
        rows = self.category_rows(category)
        prompts = [refused[row] for row in rows]
        # effect of each target latent on the metric, per unit: <mean gradient, W_dec[v]>
        slope = self.gradients.gradient[target.site][rows] @ target.sae.W_dec[latents].T.detach()
        change = source.latents[prompts] - source.counterfactual_latents[category]
        acts_change = source.acts[prompts] - source.counterfactual_acts[category]
        error_change = acts_change - change @ source.sae.W_dec.detach()
        totals = torch.zeros(len(latents), len(sources) + 1)
        reached = torch.zeros(len(latents))
        place = {prompt: index for index, prompt in enumerate(prompts)}
        for batch in self.evidence.runner.batches(prompts):
            here = torch.tensor([place[int(prompt)] for prompt in batch.prompts])
            gradient = latent_gradients(batch, source.site, EdgeTarget(target.site, target.sae, latents))
            scaled = gradient * slope[here].T[:, :, None]
            decoded = torch.einsum("vbd,nd->vbn", scaled, source.sae.W_dec[sources].detach())
            totals[:, :-1] += torch.einsum("vbn,bn->vn", decoded, change[here][:, sources])
            totals[:, -1] += torch.einsum("vbd,bd->v", scaled, error_change[here])
            reached += torch.einsum("vbd,bd->v", scaled, acts_change[here])
        own = self.nodes(target.site).latents[rows][:, latents].sum(0)
        unexplained = float((own - reached).abs().sum() / own.abs().sum().clamp_min(1e-12))
        return _edges(source.site, target.site, sources, latents, totals / len(rows)), unexplained


def _edges(
    source: Site, target: Site, sources: Tensor, targets: Tensor, weights: Float[Tensor, "node node_from"]
) -> list[CircuitEdge]:
    names = [*(int(latent) for latent in sources), None]
    edges = [
        CircuitEdge(
            source=NodeRef(site=str(source), latent=name),
            target=NodeRef(site=str(target), latent=int(latent)),
            weight=float(weights[row, column]),
        )
        for row, latent in enumerate(targets)
        for column, name in enumerate(names)
    ]
    return sorted((edge for edge in edges if edge.weight != 0), key=lambda edge: -abs(edge.weight))


def _interval(draws: Float[np.ndarray, " draw"]) -> Interval:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _size_curve(curve: Curves, site: Site, chosen: int, evidence: Evidence, category: int) -> SizeCurve:
    """Return the curve as published: each prompt judged by the circuit that the other fold chose."""
    rows = evidence.contrasts.rows(category, refused=True)
    fold = evidence.contrasts.fold[rows]
    other = 1 - fold
    index = np.arange(len(rows))
    kept, removed = curve.kept[other, :, index], curve.removed[other, :, index]
    generator = np.random.default_rng([evidence.contrasts.category[rows[0]], len(rows)])
    weights = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), STABILITY_DRAWS)
    weights = np.concatenate([np.ones((1, len(rows))), weights])
    change = weights @ curve.change
    faithfulness = weights @ kept / change[:, None]
    completeness = 1 - weights @ removed / change[:, None]
    return SizeCurve(
        site=str(site),
        size=curve.sizes,
        faithfulness=tuple(float(x) for x in faithfulness[0]),
        completeness=tuple(float(x) for x in completeness[0]),
        faithfulness_ci=tuple(_interval(column) for column in faithfulness[1:].T),
        completeness_ci=tuple(_interval(column) for column in completeness[1:].T),
        chosen_size=chosen,
    )


def _empty(evidence: Evidence, model_name: str, category: str, method: str, reason: str) -> CircuitFile:
    count = evidence.contrasts.counts[category]
    return CircuitFile.build(
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


def ids_of(evidence: Evidence, rows: Sequence[int]) -> list[str]:
    """Return the prompt ids of contrast rows."""
    return [evidence.contrasts.prompt_ids[row] for row in rows]

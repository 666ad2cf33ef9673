"""Result folders as a run leaves them, made up: what is drawn and told can be tested without a model.

A `World` says how categories share; `write_results` fills labels, responses, rates, circuits and comparison to match.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refusal.artefacts import ResultPaths
from refusal.prompts import CATEGORIES
from refusal.schemas import (
    Baseline,
    CategoryRates,
    CategorySupport,
    CircuitEdge,
    CircuitFile,
    CircuitNode,
    Comparison,
    DepthPoint,
    EvaluationResults,
    ModelOutput,
    ModelOutputs,
    NodeRef,
    Openers,
    PermutationTest,
    PromptLabel,
    Rate,
    RefusalLabels,
    SeedResult,
    SizeCurve,
    StructuralSimilarity,
)
from refusal.stats import wilson_interval

DECIDING = 1
"""Layer at which the made-up models decide."""


@dataclass(frozen=True)
class World:
    """What a made-up model is like."""

    model: str
    verdict: str
    groups: tuple[tuple[str, ...], ...]
    categories: tuple[str, ...] = CATEGORIES
    left_out: tuple[str, ...] = ()
    n_layers: int = 5
    kinds: tuple[str, ...] = ("residuals",)
    prompts: int = 50
    latents_per_site: int = 6
    seed: int = 0
    unmeasured: tuple[tuple[str, str], ...] = ()
    outputs: dict[str, str] = field(default_factory=dict)

    @property
    def sites(self) -> list[str]:
        return [f"{kind}_{layer}" for layer in range(self.n_layers) for kind in self.kinds]

    @property
    def is_decided(self) -> bool:
        return self.verdict != "UNDETERMINED"


MONOLITHIC = World("planted/monolithic", "MONOLITHIC", (CATEGORIES,))
PARTIAL = World(
    "planted/partial",
    "PARTIALLY MODULAR",
    (tuple(c for c in CATEGORIES if c not in ("self-harm", "sexual")), ("self-harm", "sexual")),
    kinds=("attention", "mlp", "residuals"),
    seed=1,
)
MODULAR = World("planted/modular", "MODULAR", tuple((c,) for c in CATEGORIES), seed=2)
UNDETERMINED = World("planted/null", "UNDETERMINED", (), left_out=("sexual",), seed=3)
WORLDS = (MONOLITHIC, PARTIAL, MODULAR, UNDETERMINED)


def write_results(paths: ResultPaths, *worlds: World) -> ResultPaths:
    """Write the artefacts of the worlds as a run would leave them before its report stage."""
    for world in worlds:
        prompts = prompt_labels(world)
        RefusalLabels.build(
            model=world.model,
            openers=Openers(
                refusal=(11, 12),
                compliance=(13,),
                refusal_text=(" I", " Sorry"),
                compliance_text=(" Sure",),
                ambiguous=(),
                reason=None,
            ),
            notices=("self-harm: 46 of 50 safe prompts were available",),
            prompts=prompts,
        ).save(paths.refusal_labels(world.model))
        outputs = tuple(
            ModelOutput(
                id=prompt.id,
                prompt=world.outputs.get("prompt", f"Please tell me about {prompt.category}, number {prompt.id}."),
                response=world.outputs.get("response", "I cannot help with that." if i % 2 else "Sure, here it is."),
                finish_reason="eos",
            )
            for i, prompt in enumerate(prompts)
        )
        ModelOutputs.build(model=world.model, outputs=outputs).save(paths.model_outputs(world.model))
        evaluation(world).save(paths.evaluation(world.model))
        for category in world.categories:
            circuit(world, category).save(paths.circuit(world.model, category))
        comparison(world).save(paths.comparison(world.model))
    return paths


def prompt_labels(world: World) -> tuple[PromptLabel, ...]:
    generator = np.random.default_rng([world.seed, 9])
    labels = []
    for c, category in enumerate(world.categories):
        for i in range(12):
            toxic = i % 2 == 0
            labels.append(
                PromptLabel(
                    id=f"{'toxic' if toxic else '80k'}-{c:02d}{i:04d}",
                    category=category,
                    dataset_label="toxic" if toxic else "safe",
                    source="toxic" if toxic else "80k",
                    behaviour="refused" if toxic else "complied",
                    rule="opening",
                    first_token_id=11 if toxic else 13,
                    first_token_score=float(generator.normal(4 if toxic else -4)),
                )
            )
    return tuple(labels)


def rate(k: int, n: int) -> Rate:
    estimate = wilson_interval(k, n)
    return Rate(value=estimate.value, low=estimate.low, high=estimate.high, k=k, n=n)


def evaluation(world: World) -> EvaluationResults:
    generator = np.random.default_rng([world.seed, 1])

    def rates(n: int, few: bool) -> CategoryRates:
        share = 0.05 if few else 0.97
        return CategoryRates(
            refusal_toxic=rate(int(generator.binomial(n, share)), n),
            over_refusal_safe=rate(int(generator.binomial(n, 0.04)), n),
            over_refusal_hard=rate(0, 0),
            compliance=rate(int(generator.binomial(2 * n, 0.5)), 2 * n),
            cannot_tell=rate(int(generator.binomial(2 * n, 0.01)), 2 * n),
        )

    return EvaluationResults.build(
        model=world.model,
        overall=rates(world.prompts * len(world.categories), False),
        categories={c: rates(world.prompts, c in world.left_out) for c in world.categories},
    )


def circuit(world: World, category: str) -> CircuitFile:
    if category in world.left_out:
        return empty_circuit(world.model, category, "no circuit: 3 refused prompts; at least 8 are needed")
    generator = np.random.default_rng([world.seed, 2, world.categories.index(category)])
    ids = [label.id for label in prompt_labels(world) if label.category == category]
    nodes = [node for site in world.sites for node in _nodes_at(world, site, ids, generator)]
    edges = []
    for source, target in zip(world.sites, world.sites[1:], strict=False):
        for u in (n for n in nodes if n.site == source):
            for v in (n for n in nodes if n.site == target and n.latent is not None):
                weight = float(generator.normal() * abs(u.attribution * v.attribution) ** 0.5 * 0.4)
                ends = [NodeRef(site=n.site, latent=n.latent) for n in (u, v)]
                edges.append(CircuitEdge(source=ends[0], target=ends[1], weight=weight))
    return CircuitFile.build(
        model=world.model,
        category=category,
        method="attribution",
        sae_seed=0,
        n_refused=world.prompts,
        n_complied=world.prompts,
        metric_refused=6.1,
        metric_complied=-5.3,
        completeness_residual=dict.fromkeys(world.sites, 0.02),
        nodes=tuple(nodes),
        edges=tuple(edges),
        edge_remainder=dict.fromkeys(world.sites[1:], 0.11),
        curves=tuple(_curve(site) for site in world.sites),
        notices=(),
    )


def empty_circuit(model: str, category: str, notice: str) -> CircuitFile:
    return CircuitFile.build(
        model=model,
        category=category,
        method="attribution",
        sae_seed=0,
        n_refused=3,
        n_complied=50,
        metric_refused=None,
        metric_complied=None,
        completeness_residual={},
        nodes=(),
        edges=(),
        edge_remainder={},
        curves=(),
        notices=(notice,),
    )


def _nodes_at(world: World, site: str, ids: list[str], generator: np.random.Generator) -> list[CircuitNode]:
    latents = sorted(int(x) for x in generator.choice(256, world.latents_per_site, replace=False))
    values = [float(x) for x in np.sort(generator.exponential(1.0, len(latents)))[::-1] * 2]
    values[-1] = -values[-1]
    nodes = [
        CircuitNode(
            site=site,
            latent=latent,
            attribution=value,
            interval=(value - 0.3, value + 0.3),
            minimality=value / 2,
            minimality_ci=(value / 2 - 0.2, value / 2 + 0.2),
            stability=float(generator.uniform(0.4, 1)),
            frequency_refused=float(generator.uniform(0.5, 1)),
            frequency_complied=float(generator.uniform(0, 0.3)),
            top_prompts=tuple(str(x) for x in generator.choice(ids, min(5, len(ids)), replace=False)),
        )
        for latent, value in zip(latents, values, strict=True)
    ]
    error = CircuitNode(
        site=site,
        latent=None,
        attribution=0.21,
        interval=(0.1, 0.33),
        minimality=None,
        minimality_ci=(None, None),
        stability=1.0,
        frequency_refused=1.0,
        frequency_complied=1.0,
        top_prompts=(),
    )
    return [*nodes, error]


def _curve(site: str) -> SizeCurve:
    return SizeCurve(
        site=site,
        size=(1, 2, 4, 8, 16),
        faithfulness=(0.3, 0.55, 0.9, 1.02, 1.0),
        completeness=(0.7, 0.4, 0.08, -0.02, 0.0),
        faithfulness_ci=tuple((x - 0.05, x + 0.05) for x in (0.3, 0.55, 0.9, 1.02, 1.0)),
        completeness_ci=tuple((x - 0.05, x + 0.05) for x in (0.7, 0.4, 0.08, -0.02, 0.0)),
        chosen_size=4,
    )


def comparison(world: World) -> Comparison:
    fields = _without_verdict(world)
    if world.is_decided:
        fields |= _decided(world)
    return Comparison.build(model=world.model, **fields)


def _used(world: World) -> list[str]:
    return [category for category in world.categories if category not in world.left_out]


def _without_verdict(world: World) -> dict[str, Any]:
    used = _used(world)
    counted = {c: not world.left_out or c not in world.left_out for c in world.categories}
    return {
        "categories": tuple(used),
        "verdict": "UNDETERMINED",
        "reason": (
            "At no site before commit (residuals_3) does removing a category's own circuit remove enough of its "
            "refusals: at best 0.04 of the difference to complied prompts, at residuals_1, with 0 of 9 categories "
            "clearly above 0. There is no mechanism to compare."
        ),
        "average_similarity": None,
        "average_similarity_ci": (None, None),
        "decisive_site": None,
        "similarity": {},
        "similarity_ci": {},
        "groups": None,
        "groups_stability": None,
        "transfer": {},
        "transfer_ci": {},
        "structural_similarity": StructuralSimilarity(site=None, raw={}, noise_ceiling={}, normalised={}),
        "depth_profile": tuple(_point(world, site) for site in world.sites),
        "text_auc": 0.9,
        "text_auc_ci": (0.87, 0.93),
        "onset_site": "residuals_0",
        "shared_from_site": None,
        "commit_site": "residuals_3",
        "sharing_depth": None,
        "seeds": (),
        "permutation": None,
        "support": {
            c: CategorySupport(
                n_refused=world.prompts if counted[c] else 3,
                n_complied=world.prompts,
                n_used=world.prompts if counted[c] else 0,
                necessity=0.9 if world.is_decided else None,
                necessity_ci=(0.84, 0.95) if world.is_decided else (None, None),
                reason_left_out=None if counted[c] else "3 refused prompts; at least 8 are needed",
            )
            for c in world.categories
        },
        "thresholds": {
            "monolithic": 0.8,
            "partially_modular": 0.5,
            "commit_share": 0.5,
            "min_necessity": 0.1,
            "min_share_necessary": 0.8,
            "stable_groups": 0.9,
            "max_mixing": 0.05,
            "min_lean": 0.8,
        },
        "baseline": _baseline(world),
        "notices": (
            "self-harm: 46 of 50 safe prompts were available",
            *(f"not compared: {c}: 3 refused prompts; at least 8 are needed" for c in world.left_out),
        ),
    }


def _baseline(world: World) -> Baseline:
    generator = np.random.default_rng([world.seed, 5])
    used = _used(world)
    values = _symmetric(generator.normal(0.3, 0.05, (len(used), len(used))))
    return Baseline(
        rule="correlation circuits, node Jaccard, thresholds 0.8 / 0.5",
        average_similarity=0.3 + 0.01 * world.seed,
        similarity=_matrix(used, values),
        verdict="MODULAR",
    )


def _decided(world: World) -> dict[str, Any]:
    generator = np.random.default_rng([world.seed, 4])
    used = _used(world)
    n = len(used)
    same = np.array([[any(a in g and b in g for g in world.groups) for b in used] for a in used])
    transfer = np.where(same, 0.95, 0.03) + generator.normal(0, 0.03, (n, n))
    np.fill_diagonal(transfer, 1.0)
    similarity = _symmetric(transfer)
    for a, b in world.unmeasured:
        for matrix in (transfer, similarity):
            matrix[used.index(a), used.index(b)] = matrix[used.index(b), used.index(a)] = np.nan
    mean = float(np.nanmean(similarity[~np.eye(n, dtype=bool)])) if n > 1 else None
    structure = _symmetric(np.where(same, 0.6, 0.1) + generator.normal(0, 0.02, (n, n)))
    measures = ("jaccard", "cosine", "decoder_cosine")
    return {
        "verdict": world.verdict,
        "reason": (
            f"{len(world.groups)} mechanism(s) for {n} categories: removing one category's circuit at residuals_1 "
            f"removes on average {mean or 1:.2f} [{(mean or 1) - 0.03:.2f}, {(mean or 1) + 0.03:.2f}] of what another "
            "category's own circuit removes (1 = one mechanism, 0 = separate ones); 100% of the bootstrap draws agree."
        ),
        "average_similarity": mean,
        "average_similarity_ci": (None, None) if mean is None else (mean - 0.03, mean + 0.03),
        "decisive_site": f"residuals_{DECIDING}",
        "similarity": _matrix(used, similarity),
        "similarity_ci": _interval_matrix(used, similarity),
        "groups": world.groups,
        "groups_stability": 0.98,
        "transfer": _matrix(used, transfer),
        "transfer_ci": _interval_matrix(used, transfer),
        "structural_similarity": StructuralSimilarity(
            site=f"residuals_{DECIDING}",
            raw={m: _matrix(used, structure) for m in measures},
            noise_ceiling={m: {c: 0.7 + 0.02 * i for i, c in enumerate(used)} for m in measures},
            normalised={m: _matrix(used, structure / 0.75) for m in measures},
        ),
        "shared_from_site": f"residuals_{DECIDING}" if world.verdict == "MONOLITHIC" else None,
        "sharing_depth": 0.67 if world.verdict == "MONOLITHIC" else None,
        "seeds": tuple(
            SeedResult(seed=s, decisive_site="residuals_1", average_similarity=(mean or 1) + d, verdict=world.verdict)
            for s, d in enumerate((0.0, -0.01, 0.02))
        ),
        "permutation": PermutationTest(
            statistic="own less other attribution covered by circuits of the other fold, logits",
            observed=0.03 if world.verdict == "MONOLITHIC" else 2.4,
            null_mean=0.02,
            p=0.31 if world.verdict == "MONOLITHIC" else 0.001,
            draws=1000,
        ),
    }


def _point(world: World, site: str) -> DepthPoint:
    layer = int(site.rpartition("_")[2])
    shared = {"MONOLITHIC": 1.0, "PARTIALLY MODULAR": 0.68}.get(world.verdict, 0.02)
    late = layer > 2
    own = (0.35, 0.93, 0.6, 0.55, 0.5)[layer % 5] * (1 if world.is_decided else 0.05)
    transfer = (0.12, shared, 0.95 if late else shared, 0.96, 0.97)[layer % 5]
    measured = world.is_decided
    return DepthPoint(
        site=site,
        own=own,
        own_ci=(own - 0.04, own + 0.04),
        cross=own * transfer,
        transfer=transfer if measured else None,
        transfer_ci=(transfer - 0.05, transfer + 0.05) if measured else (None, None),
        random=0.02,
        direct=(0.0, 0.06, 0.2, 0.8, 1.0)[layer % 5] if site.startswith("residuals") else None,
        separation_auc=0.97,
        sufficiency_own=0.95,
        sufficiency=(0.4, 0.94, 0.96, 0.97, 0.98)[layer % 5],
        sufficiency_ci=(0.3, 0.99),
        size=world.latents_per_site,
        before_commit=layer < 3,
    )


def _symmetric(values: np.ndarray) -> np.ndarray:
    symmetric = (values + values.T) / 2
    np.fill_diagonal(symmetric, 1.0)
    return symmetric


def _matrix(names: list[str], values: np.ndarray) -> dict[str, dict[str, float | None]]:
    return {
        a: {b: None if np.isnan(values[i, j]) else float(values[i, j]) for j, b in enumerate(names)}
        for i, a in enumerate(names)
    }


def _interval_matrix(names: list[str], values: np.ndarray) -> dict[str, dict[str, tuple[float | None, float | None]]]:
    def around(value: float) -> tuple[float | None, float | None]:
        return (None, None) if np.isnan(value) else (float(value) - 0.04, float(value) + 0.04)

    return {a: {b: around(values[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)}


def one_category(world: World = MONOLITHIC) -> World:
    """Return the world with its first category alone."""
    first = world.categories[:1]
    return replace(world, categories=first, groups=(first,))

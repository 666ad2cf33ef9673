"""Structural evidence at the decisive site, the permutation null and the original rule: filled from attributions."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from circuits.attribution_file import AttributionFile
from circuits.discovery import dosed_latents
from circuits.evidence import Evidence
from circuits.similarity import (
    BASELINE_RULE,
    compare_structure,
    correlation_circuit,
    cosine,
    original_similarity,
    original_verdict,
    weighted_jaccard,
)
from refusal.config import AnalysisConfig
from refusal.measures import as_matrix, or_none
from refusal.schemas import Baseline, PermutationTest, StructuralSimilarity
from refusal.sites import Site
from refusal.stats import permutation_p

APART, ALIKE = 0.45, 0.8
"""Agreement of two categories' attributions at a site up to which they are apart, and from which on alike."""


def structural_similarity(evidence: Evidence, file: AttributionFile, site: Site | None) -> StructuralSimilarity:
    """Return raw agreement, noise ceiling and their ratio of the categories' attribution vectors at a site.

    `decoder_cosine` compares sum_f attr_f sign(f - f_cf) W_dec[f], so the SAE's choice of latents does not matter.
    The sign counts a latent that falls silent as a step against its direction: without it a latent of refusal that
    wakes and one of compliance that falls silent, the same step, would cancel.
    """
    if site is None:
        return StructuralSimilarity(site=None, raw={}, noise_ceiling={}, normalised={})
    seed = evidence.seeds[0]
    code, attributions = evidence.code(site, seed), file.nodes[site, seed].latents
    refused = evidence.refused_rows()
    change = code.latents[refused] - code.counterfactual_latents[evidence.category[refused]]
    halves = half_means(evidence, attributions.double().numpy())
    decoded = code.dictionary.decode(attributions * change.sign()).double().numpy()
    compared = {
        "jaccard": compare_structure(halves, weighted_jaccard),
        "cosine": compare_structure(halves, cosine),
        "decoder_cosine": compare_structure(half_means(evidence, decoded), cosine),
    }
    names = evidence.contrasts.categories
    return StructuralSimilarity(
        site=str(site),
        raw={name: as_matrix(result.raw, names) for name, result in compared.items()},
        noise_ceiling={
            name: {category: or_none(x) for category, x in zip(names, result.ceiling, strict=True)}
            for name, result in compared.items()
        },
        normalised={name: as_matrix(result.normalised, names) for name, result in compared.items()},
    )


def mixing(evidence: Evidence, file: AttributionFile, site: Site) -> float | None:
    """Return the share of pairs of categories at a site whose attributions are neither alike nor apart.

    Units of a decision alone serve all categories that share it and no others. Units that only read decisions made
    before respond to several of them, each in part: removing one category's takes away something of all.

    Agreement is the noise-corrected cosine in decoder space, as in `structural_similarity`; pairs whose ceiling is too
    low to divide by are left out, None where all are.
    """
    code, attributions = evidence.code(site, evidence.seeds[0]), file.nodes[site, evidence.seeds[0]].latents
    refused = evidence.refused_rows()
    change = code.latents[refused] - code.counterfactual_latents[evidence.category[refused]]
    decoded = code.dictionary.decode(attributions * change.sign()).double().numpy()
    agreement = compare_structure(half_means(evidence, decoded), cosine).normalised
    pairs = agreement[np.triu_indices(len(agreement), 1)]
    pairs = pairs[np.isfinite(pairs)]
    return float(((pairs > APART) & (pairs < ALIKE)).mean()) if len(pairs) else None


def half_means(evidence: Evidence, latents: Float[np.ndarray, "prompt d_sae"]) -> Float[np.ndarray, "2 category d_sae"]:
    """Return each category's mean attribution vector on each fold."""
    contrasts = evidence.contrasts
    category, fold = contrasts.category[contrasts.refused], contrasts.fold[contrasts.refused]
    n = len(contrasts.categories)
    return np.stack(
        [np.stack([latents[(category == c) & (fold == half)].mean(0) for c in range(n)]) for half in (0, 1)]
    )


def permutation_test(evidence: Evidence, file: AttributionFile, site: Site, n_draws: int) -> PermutationTest:
    """Return whether circuits fit their own category better than another's, against shuffled categories.

    Statistic: mean over categories of (own - mean other) attribution that the circuits of one fold cover on the other,
    in logits; the attribution is the first-order estimate of the effect. Null: categories shuffled within each fold.
    """
    contrasts = evidence.contrasts
    latents = file.nodes[site, evidence.seeds[0]].latents.double().numpy()
    category, fold = contrasts.category[contrasts.refused], contrasts.fold[contrasts.refused]
    sizes = np.array(file.sizes[site])
    observed = own_excess(latents, category, fold, sizes)
    generator = np.random.default_rng([evidence.seeds[0], 3])
    null = np.empty(n_draws)
    for draw in range(n_draws):
        shuffled = category.copy()
        for half in (0, 1):
            rows = np.flatnonzero(fold == half)
            shuffled[rows] = generator.permutation(category[rows])
        null[draw] = own_excess(latents, shuffled, fold, sizes)
    return PermutationTest(
        statistic="own less other attribution covered by circuits of the other fold, logits",
        observed=observed,
        null_mean=float(null.mean()) if n_draws else None,
        p=permutation_p(observed, null) if n_draws else None,
        draws=n_draws,
    )


def own_excess(
    latents: Float[np.ndarray, "prompt d_sae"],
    category: np.ndarray,
    fold: np.ndarray,
    sizes: Float[np.ndarray, " category"],
) -> float:
    """Return mean over categories of the attribution that own circuits cover less that which others' cover, logits."""
    n = len(sizes)
    member = (category[None, :] == np.arange(n)[:, None]).astype(float)
    excess = []
    for half in (0, 1):
        found, judged = member * (fold == half), member * (fold != half)
        scores = (found / found.sum(1, keepdims=True)) @ latents
        means = (judged / judged.sum(1, keepdims=True)) @ latents
        covered = dosed_latents(torch.from_numpy(scores), sizes.tolist()).numpy() @ means.T
        own = covered.diagonal()
        excess.append(np.mean(own - (covered.sum(0) - own) / max(n - 1, 1)))
    return float(np.mean(excess))


def baseline(evidence: Evidence, analysis: AnalysisConfig) -> Baseline:
    """Return the original rule's similarity and verdict, on the same prompts and SAEs."""
    contrasts = evidence.contrasts
    names = contrasts.categories
    if evidence.missing is not None or len(names) < 2:
        return Baseline(rule=BASELINE_RULE, average_similarity=None, similarity={}, verdict=None)
    latents = [evidence.code(site, evidence.seeds[0]).latents.double().numpy() for site in evidence.sites]
    circuits = []
    for index in range(len(names)):
        rows = np.flatnonzero(contrasts.category == index)
        behaviour = contrasts.is_refused[rows].astype(float)
        circuits.append(correlation_circuit([site[rows] for site in latents], behaviour))
    similarity = np.array([[original_similarity(a, b) for b in circuits] for a in circuits])
    average = float(similarity[~np.eye(len(names), dtype=bool)].mean())
    kind = original_verdict(average, analysis.monolithic_threshold, analysis.partially_modular_threshold)
    return Baseline(
        rule=BASELINE_RULE, average_similarity=average, similarity=as_matrix(similarity, names), verdict=kind
    )

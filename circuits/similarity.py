"""How alike circuits are: structural measures with their noise ceilings, and the original rule as a baseline.

Structure (which nodes, how much) is evidence, not proof: it is printed as raw value, noise ceiling and ratio together.
The verdict rests on causal transfer (`circuits.verdict`). Pure functions of arrays.

Source of the noise ceiling: the attenuation correction of Spearman (1904), with equal-sized halves of the prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

MIN_CEILING = 0.2
"""Below this split-half agreement a ratio to the ceiling says nothing and is not given."""

Measure = Callable[[Float[np.ndarray, " node"], Float[np.ndarray, " node"]], float]


def weighted_jaccard(a: Float[np.ndarray, " node"], b: Float[np.ndarray, " node"]) -> float:
    """Return sum min(|a|, |b|) / sum max(|a|, |b|) over nodes of equal sign, in [0, 1]; nan when both are all zero.

    Nodes whose attributions differ in sign share nothing. It rises with every node added to both sides equally.

    >>> weighted_jaccard(np.array([2.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0]))
    0.5
    """
    shared = np.where(np.sign(a) == np.sign(b), np.minimum(np.abs(a), np.abs(b)), 0.0).sum()
    union = np.where(np.sign(a) == np.sign(b), np.maximum(np.abs(a), np.abs(b)), np.abs(a) + np.abs(b)).sum()
    return float(shared / union) if union > 0 else float("nan")


def cosine(a: Float[np.ndarray, " node"], b: Float[np.ndarray, " node"]) -> float:
    """Return the cosine of two vectors, in [-1, 1]; nan when one of them is zero.

    >>> cosine(np.array([3.0, 4.0]), np.array([4.0, 3.0]))
    0.96
    """
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else float("nan")


def jaccard(a: Bool[np.ndarray, " node"], b: Bool[np.ndarray, " node"]) -> float:
    """Return the share of common members of two sets; nan when both are empty.

    >>> jaccard(np.array([True, True, False]), np.array([True, False, False]))
    0.5
    """
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else float("nan")


@dataclass(frozen=True)
class StructuralComparison:
    """Agreement of categories by one measure."""

    raw: Float[np.ndarray, "category category"]
    """Mean over the two pairings of opposite halves: both sides carry the noise of half the prompts."""
    ceiling: Float[np.ndarray, " category"]
    """The same category's two halves: what sampling noise alone leaves of 1."""
    normalised: Float[np.ndarray, "category category"]
    """raw_ij / sqrt(ceiling_i ceiling_j); nan where a ceiling is below `MIN_CEILING`; diagonal 1."""


def compare_structure(
    halves: Float[np.ndarray, "2 category node"], measure: Measure = weighted_jaccard
) -> StructuralComparison:
    """Return the agreement of categories' attribution vectors, each estimated on two halves of its prompts.

    S_ij = (<a_i^1, a_j^2> + <a_i^2, a_j^1>) / 2 / sqrt(<a_i^1, a_i^2> <a_j^1, a_j^2>)
    """
    n = halves.shape[1]
    raw = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            raw[i, j] = (measure(halves[0, i], halves[1, j]) + measure(halves[1, i], halves[0, j])) / 2
    ceiling = raw.diagonal().copy()
    usable = np.where(ceiling >= MIN_CEILING, ceiling, np.nan)
    normalised = raw / np.sqrt(np.outer(usable, usable))
    return StructuralComparison(raw, ceiling, normalised)


# The original rule ---------------------------------------------------------------------------------------------------

BASELINE_RULE = (
    "correlation circuits; 0.4 node Jaccard + 0.3 edge Jaccard + 0.3 correlation of importances; thresholds 0.8 / 0.5"
)
_TOP = 100


@dataclass(frozen=True)
class CorrelationCircuit:
    """A circuit as the original rule finds it, over all sites."""

    importance: Float[np.ndarray, " node"]
    """|Pearson correlation with the behaviour|; 0 outside the circuit."""
    nodes: Bool[np.ndarray, " node"]
    edges: frozenset[tuple[int, int]]
    """The 100 strongest, as pairs of node indices."""


def correlation_circuit(latents: list[Float[np.ndarray, "prompt _"]], behaviour: np.ndarray) -> CorrelationCircuit:
    """Return one category's circuit by the original rule.

    Per site: importance I_f = |Pearson(z_f, y)|, nodes with I_f > 0.1 max I; edges between consecutive sites where
    |Pearson(z_i, z_j)| I_i I_j > 0.01. The 100 most important nodes and edges over all sites are kept.

    Args:
        latents: Per site in order of depth, the category's latents.
        behaviour: 1 where the model refused, 0 where it complied; `[prompt]`.
    """
    standard = [_standardise(site) for site in latents]
    target = _standardise(behaviour[:, None].astype(float))
    importances = [np.abs(site.T @ target).ravel() for site in standard]
    members = [site > 0.1 * site.max(initial=0.0) for site in importances]
    importance = np.where(np.concatenate(members), np.concatenate(importances), 0.0)
    nodes = np.zeros(len(importance), bool)
    nodes[np.argsort(-importance, kind="stable")[:_TOP]] = True
    nodes &= importance > 0
    offsets = np.cumsum([0, *(len(site) for site in importances)])
    weighted: list[tuple[float, int, int]] = []
    for layer in range(len(latents) - 1):
        here, there = np.flatnonzero(members[layer]), np.flatnonzero(members[layer + 1])
        weight = np.abs(standard[layer][:, here].T @ standard[layer + 1][:, there])
        weight *= np.outer(importances[layer][here], importances[layer + 1][there])
        for i, j in np.argwhere(weight > 0.01):
            weighted.append((-weight[i, j], int(offsets[layer] + here[i]), int(offsets[layer + 1] + there[j])))
    edges = frozenset((i, j) for _, i, j in sorted(weighted)[:_TOP])
    return CorrelationCircuit(importance, nodes, edges)


def _standardise(columns: Float[np.ndarray, "prompt node"]) -> Float[np.ndarray, "prompt node"]:
    """Return columns of mean 0 and norm 1, so that products are correlations; constant columns become 0."""
    centred = columns - columns.mean(0)
    norm = np.linalg.norm(centred, axis=0)
    return np.asarray(np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 1e-12 * max(len(columns), 1)))


def original_similarity(a: CorrelationCircuit, b: CorrelationCircuit) -> float:
    """Return 0.4 J(nodes) + 0.3 J(edges) + 0.3 |Pearson(importances on common nodes)|; undefined parts count 0."""
    nodes = jaccard(a.nodes, b.nodes)
    union = a.edges | b.edges
    edges = len(a.edges & b.edges) / len(union) if union else 0.0
    common = a.nodes & b.nodes
    correlation = 0.0
    if common.sum() >= 2:
        x, y = _standardise(a.importance[common][:, None]), _standardise(b.importance[common][:, None])
        correlation = abs(float((x.T @ y)[0, 0]))
    return 0.4 * (0.0 if np.isnan(nodes) else nodes) + 0.3 * edges + 0.3 * correlation


def original_verdict(average: float, monolithic: float, partially_modular: float) -> str:
    """Return the verdict of the original rule: thresholds on the mean similarity, nothing else."""
    if average >= monolithic:
        return "MONOLITHIC"
    return "PARTIALLY MODULAR" if average >= partially_modular else "MODULAR"

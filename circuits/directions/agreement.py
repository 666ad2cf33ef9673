"""Whether refusal directions and the circuits' verdict say the same of pairs of categories, and of their groups.

1. Correlation of the off-diagonals of the directions' matrix (transfer, or disattenuated cosines) with those of the
   circuits' transfer, with a jackknife over categories: the pairs of a matrix are not independent, its categories are.
2. Mantel test: the categories of one matrix are permuted.
3. Mean absolute difference, which also speaks where one matrix is all alike and a correlation means nothing.
4. Adjusted Rand index of the two groupings.

Sources: Mantel 1967, Cancer Res. 27, 209; jackknife over the units of a matrix, Snijders and Borgatti 1999,
Connections 22, 161.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from pydantic import Field

from circuits.directions.verdict import Answer, DirectionStatement
from refusal.directions.geometry_records import LayerGeometry, LayerTransfer
from refusal.measures import from_matrix
from refusal.record import Record
from refusal.schemas import Comparison, Matrix, Measure
from refusal.stats import adjusted_rand_index, permutation_p, spearman

MIN_SPREAD = 0.05
"""Standard deviation of the off-diagonal below which a matrix is all alike and a correlation with it means nothing."""


class MatrixAgreement(Record):
    """How far a matrix of directions and the circuits' transfer matrix say the same of pairs of categories."""

    n_pairs: int = Field(description="Ordered pairs of different categories measured in both.")
    mean_directions: float | None
    mean_circuits: float | None
    mean_difference: float | None = Field(description="Mean absolute difference of the entries.")
    correlation: Measure = Field(description="Pearson correlation of the off-diagonals, jackknife over categories.")
    rank_correlation: float | None = Field(description="Spearman's.")
    p: float | None = Field(description="One-sided Mantel p: categories of one matrix are permuted.")


class DirectionAgreement(Record):
    """Whether directions and circuits agree."""

    verdict: str = Field(description="Of the circuits; directions never change it.")
    answer: Answer
    agrees: bool | None = Field(description="Whether both say the same; null when one of them says nothing.")
    transfer: MatrixAgreement | None = Field(description="Transfer of directions against that of circuits.")
    cosine: MatrixAgreement | None = Field(description="Disattenuated cosines against the transfer of circuits.")
    groups_ari: float | None = Field(description="Adjusted Rand index of the two groupings: 1 the same.")


_SAME = {
    "MONOLITHIC": (Answer.ONE,),
    "PARTIALLY MODULAR": (Answer.GROUPS,),
    "MODULAR": (Answer.PER_CATEGORY, Answer.GROUPS),
}
"""Answers that a verdict agrees with; many small groups are modular as well."""


def compare_with_circuits(
    statement: DirectionStatement,
    geometry: Sequence[LayerGeometry],
    transfer: Sequence[LayerTransfer],
    comparison: Comparison,
    *,
    permutations: int = 1000,
    seed: int = 0,
) -> DirectionAgreement:
    """Return how far directions, at the statement's layer, and the circuits' verdict agree."""
    at = {each.layer: each for each in geometry}.get(-1 if statement.layer is None else statement.layer)
    moved = {each.layer: each for each in transfer}.get(-1 if statement.layer is None else statement.layer)
    matrices = [None if moved is None else moved.transfer, None if at is None else at.ratio]
    agreements = [
        None if each is None else matrix_agreement(each, comparison.transfer, permutations=permutations, seed=seed)
        for each in matrices
    ]
    expected = _SAME.get(comparison.verdict)
    says_nothing = expected is None or statement.answer is Answer.CANNOT_TELL
    return DirectionAgreement(
        verdict=comparison.verdict,
        answer=statement.answer,
        agrees=None if says_nothing else statement.answer in (expected or ()),
        transfer=agreements[0],
        cosine=agreements[1],
        groups_ari=_rand_index(statement.groups, comparison.groups),
    )


def _rand_index(first: Sequence[Sequence[str]] | None, second: Sequence[Sequence[str]] | None) -> float | None:
    """Return the adjusted Rand index over the categories that both partitions hold."""
    if first is None or second is None:
        return None
    one, other = ({name: index for index, group in enumerate(each) for name in group} for each in (first, second))
    common = sorted(set(one) & set(other))
    return adjusted_rand_index([one[name] for name in common], [other[name] for name in common])


def matrix_agreement(
    directions: Matrix, circuits: Matrix, *, permutations: int = 1000, seed: int = 0
) -> MatrixAgreement:
    """Return the agreement of two matrices over the categories that both have.

    Args:
        directions: Of directions, `matrix[a][b]`; null where not measured.
        circuits: Of circuits.
        permutations: Draws of the Mantel test; 0: no p.
        seed: Decides them.
    """
    names = [name for name in directions if name in circuits]
    first, second = from_matrix(directions, names), from_matrix(circuits, names)
    both = np.isfinite(first) & np.isfinite(second) & ~np.eye(len(names), dtype=bool)
    n_pairs = int(both.sum())
    value, reason = _correlation(first, second)
    means = [float(each[both].mean()) if n_pairs else None for each in (first, second)]
    return MatrixAgreement(
        n_pairs=n_pairs,
        mean_directions=means[0],
        mean_circuits=means[1],
        mean_difference=float(np.abs(first - second)[both].mean()) if n_pairs else None,
        correlation=_with_jackknife(first, second, value, reason),
        rank_correlation=None if value is None else spearman(first[both], second[both]),
        p=_mantel_p(first, second, value, permutations, seed),
    )


def _correlation(
    first: Float[np.ndarray, "category category"], second: Float[np.ndarray, "category category"]
) -> tuple[float | None, str | None]:
    """Return Pearson's correlation of the off-diagonals, or None and why."""
    both = np.isfinite(first) & np.isfinite(second) & ~np.eye(len(first), dtype=bool)
    if both.sum() < 6:
        return None, "fewer than three categories were measured in both"
    for name, values in (("directions", first[both]), ("circuits", second[both])):
        if values.std() < MIN_SPREAD:
            return None, f"all pairs are alike for {name} (standard deviation {values.std():.3f})"
    return float(np.corrcoef(first[both], second[both])[0, 1]), None


def _with_jackknife(
    first: Float[np.ndarray, "category category"],
    second: Float[np.ndarray, "category category"],
    value: float | None,
    reason: str | None,
) -> Measure:
    n, method = len(first), "jackknife over categories, Fisher's z"
    if value is None:
        return Measure(value=None, low=None, high=None, n=n, method=method, reason=reason)
    kept = [np.delete(np.arange(n), left_out) for left_out in range(n)]
    without = [_correlation(first[np.ix_(rows, rows)], second[np.ix_(rows, rows)])[0] for rows in kept]
    left = np.array([np.nan if each is None else each for each in without])
    if not np.isfinite(left).all():
        reason = "undefined when a category is left out"
        return Measure(value=value, low=None, high=None, n=n, method=method, reason=reason)
    z = np.arctanh(np.clip(left, -1 + 1e-9, 1 - 1e-9))
    error = float(np.sqrt((n - 1) * z.var()))
    centre = float(np.arctanh(np.clip(value, -1 + 1e-9, 1 - 1e-9)))
    low, high = np.tanh([centre - 1.96 * error, centre + 1.96 * error])
    return Measure(value=value, low=float(low), high=float(high), n=n, method=method, reason=None)


def _mantel_p(
    first: Float[np.ndarray, "category category"],
    second: Float[np.ndarray, "category category"],
    value: float | None,
    permutations: int,
    seed: int,
) -> float | None:
    """Return the share of permutations of one matrix's categories that correlate at least as well."""
    if value is None or not permutations:
        return None
    generator = np.random.default_rng([seed, 12])
    null = []
    for _ in range(permutations):
        order = generator.permutation(len(first))
        found = _correlation(first[np.ix_(order, order)], second)[0]
        null.append(-1.0 if found is None else found)
    return permutation_p(value, np.array(null))

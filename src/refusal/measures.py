"""Published numbers as records: shares with Wilson intervals, F1, Cohen's kappa; matrices of categories.

Each has its 95 % interval and n; what could not be measured is null.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from refusal.schemas import IntervalMatrix, Matrix, Measure, Rate
from refusal.stats import Estimate, cohen_kappa, percentile_interval, wilson_interval

LEVEL = 0.95
"""Coverage of every interval."""
_Z = 1.959963984540054
"""Normal quantile that belongs to `LEVEL`."""
LOW_CEILING = "the noise ceiling is below 0.2 or may be 0: the prompts are too few, or too alike, to tell a direction"
"""Why a disattenuated number is null."""


def rate(hits: Iterable[bool]) -> Rate:
    """Return the share of true values with its Wilson interval."""
    flags = list(hits)
    return share(sum(flags), len(flags))


def share(k: int, n: int, n_units: int | None = None) -> Rate:
    """Return k / n with its Wilson interval; `n_units` as in `wilson_interval`."""
    estimate = wilson_interval(k, n, LEVEL, n_units=n_units)
    return Rate(value=estimate.value, low=estimate.low, high=estimate.high, k=k, n=n)


def f1_estimate(n_true_positive: int, n_false_positive: int, n_false_negative: int) -> Estimate:
    """Return F1 with an interval.

    F1 = 2 J / (1 + J) with J = tp / (tp + fp + fn), and J is a share, so Wilson's interval for J maps to one for F1.

    >>> f1_estimate(3, 1, 1).value
    0.75
    """
    n = n_true_positive + n_false_positive + n_false_negative
    jaccard = wilson_interval(n_true_positive, n, LEVEL)

    def to_f1(j: float | None) -> float | None:
        """Return the F1 that belongs to a J; nothing where J has no interval."""
        return None if j is None else 2 * j / (1 + j)

    reason = "no toxic and no refused prompts" if n == 0 else jaccard.reason
    value = 2 * n_true_positive / (n + n_true_positive) if n else None
    low, high = to_f1(jaccard.low), to_f1(jaccard.high)
    return Estimate(value, low, high, n, LEVEL, "wilson on tp/(tp+fp+fn)", reason)


def kappa_estimate(first: Sequence[Hashable], second: Sequence[Hashable]) -> Estimate:
    """Return Cohen's kappa of two raters with its large-sample interval, cut at -1 and 1.

    With p_ij the share of items that the first calls i and the second j, and p_e the agreement by chance, n (1 - p_e)^2
    var = sum_i p_ii (1 - (p_i. + p_.i)(1 - k))^2 + (1 - k)^2 sum_{i != j} p_ij (p_.i + p_j.)^2 - (k - p_e (1 - k))^2.
    Where they agree on everything, or one always says the same, the variance is 0 and says nothing: no interval.

    Source: Fleiss, Cohen and Everitt 1969, Psychol. Bull. 72, 323, eq. 13.

    >>> estimate = kappa_estimate(["a"] * 50 + ["b"] * 50, ["a"] * 45 + ["b"] * 50 + ["a"] * 5)
    >>> round(estimate.value, 2), round(estimate.low, 2), round(estimate.high, 2)
    (0.8, 0.68, 0.92)
    """
    n, method = len(first), "Fleiss, Cohen and Everitt 1969"
    kappa = cohen_kappa(first, second)
    if kappa is None:
        reason = "fewer than two items" if n < 2 else "both always say the same one thing"
        return Estimate(None, None, None, n, LEVEL, method, reason)
    if kappa == 1 or len({*first}) == 1 or len({*second}) == 1:
        reason = "they agree on every item" if kappa == 1 else "one of them always says the same"
        return Estimate(kappa, None, None, n, LEVEL, method, reason)
    pairs = list(zip(first, second, strict=True))
    names = sorted({*first, *second}, key=repr)
    row = {name: sum(a == name for a in first) / n for name in names}
    column = {name: sum(b == name for b in second) / n for name in names}
    cell = {pair: pairs.count(pair) / n for pair in set(pairs)}
    chance = sum(row[name] * column[name] for name in names)
    same = sum(cell.get((i, i), 0.0) * (1 - (row[i] + column[i]) * (1 - kappa)) ** 2 for i in names)
    other = sum(p * (column[i] + row[j]) ** 2 for (i, j), p in cell.items() if i != j)
    variance = same + (1 - kappa) ** 2 * other - (kappa - chance * (1 - kappa)) ** 2
    half = _Z * math.sqrt(max(variance, 0.0) / n) / (1 - chance)
    return Estimate(kappa, max(-1.0, kappa - half), min(1.0, kappa + half), n, LEVEL, method)


def as_matrix(values: Float[np.ndarray, "category category"], names: Sequence[str]) -> Matrix:
    """Return a square array as `matrix[a][b]`, nan as null.

    >>> as_matrix(np.array([[1.0, np.nan], [0.5, 1.0]]), ("a", "b"))
    {'a': {'a': 1.0, 'b': None}, 'b': {'a': 0.5, 'b': 1.0}}
    """
    return {a: {b: or_none(values[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)}


def from_matrix(values: Matrix, names: Sequence[str]) -> Float[np.ndarray, "category category"]:
    """Return `matrix[a][b]` as an array in the order of `names`; null, and pairs that are not there, as nan."""
    found = [[values.get(a, {}).get(b) for b in names] for a in names]
    numbers = [[np.nan if value is None else value for value in row] for row in found]
    return np.array(numbers, dtype=np.float64).reshape(len(names), len(names))


def interval_matrix(
    values: Float[np.ndarray, "category category"],
    draws: Float[np.ndarray, "draw category category"],
    names: Sequence[str],
    level: float = 0.95,
) -> IntervalMatrix:
    """Return the percentile intervals of each entry over draws; (null, null) where it could not be computed."""
    found: IntervalMatrix = {}
    for i, a in enumerate(names):
        estimates = [percentile_interval(float(values[i, j]), draws[:, i, j], 2, level) for j in range(len(names))]
        found[a] = {b: (each.low, each.high) for b, each in zip(names, estimates, strict=True)}
    return found


def measure(value: float, draws: Float[np.ndarray, " draw"], n: int, missing: str = LOW_CEILING) -> Measure:
    """Return a number with its percentile interval; where it is not finite, null with the reason `missing`."""
    found = Measure.of(percentile_interval(float(value), draws, n))
    return found if np.isfinite(value) else found.model_copy(update={"reason": missing})


def or_none(value: float) -> float | None:
    """Return a number, or None for one that is not finite."""
    return float(value) if np.isfinite(value) else None

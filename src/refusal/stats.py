"""Intervals, tests and agreement measures, from arrays with one value per prompt.

The prompt is the unit of sampling: `bootstrap_weights` draws prompts (or clusters of them) within strata once, and
`bootstrap` applies any statistic that is written as a function of weights, so that all draws are one matrix product.
Everything is float64; every random draw takes a `numpy.random.Generator`. What cannot be computed is None with the
reason beside it, never 0. This module does not know prompts, models or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.random import Generator
from scipy.optimize import brentq
from scipy.stats import rankdata

Weights = Float[np.ndarray, "draw prompt"]
"""How often each prompt stands in each draw; a row sums to the number of prompts."""

_MAX_UNDEFINED = 0.05
"""A bootstrap with a larger share of draws in which the statistic is undefined gives no interval."""


@dataclass(frozen=True)
class Estimate:
    """A published number with its interval.

    `value`, `low` and `high` share a unit, which is the caller's. None means: could not be computed, see `reason`.
    """

    value: float | None
    """The point estimate."""
    low: float | None
    """Lower end of the interval."""
    high: float | None
    """Upper end of the interval."""
    n: int
    """Number of units (prompts, pairs of classes: as `method` says) that it rests on."""
    level: float = 0.95
    """Coverage that the interval aims at, in (0, 1)."""
    method: str = ""
    """How the interval was made."""
    reason: str | None = None
    """Why value or interval is None; else None."""


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it lies between 0 and 1")
    return NormalDist().inv_cdf((1 + level) / 2)


# Shares --------------------------------------------------------------------------------------------------------------


def wilson_interval(k: int, n: int, level: float = 0.95, *, n_units: int | None = None) -> Estimate:
    """Return the share k / n with its Wilson score interval, which keeps to [0, 1] and is sound for k = 0 and k = n.

    Centre (p + z^2/2n) / (1 + z^2/n), half width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n). Source: Wilson 1927,
    J. Am. Stat. Assoc. 22, 209; Brown, Cai, DasGupta 2001, Stat. Sci. 16, 101.

    Args:
        k: Successes, 0 to n.
        n: Trials. With 0 there is no value, with 1 no interval.
        level: Coverage.
        n_units: Independent units that the trials were made of, each as often; the interval is that of so few trials.
            None: every trial is one.

    >>> estimate = wilson_interval(8, 10)
    >>> round(estimate.low, 4), round(estimate.high, 4)
    (0.4902, 0.9433)
    """
    if not 0 <= k <= n:
        raise ValueError(f"k is {k} and n is {n}; 0 <= k <= n must hold")
    if n == 0:
        return Estimate(None, None, None, 0, level, "wilson", "no observations")
    p, n_trials = k / n, n
    n = n if n_units is None else n_units
    if n < 2:
        return Estimate(p, None, None, n_trials, level, "wilson", "fewer than two observations")
    z = _z(level)
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the formula gives exactly 0 and 1; rounding must not move them.
    low = 0.0 if k == 0 else (centre - half) / scale
    high = 1.0 if k == n_trials else (centre + half) / scale
    return Estimate(p, low, high, n_trials, level, "wilson")


# Bootstrap -----------------------------------------------------------------------------------------------------------


def _codes(labels: Sequence[Hashable] | Shaped[np.ndarray, " prompt"]) -> Int[np.ndarray, " prompt"]:
    """Return labels as whole numbers from 0 in order of first appearance."""
    order: dict[Hashable, int] = {}
    values = labels.tolist() if isinstance(labels, np.ndarray) else labels
    return np.array([order.setdefault(label, len(order)) for label in values], dtype=np.int64)


def bootstrap_weights(
    n: int,
    n_draws: int,
    generator: Generator,
    *,
    strata: Sequence[Hashable] | Shaped[np.ndarray, " prompt"] | None = None,
    clusters: Sequence[Hashable] | Shaped[np.ndarray, " prompt"] | None = None,
) -> Weights:
    """Return how often each prompt stands in each bootstrap draw.

    Args:
        n: Number of prompts.
        n_draws: Number of draws.
        generator: Source of randomness.
        strata: A label per prompt (e.g. its category); each stratum keeps its number of clusters in every draw.
        clusters: A label per prompt; the prompts of a cluster are drawn together. None: each prompt is its own.
    """
    cluster = np.arange(n) if clusters is None else _codes(clusters)
    stratum = np.zeros(n, dtype=np.int64) if strata is None else _codes(strata)
    if len(cluster) != n or len(stratum) != n:
        raise ValueError(f"strata and clusters need one label for each of the {n} prompts")
    weights = np.zeros((n_draws, n))
    for code in range(stratum.max(initial=-1) + 1):
        members = np.flatnonzero(stratum == code)
        _, position = np.unique(cluster[members], return_inverse=True)
        n_clusters = int(position.max()) + 1
        counts = generator.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=n_draws)
        weights[:, members] = counts[:, position]
    return weights


def percentile_interval(
    value: float | None, draws: Float[np.ndarray, " draw"], n: int, level: float = 0.95, method: str = "bootstrap"
) -> Estimate:
    """Return `value` with the percentile interval of its bootstrap draws.

    Draws that are NaN (the statistic is undefined there) are left out, up to one in twenty; with more there is no
    interval. Source: Efron and Tibshirani 1993, chapter 13.
    """
    defined = draws[np.isfinite(draws)]
    if value is None or not math.isfinite(value):
        return Estimate(None, None, None, n, level, method, "undefined on the data")
    if n < 2:
        return Estimate(value, None, None, n, level, method, "fewer than two values")
    if len(defined) < 2 or len(defined) < (1 - _MAX_UNDEFINED) * len(draws):
        reason = f"undefined in {len(draws) - len(defined)} of {len(draws)} bootstrap draws"
        return Estimate(value, None, None, n, level, method, reason)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n, level, method)


def bootstrap(
    statistic: Callable[[Weights], Float[np.ndarray, " draw"]], weights: Weights, level: float = 0.95
) -> Estimate:
    """Return a statistic of the prompts with its percentile bootstrap interval.

    Args:
        statistic: Maps weights [draw, prompt] to one value per draw, NaN where undefined; e.g. a ratio of means is
            `lambda w: (w @ a) / (w @ b)`. The point estimate is its value for weights of one.
        weights: From `bootstrap_weights`; pass the same to statistics that are to be compared.
        level: Coverage.
    """
    n = weights.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = statistic(np.ones((1, n)))
        draws = statistic(weights)
    return percentile_interval(float(value[0]), np.asarray(draws, dtype=np.float64), n, level)


def bootstrap_mean(
    values: Float[np.ndarray, " prompt"],
    generator: Generator,
    *,
    strata: Sequence[Hashable] | Shaped[np.ndarray, " prompt"] | None = None,
    n_draws: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Return the mean with its percentile bootstrap interval; strata as in `bootstrap_weights`."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return Estimate(None, None, None, 0, level, "bootstrap", "no values")
    weights = bootstrap_weights(len(values), n_draws, generator, strata=strata)
    return bootstrap(lambda w: (w @ values) / w.sum(axis=1), weights, level)


# Tests ---------------------------------------------------------------------------------------------------------------


def permutation_p(
    observed: float,
    null: Float[np.ndarray, " draw"],
    alternative: Literal["greater", "less", "two-sided"] = "greater",
) -> float:
    """Return p = (1 + hits) / (1 + R): the share of values at least as extreme as the observed one, itself included.

    A tie is a hit. Under the null p is uniform on 1/(1+R), ..., 1; it is never 0. Two-sided: twice the smaller of the
    one-sided values, at most 1. Source: Phipson and Smyth 2010, arXiv 1603.05766.

    >>> permutation_p(2.5, np.array([1.0, 2.0, 3.0]))
    0.5
    """
    null = np.asarray(null, dtype=np.float64)
    above = (1 + int(np.count_nonzero(null >= observed))) / (1 + len(null))
    below = (1 + int(np.count_nonzero(null <= observed))) / (1 + len(null))
    return {"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}[alternative]


# Separation ----------------------------------------------------------------------------------------------------------


def auc(scores: Float[np.ndarray, " prompt"], is_positive: Bool[np.ndarray, " prompt"]) -> float | None:
    """Return the probability that a positive prompt scores above a negative one, ties counting half.

    From ranks: (sum of positive ranks - n_pos (n_pos + 1) / 2) / (n_pos n_neg). None when a class is empty; .5 is
    chance. Source: Mann and Whitney 1947.

    >>> auc(np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, False, True, True]))
    0.875
    """
    n_positive = int(is_positive.sum())
    n_negative = len(is_positive) - n_positive
    if not n_positive or not n_negative:
        return None
    ranks = rankdata(np.asarray(scores, dtype=np.float64))
    return float((ranks[is_positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def auc_interval(value: float | None, n_positive: int, n_negative: int, level: float = 0.95) -> Estimate:
    """Return an AUC with its score-type interval, which stays in [0, 1] and has width at an AUC of 1, too.

    The ends solve (value - t)^2 = z^2 V(t) with V(t) = t(1-t) (1 + (N-1)((1-t)/(2-t) + t/(1+t))) / (n_pos n_neg),
    N = (n_pos + n_neg) / 2. Source: Newcombe 2006, Stat. Med. 25, 559, method 5.
    """
    n = n_positive + n_negative
    if value is None:
        return Estimate(None, None, None, n, level, "newcombe", "a class is empty")
    if min(n_positive, n_negative) < 2:
        return Estimate(value, None, None, n, level, "newcombe", "fewer than two prompts in a class")
    z = _z(level)

    def excess(t: float) -> float:
        """Return (value - t)^2 - z^2 V(t), whose roots are the ends."""
        growth = 1 + (n / 2 - 1) * ((1 - t) / (2 - t) + t / (1 + t))
        return (value - t) ** 2 - z * z * t * (1 - t) * growth / (n_positive * n_negative)

    # At t = value excess is <= 0 and at the ends of [0, 1] it is >= 0: each side holds one root, and at a value of 0 or
    # 1 a second one at the end itself, which is divided out.
    tiny = 1e-9  # the smallest step of an AUC is 1 / (2 n_pos n_neg)
    at_zero, at_one = value < tiny, value > 1 - tiny
    low = 0.0 if at_zero else brentq(lambda t: excess(t) / (1 - t) if at_one else excess(t), 0.0, value - at_one * tiny)
    high = 1.0 if at_one else brentq(lambda t: excess(t) / t if at_zero else excess(t), value + at_zero * tiny, 1.0)
    return Estimate(value, float(low), float(high), n, level, "newcombe")


def auc_estimate(
    scores: Float[np.ndarray, " prompt"], is_positive: Bool[np.ndarray, " prompt"], level: float = 0.95
) -> Estimate:
    """Return the AUC of given scores with its interval. Scores must not have been fitted to these prompts."""
    n_positive = int(is_positive.sum())
    return auc_interval(auc(scores, is_positive), n_positive, len(is_positive) - n_positive, level)


def _ridge_direction(
    acts: Float[np.ndarray, "prompt d_model"], is_positive: Bool[np.ndarray, " prompt"]
) -> Float[np.ndarray, " d_model"]:
    """Return the ridge direction that separates two classes; the penalty is the mean squared norm of a prompt."""
    centred = acts - acts.mean(axis=0)
    target = np.where(is_positive, 1 / is_positive.sum(), -1 / (~is_positive).sum())
    kernel = centred @ centred.T
    penalty = max(float(np.trace(kernel)) / len(kernel), np.finfo(np.float64).tiny)
    return np.asarray(centred.T @ np.linalg.solve(kernel + penalty * np.eye(len(kernel)), target))


def cross_validated_auc(
    acts: Float[np.ndarray, "prompt d_model"],
    is_positive: Bool[np.ndarray, " prompt"],
    generator: Generator,
    *,
    n_folds: int = 5,
    level: float = 0.95,
) -> Estimate:
    """Return how well a linear direction separates two classes on prompts it was not fitted to.

    Per stratified fold a ridge direction is fitted to the other folds (in its dual form, so d_model may exceed the
    number of prompts), and positives are compared with negatives *of the same fold* only; comparing across folds biases
    noise below .5. On noise it is .5 whatever d_model, where in-sample separation is perfect.

    Args:
        acts: One row per prompt.
        is_positive: The class of each prompt.
        generator: Assigns prompts to folds.
        n_folds: At least 2; lowered to the size of the smaller class.
        level: Coverage.
    """
    acts = np.asarray(acts, dtype=np.float64)
    counts = int(is_positive.sum()), int((~is_positive).sum())
    if min(counts) < 2:
        reason = "fewer than two prompts in a class"
        return Estimate(None, None, None, sum(counts), level, "cross-validated ridge, newcombe", reason)
    n_folds = min(n_folds, *counts)
    fold = np.empty(len(is_positive), dtype=np.int64)
    for members in (np.flatnonzero(is_positive), np.flatnonzero(~is_positive)):
        fold[generator.permutation(members)] = np.arange(len(members)) % n_folds
    concordant, pairs = 0.0, 0
    for held_out in (fold == index for index in range(n_folds)):
        direction = _ridge_direction(acts[~held_out], is_positive[~held_out])
        n_pairs = int(is_positive[held_out].sum() * (~is_positive[held_out]).sum())
        concordant += n_pairs * (auc(acts[held_out] @ direction, is_positive[held_out]) or 0.0)
        pairs += n_pairs
    estimate = auc_interval(min(1.0, concordant / pairs), *counts, level=level)
    return Estimate(estimate.value, estimate.low, estimate.high, estimate.n, level, "cross-validated ridge, newcombe")


def nan_mean(values: Float[np.ndarray, "*value"]) -> float:
    """Return the mean of the values that were measured, nan when none was; without a warning.

    >>> nan_mean(np.array([1.0, np.nan, 2.0])), nan_mean(np.array([np.nan]))
    (1.5, nan)
    """
    measured = values[np.isfinite(values)]
    return float(measured.mean()) if len(measured) else float("nan")


# Agreement -----------------------------------------------------------------------------------------------------------


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Return the agreement of two raters beyond chance: (p_o - p_e) / (1 - p_e).

    1 is full agreement, 0 what chance gives. None with fewer than two items, or when both raters always give the same
    one answer (chance agreement is then 1). Source: Cohen 1960, Educ. Psychol. Meas. 20, 37.

    >>> cohen_kappa(["a", "a", "b", "b"], ["a", "b", "b", "b"])
    0.5
    """
    pairs = list(zip(first, second, strict=True))
    if len(pairs) < 2:
        return None
    labels = sorted({*first, *second}, key=repr)
    observed = sum(a == b for a, b in pairs) / len(pairs)
    share = [(list(rater).count(label) / len(pairs)) for rater in (first, second) for label in labels]
    expected = sum(a * b for a, b in zip(share[: len(labels)], share[len(labels) :], strict=True))
    return None if expected == 1 else (observed - expected) / (1 - expected)


def adjusted_rand_index(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Return how alike two partitions of the same items are: 1 the same, about 0 unrelated; None below two items.

    Source: Hubert and Arabie 1985, J. Classif. 2, 193 (scikit-learn's implementation).
    """
    from sklearn.metrics import adjusted_rand_score

    if len(first) != len(second):
        raise ValueError(f"partitions of {len(first)} and {len(second)} items cannot be compared")
    return None if len(first) < 2 else float(adjusted_rand_score(_codes(first), _codes(second)))


def spearman(first: Float[np.ndarray, " prompt"], second: Float[np.ndarray, " prompt"]) -> float | None:
    """Return Spearman's rank correlation, ties at mean ranks; None below two values or when one side is constant."""
    a, b = (rankdata(np.asarray(values, dtype=np.float64)) for values in (first, second))
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values cannot be correlated")
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip((a @ b) / math.sqrt((a @ a) * (b @ b)), -1.0, 1.0))

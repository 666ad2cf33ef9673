"""Many tests at once: sign-flip p-values, and corrections for the number of tests.

Arrays in, arrays out; every random draw takes a `numpy.random.Generator`. See `refusal.stats` for single numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy.random import Generator

_CELLS = 4_000_000
"""Flips x pairs that are held at once."""


def sign_flip_p(
    changes: Float[np.ndarray, "unit pair"], n_flips: int, generator: Generator
) -> Float[np.ndarray, " unit"]:
    """Return for each unit how likely its sum over pairs would be as far from 0 if signs were a coin's.

    Under the null a pair's change is as likely positive as negative, so flipping the signs of pairs changes nothing.
    Two-sided: p = (1 + flips with |sum| >= observed) / (1 + flips); a tie is a hit, and p is never 0. The same flips
    serve all units. A unit with a change that is nan has those pairs left out; one without pairs has p = nan.
    Source: Fisher 1935, section 21; Phipson and Smyth 2010, arXiv 1603.05766, for the 1 + .

    Args:
        changes: Per unit and pair, in logits.
        n_flips: Random sign vectors; the smallest p is 1 / (1 + n_flips).
        generator: Source of the signs.
    """
    is_known = np.isfinite(changes)
    values = np.where(is_known, changes, 0.0)
    observed = np.abs(values.sum(1))
    # rounding must not turn a tie (the identity among the flips) into a miss
    least = observed - 1e-9 * np.maximum(np.abs(values).sum(1), 1e-300)
    hits = np.zeros(len(values), dtype=np.int64)
    step = max(1, _CELLS // max(1, values.size // max(1, len(values)), len(values)))
    for first in range(0, n_flips, step):
        n = min(step, n_flips - first)
        signs = generator.integers(0, 2, size=(n, values.shape[1]), dtype=np.int8) * 2.0 - 1.0
        hits += (np.abs(signs @ values.T) >= least).sum(0)
    return np.where(is_known.any(1), (1 + hits) / (1 + n_flips), np.nan)


def flips_needed(n_tests: int, alpha: float, least: int = 9999) -> int:
    """Return how many flips let even the smallest of `n_tests` p-values pass Holm's correction with room to spare.

    >>> flips_needed(16, 0.05), flips_needed(1024, 0.05)
    (9999, 81920)
    """
    return max(least, math.ceil(4 * n_tests / alpha))


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Return p-values corrected so that the chance of any false finding is at most alpha (family-wise).

    The i-th smallest of m becomes max over j <= i of (m - j + 1) p_j, at most 1. nan stays and is not counted. No
    assumption on how the tests depend on each other. Source: Holm 1979, Scand. J. Stat. 6, 65.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    return _stepwise(p, lambda m: np.arange(m, 0, -1, dtype=np.float64), downwards=True)


def benjamini_hochberg(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Return p-values corrected so that of the findings at most a share alpha is false, on average.

    The i-th smallest of m becomes min over j >= i of m p_j / j, at most 1. nan stays and is not counted. Holds for
    independent and for positively dependent tests. Source: Benjamini and Hochberg 1995, J. R. Stat. Soc. B 57, 289.

    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03])).round(3).tolist()
    [0.03, 0.04, 0.04]
    """
    return _stepwise(p, lambda m: m / np.arange(1, m + 1, dtype=np.float64), downwards=False)


def _stepwise(
    p: Float[np.ndarray, " test"], factors: Callable[[int], Float[np.ndarray, " known"]], *, downwards: bool
) -> Float[np.ndarray, " test"]:
    """Return p, sorted, times the factors, made monotone from the smallest on (downwards) or from the largest."""
    corrected = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    scaled = p[order] * factors(len(order))
    monotone = np.maximum.accumulate(scaled) if downwards else np.minimum.accumulate(scaled[::-1])[::-1]
    corrected[order] = np.minimum(monotone, 1.0)
    return corrected

"""Bootstrap draws of pairs within categories that give intervals their width where a category has few pairs.

Drawing n of n pairs of a category gives the mean a variance that is too small by 1 - 1/n: with five pairs in each of
ten categories, 95 % intervals hold the truth in about 88 % of cases, and with one pair in each they have no width. So
n - 1 of the n are drawn, each weighing n / (n - 1), which has the right variance; categories with a single pair are
drawn together. Source: Rao and Wu 1988, J. Am. Stat. Assoc. 83, 231 (rescaling; the case m = n - 1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.random import Generator

from refusal.stats import Estimate, Weights, bootstrap

_SINGLE = ""
"""Name of the stratum of the categories that have a single pair."""


def pair_weights(categories: Sequence[str], n_draws: int, generator: Generator) -> Weights:
    """Return how much each pair weighs in each bootstrap draw; a row sums to the number of pairs.

    Args:
        categories: Category of each pair.
        n_draws: Number of draws.
        generator: Source of randomness.
    """
    strata = np.array(_strata(categories))
    weights = np.ones((n_draws, len(strata)))
    for name in dict.fromkeys(strata.tolist()):
        members = np.flatnonzero(strata == name)
        n = len(members)
        if n > 1:
            counts = generator.multinomial(n - 1, np.full(n, 1 / n), size=n_draws)
            weights[:, members] = counts * (n / (n - 1))
    return weights


def _strata(categories: Sequence[str]) -> list[str]:
    """Return the stratum of each pair; no stratum has a single pair unless there is only one pair.

    >>> _strata(["a", "a", "b", "c"]), _strata(["a", "a", "b"])
    (['of a', 'of a', '', ''], ['', '', ''])
    """
    counts = Counter(categories)
    small = {name for name, n in counts.items() if n == 1}
    if len(small) == 1 and len(counts) > 1:
        small.add(min(set(counts) - small, key=lambda name: (counts[name], name)))
    return [_SINGLE if name in small else f"of {name}" for name in categories]


def mean_over_pairs(
    values: Float[np.ndarray, " pair"], categories: Sequence[str], n_draws: int, generator: Generator
) -> Estimate:
    """Return the mean over pairs with its bootstrap interval, drawn within categories."""
    weights = pair_weights(categories, n_draws, generator)
    return bootstrap(lambda w: (w @ values) / w.sum(axis=1), weights)

"""Which categories share a mechanism: blocks of the transfer matrix, their number and their stability.

1. Candidates are the cuts of an average-linkage tree over 1 - (T_AB + T_BA) / 2.
2. A cut is a model with two numbers, the mean transfer inside and between blocks; it is fitted on one fold and judged
   by its squared error on the other. The smallest error wins; of nearly equal ones, that with fewer blocks.
3. Stability: mean adjusted Rand index between the groups and those of bootstrap draws.

Source: average linkage and cross-validated cuts, Hastie et al. (2009) 14.3.12; Hubert & Arabie (1985) for the index.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score

from refusal.stats import nan_mean

SHARED = 0.5
"""Mean transfer inside a block from which its categories are said to share a mechanism."""
MIN_CONTRAST = 0.25
"""Difference between the transfer inside and between blocks below which there are no blocks to speak of."""
TIE = 0.02
"""Relative excess of squared error up to which fewer blocks are preferred."""


def symmetrised(transfer: Float[np.ndarray, "category category"]) -> Float[np.ndarray, "category category"]:
    """Return (T_AB + T_BA) / 2 with diagonal 1; one direction alone where the other could not be measured."""
    both = np.stack([transfer, transfer.T])
    counted = np.isfinite(both)
    total = np.where(counted, both, 0.0).sum(0)
    similarity = np.where(counted.any(0), total / np.maximum(counted.sum(0), 1), np.nan)
    np.fill_diagonal(similarity, 1.0)
    return np.asarray(similarity)


def find_groups(
    transfer: Float[np.ndarray, "category category"], folds: Float[np.ndarray, "2 category category"]
) -> Int[np.ndarray, " category"]:
    """Return the index of each category's group.

    Args:
        transfer: From all prompts; it is what is cut.
        folds: The same from each fold alone; they choose the number of groups. Unmeasured entries are nan.
    """
    similarity = np.nan_to_num(symmetrised(transfer), nan=0.0)
    halves = np.stack([symmetrised(fold) for fold in folds])
    n = len(similarity)
    if n == 1:
        return np.zeros(1, int)
    tree = linkage(squareform(1 - np.clip(similarity, 0, 1), checks=False), "average")
    off_diagonal = ~np.eye(n, dtype=bool)
    no_blocks = np.zeros(n, int) if nan_mean(halves[:, off_diagonal]) >= SHARED else np.arange(n)
    best, best_error = no_blocks, _error(no_blocks, halves)
    for n_groups in range(2, n):
        groups = fcluster(tree, n_groups, "maxclust") - 1
        error = _error(groups, halves)
        if error < best_error * (1 - TIE) and _is_blocky(groups, similarity):
            best, best_error = groups, error
    return _in_order(best)


def groups_stability(groups: Int[np.ndarray, " category"], draws: Float[np.ndarray, "draw category category"]) -> float:
    """Return the mean adjusted Rand index between the groups and those found in bootstrap draws of the transfer matrix.

    1 = always the same partition, 0 = no more alike than chance. Draws are paired: their neighbours serve as folds.
    """
    found = [find_groups(draw, np.stack([draw, draws[index - 1]])) for index, draw in enumerate(draws)]
    return float(np.mean([adjusted_rand_score(groups, other) for other in found]))


def _same(groups: Int[np.ndarray, " category"]) -> np.ndarray:
    return np.asarray(groups[:, None] == groups[None, :])


def _error(groups: Int[np.ndarray, " category"], halves: Float[np.ndarray, "2 category category"]) -> float:
    """Return the squared error on each half of the two means fitted on the other half."""
    off_diagonal = ~np.eye(len(groups), dtype=bool)
    error = 0.0
    for fitted, judged in ((halves[0], halves[1]), (halves[1], halves[0])):
        for part in (_same(groups) & off_diagonal, ~_same(groups)):
            if part.any() and np.isfinite(fitted[part]).any():
                error += float(np.nansum((judged[part] - nan_mean(fitted[part])) ** 2))
    return error


def _is_blocky(groups: Int[np.ndarray, " category"], similarity: Float[np.ndarray, "category category"]) -> bool:
    """Return whether every block of several categories shares a mechanism and blocks stand out."""
    inside = _same(groups) & ~np.eye(len(groups), dtype=bool)
    blocks = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    weakest = min(similarity[np.ix_(rows, rows)][inside[np.ix_(rows, rows)]].mean() for rows in blocks if len(rows) > 1)
    return bool(weakest >= SHARED and similarity[inside].mean() - similarity[~_same(groups)].mean() >= MIN_CONTRAST)


def _in_order(groups: Int[np.ndarray, " category"]) -> Int[np.ndarray, " category"]:
    """Return the groups numbered in the order in which they first appear."""
    seen: dict[int, int] = {}
    return np.array([seen.setdefault(int(group), len(seen)) for group in groups])

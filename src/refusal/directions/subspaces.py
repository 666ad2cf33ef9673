"""Angles between the subspaces of categories, for mechanisms that are wider than one direction.

A category's subspace is spanned by the first `rank` right singular vectors of its refused prompts less the mean of its
complied prompts (x_p - mean of complied), not centred: the first vector is close to the difference in means, and the
others are the directions in which refusals of the same category differ from each other. They hold what refusals vary in
whether or not it matters for refusing, so subspaces say less than directions, and never without their ceiling.

1. Principal angles between two categories from all prompts.
2. Overlap (mean squared cosine of the angles) between opposite halves of the prompts, the same between the two halves
   of one category as the noise ceiling, and the ratio of the two.
3. Intervals by the jackknife over groups of prompts: in a bootstrap draw the same prompt counts twice, which pulls the
   bases of the two halves together or apart and moves every draw to one side of the estimate.

Sources: Bjorck and Golub 1973, Math. Comput. 27, 579 (scipy's `subspace_angles`); Efron and Tibshirani 1993, section
11.5 (jackknife); refusal as a cone of several directions, Wollschlaeger et al. arXiv 2502.17420.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import subspace_angles

from refusal.directions.geometry_records import Subspaces
from refusal.directions.products import MIN_CEILING, Sides, off_diagonal_mean
from refusal.measures import as_matrix, or_none
from refusal.schemas import Measure

Bases = Float[np.ndarray, "category rank d_model"]
"""An orthonormal basis for each category, rows."""


def category_basis(
    refused: Float[np.ndarray, "prompt d_model"],
    complied: Float[np.ndarray, "complied d_model"],
    rank: int,
) -> Float[np.ndarray, "rank d_model"]:
    """Return an orthonormal basis of a category's subspace, the strongest direction first.

    Args:
        refused: Activations of its refused prompts, at least `rank` of them.
        complied: Activations of its complied prompts.
        rank: Number of directions.
    """
    rows = refused - complied.mean(0)
    # with fewer prompts than dimensions the small Gram matrix holds the same singular vectors
    _, vectors = np.linalg.eigh(rows @ rows.T)
    leading = vectors[:, ::-1][:, :rank].T @ rows
    basis, _ = np.linalg.qr(leading.T)
    return np.asarray(basis.T)


def overlap(first: Float[np.ndarray, "rank d_model"], second: Float[np.ndarray, "rank d_model"]) -> float:
    """Return the mean squared cosine of the principal angles of two subspaces: |A B^T|^2 / rank, in [0, 1].

    >>> overlap(np.eye(3)[:2], np.eye(3)[1:])
    0.5
    """
    return float(((first @ second.T) ** 2).sum() / len(first))


def compare_subspaces(
    acts: Float[np.ndarray, "prompt d_model"],
    sides: Sides,
    rank: int,
    n_groups: int,
    generator: np.random.Generator,
) -> Subspaces:
    """Return angles, overlaps and ceilings of the categories' subspaces.

    Args:
        acts: One row per prompt.
        sides: Category and side of each prompt.
        rank: Directions of a subspace; lowered to a third of the fewest refused prompts.
        n_groups: Groups of the jackknife, at least 2; lowered to half of the prompts of the smallest side.
        generator: Draws the halves and the groups.
    """
    acts = np.asarray(acts, dtype=np.float64)
    smallest = int(np.bincount(sides.stratum).min())
    fewest = min(len(sides.rows(i, refused=True)) for i in range(sides.n_categories))
    rank = max(1, min(rank, fewest // 3))
    n_groups = max(2, min(n_groups, smallest // 2))
    whole = _bases(acts, sides, rank, np.ones(len(acts), dtype=bool))
    # a fold per half and group: neighbouring folds are of opposite halves, so both are balanced
    fold = sides.folds(2 * n_groups, generator)
    half, group = fold % 2, fold // 2
    point = _overlaps(acts, sides, rank, half)
    left_out = [_overlaps(acts, sides, rank, np.where(group == each, -1, half)) for each in range(n_groups)]
    without = np.stack(left_out)
    names, n = sides.categories, len(sides)
    return Subspaces(
        rank=rank,
        angles={a: {b: _degrees(whole[i], whole[j]) for j, b in enumerate(names)} for i, a in enumerate(names)},
        overlap=as_matrix(point, names),
        ceiling={name: or_none(value) for name, value in zip(names, point.diagonal(), strict=True)},
        mean_overlap=_mean(point[None], without, n),
        mean_ceiling=or_none(float(point.diagonal().mean())),
        mean_ratio=_mean(_ratio(point[None]), _ratio(without), n),
        chance=rank / acts.shape[1],
    )


def _bases(acts: Float[np.ndarray, "prompt d_model"], sides: Sides, rank: int, chosen: np.ndarray) -> Bases:
    """Return each category's basis from the chosen prompts."""
    found = []
    for category in range(sides.n_categories):
        refused, complied = (sides.rows(category, refused=side) for side in (True, False))
        basis = category_basis(acts[refused[chosen[refused]]], acts[complied[chosen[complied]]], rank)
        # fewer prompts than the rank span less; what is missing overlaps with nothing
        found.append(np.pad(basis, ((0, rank - len(basis)), (0, 0))))
    return np.stack(found)


def _overlaps(
    acts: Float[np.ndarray, "prompt d_model"], sides: Sides, rank: int, half: Int[np.ndarray, " prompt"]
) -> Float[np.ndarray, "category category"]:
    """Return the overlaps between opposite halves, mean of both pairings; the diagonal holds the ceilings."""
    first, second = (_bases(acts, sides, rank, half == each) for each in (0, 1))
    found = (np.einsum("ird,jsd->ijrs", first, second, optimize=True) ** 2).sum((2, 3)) / rank
    return np.asarray((found + found.T) / 2)


def _ratio(overlaps: Float[np.ndarray, "draw category category"]) -> Float[np.ndarray, "draw category category"]:
    """Return overlaps over the geometric mean of the two ceilings; nan where a ceiling is below the least."""
    ceilings = np.einsum("dii->di", overlaps)
    roots = np.sqrt(np.where(ceilings >= MIN_CEILING, ceilings, np.nan))
    return np.asarray(overlaps / (roots[:, :, None] * roots[:, None, :]))


def _mean(
    point: Float[np.ndarray, "1 category category"], without: Float[np.ndarray, "group category category"], n: int
) -> Measure:
    """Return the mean off-diagonal value with its jackknife interval, value +- 1.96 standard errors."""
    method = f"jackknife over {len(without)} groups of prompts"
    value, left = float(off_diagonal_mean(point)[0]), off_diagonal_mean(without)
    if not np.isfinite(value):
        reason = "a noise ceiling is too low in every pair"
        return Measure(value=None, low=None, high=None, n=n, method=method, reason=reason)
    if not np.isfinite(left).all():
        reason = "undefined when a group of prompts is left out"
        return Measure(value=value, low=None, high=None, n=n, method=method, reason=reason)
    error = float(np.sqrt((len(left) - 1) * left.var()))
    return Measure(value=value, low=value - 1.96 * error, high=value + 1.96 * error, n=n, method=method, reason=None)


def _degrees(first: Float[np.ndarray, "rank d_model"], second: Float[np.ndarray, "rank d_model"]) -> tuple[float, ...]:
    """Return the principal angles in degrees, smallest first."""
    return tuple(np.degrees(np.sort(subspace_angles(first.T, second.T))).tolist())

"""Angles between the subspaces of categories, for mechanisms that are wider than one direction.

A category's subspace is spanned by the first `rank` right singular vectors of its refused prompts less the mean of its
complied prompts (x_p - mean of complied), not centred: the first vector is close to the difference in means, and the
others are the directions in which refusals of the same category differ from each other. They hold what refusals vary in
whether or not it matters for refusing, so subspaces say less than directions, and never without their ceiling.

1. Principal angles between two categories from all prompts.
2. Overlap (mean squared cosine of the angles) between opposite halves of the prompts, the same between the two halves
   of one category as the noise ceiling, and the ratio of the two.
3. Interval of the mean ratio: prompts are resampled within each half, so that noise enters overlap and ceiling alike.

Source: Bjorck and Golub 1973, Math. Comput. 27, 579 (scipy's `subspace_angles`); refusal as a cone of several
directions, Wollschlaeger et al. arXiv 2502.17420.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import subspace_angles

from refusal.directions.geometry_records import Subspaces, as_matrix, or_none
from refusal.directions.products import MIN_CEILING, Sides, off_diagonal_mean
from refusal.schemas import Measure
from refusal.stats import bootstrap_weights, percentile_interval

Bases = Float[np.ndarray, "category rank d_model"]
"""An orthonormal basis for each category, rows."""


def category_basis(
    refused: Float[np.ndarray, "prompt d_model"],
    complied: Float[np.ndarray, "prompt d_model"],
    rank: int,
    weights: tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " complied"]] | None = None,
) -> Float[np.ndarray, "rank d_model"]:
    """Return an orthonormal basis of a category's subspace, the strongest direction first.

    Args:
        refused: Activations of its refused prompts, at least `rank` of them.
        complied: Activations of its complied prompts.
        rank: Number of directions.
        weights: How often each refused and each complied prompt counts; None: once.
    """
    if weights is None:
        weights = np.ones(len(refused)), np.ones(len(complied))
    rows = (refused - (weights[1] @ complied) / weights[1].sum()) * np.sqrt(weights[0])[:, None]
    # with fewer prompts than dimensions the small Gram matrix holds the same singular vectors
    values, vectors = np.linalg.eigh(rows @ rows.T)
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
    n_draws: int,
    generator: np.random.Generator,
) -> Subspaces:
    """Return angles, overlaps and ceilings of the categories' subspaces.

    Args:
        acts: One row per prompt.
        sides: Category and side of each prompt.
        rank: Directions of a subspace; lowered to half of the fewest refused prompts.
        n_draws: Bootstrap draws.
        generator: Draws the halves and the bootstrap.
    """
    acts = np.asarray(acts, dtype=np.float64)
    fewest = min(len(sides.rows(i, refused=True)) for i in range(sides.n_categories))
    rank = max(1, min(rank, fewest // 2))
    everything = np.arange(len(acts))
    whole = _bases(acts, sides, rank, everything, np.ones(len(acts)))
    fold = sides.folds(2, generator)
    halves = [np.flatnonzero(fold == half) for half in (0, 1)]
    weights = bootstrap_weights(len(acts), n_draws, generator, strata=2 * sides.stratum + fold)
    point = _overlaps(acts, sides, rank, halves, np.ones(len(acts)))
    drawn = np.stack([_overlaps(acts, sides, rank, halves, draw) for draw in weights])
    names, n = sides.categories, len(sides)
    return Subspaces(
        rank=rank,
        angles={a: {b: _degrees(whole[i], whole[j]) for j, b in enumerate(names)} for i, a in enumerate(names)},
        overlap=as_matrix(point, names),
        ceiling={name: or_none(value) for name, value in zip(names, point.diagonal(), strict=True)},
        mean_overlap=_mean(point[None], drawn, n),
        mean_ceiling=or_none(float(point.diagonal().mean())),
        mean_ratio=_mean(_ratio(point[None]), _ratio(drawn), n),
        chance=rank / acts.shape[1],
    )


def _bases(
    acts: Float[np.ndarray, "prompt d_model"],
    sides: Sides,
    rank: int,
    chosen: Int[np.ndarray, " row"],
    weights: Float[np.ndarray, " prompt"],
) -> Bases:
    """Return each category's basis from some prompts under weights; those drawn 0 times are left out."""
    drawn = np.zeros(len(acts))
    drawn[chosen] = weights[chosen]
    found = []
    for category in range(sides.n_categories):
        refused, complied = (sides.rows(category, refused=side) for side in (True, False))
        refused, complied = refused[drawn[refused] > 0], complied[drawn[complied] > 0]
        basis = category_basis(acts[refused], acts[complied], rank, (drawn[refused], drawn[complied]))
        # a draw of fewer different prompts than the rank spans less; what is missing overlaps with nothing
        found.append(np.pad(basis, ((0, rank - len(basis)), (0, 0))))
    return np.stack(found)


def _overlaps(
    acts: Float[np.ndarray, "prompt d_model"],
    sides: Sides,
    rank: int,
    halves: list[Int[np.ndarray, " row"]],
    weights: Float[np.ndarray, " prompt"],
) -> Float[np.ndarray, "category category"]:
    """Return the overlaps between opposite halves, mean of both pairings; the diagonal holds the ceilings."""
    first, second = (_bases(acts, sides, rank, half, weights) for half in halves)
    found = (np.einsum("ird,jsd->ijrs", first, second, optimize=True) ** 2).sum((2, 3)) / rank
    return np.asarray((found + found.T) / 2)


def _ratio(overlaps: Float[np.ndarray, "draw category category"]) -> Float[np.ndarray, "draw category category"]:
    """Return overlaps over the geometric mean of the two ceilings; nan where a ceiling is below the least."""
    ceilings = np.einsum("dii->di", overlaps)
    roots = np.sqrt(np.where(ceilings >= MIN_CEILING, ceilings, np.nan))
    return np.asarray(overlaps / (roots[:, :, None] * roots[:, None, :]))


def _mean(
    point: Float[np.ndarray, "1 category category"], draws: Float[np.ndarray, "draw category category"], n: int
) -> Measure:
    return Measure.of(percentile_interval(float(off_diagonal_mean(point)[0]), off_diagonal_mean(draws), n))


def _degrees(first: Float[np.ndarray, "rank d_model"], second: Float[np.ndarray, "rank d_model"]) -> tuple[float, ...]:
    """Return the principal angles in degrees, smallest first."""
    return tuple(np.degrees(np.sort(subspace_angles(first.T, second.T))).tolist())

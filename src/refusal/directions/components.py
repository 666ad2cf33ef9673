"""How many directions are there? Principal components of the categories' directions, and how many hold on new prompts.

1. `spectrum`: the eigenvalues of the matrix of cosines over the number of categories are the shares of squared length
   of the unit directions on their principal components. They are not centred: a direction common to all categories is
   the first component, not the origin. Of the disattenuated cosines, they are free of sampling noise.
2. `needed_directions`: components are fitted to the unit directions of the training prompts; the training directions,
   projected on the first r, predict the held-out ones. A component that is noise makes the prediction worse, so the
   error has its minimum at the number of directions that the prompts can tell.
3. Of nearly equal ones the smaller number is taken: the smallest r whose error exceeds the best one's by at most one
   standard error, of the *difference* between the two over folds.

Source: one-standard-error rule, Breiman et al. 1984, section 3.4.3, and Hastie et al. 2009, section 7.10; effective
number: participation ratio, e.g. Gao et al. 2017, doi:10.1101/214262.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from refusal.directions.geometry_records import NeededDirections, Spectrum
from refusal.directions.products import Products, Sides
from refusal.measures import measure
from refusal.schemas import Measure

MOST = 0.9
"""Share of what is reproducible that `for_most` asks for."""


def spectrum(point: Products, draws: Products, n: int) -> Spectrum:
    """Return the shares of the principal components with bootstrap intervals.

    Args:
        point: Inner products of the prompts as they are.
        draws: Those of the bootstrap.
        n: Number of prompts.
    """
    raw, corrected = (_shares(point.cosine), _shares(draws.cosine)), (_shares(point.ratio), _shares(draws.ratio))
    best = corrected if np.isfinite(corrected[0]).all() else raw
    has_ceilings = best is corrected
    return Spectrum(
        raw=_measures(*raw, n),
        corrected=_measures(*corrected, n) if has_ceilings else (),
        effective_number=_measures(_effective_number(best[0]), _effective_number(best[1]), n)[0],
    )


def _shares(cosines: Float[np.ndarray, "draw category category"]) -> Float[np.ndarray, "draw category"]:
    """Return the eigenvalues over their sum, largest first; nan for a draw with unmeasured cosines."""
    n = cosines.shape[1]
    is_whole = np.isfinite(cosines).all((1, 2))
    shares = np.full(cosines.shape[:2], np.nan)
    shares[is_whole] = np.linalg.eigvalsh(cosines[is_whole])[:, ::-1] / n
    return shares


def _effective_number(shares: Float[np.ndarray, "draw category"]) -> Float[np.ndarray, "draw 1"]:
    """Return (sum of shares)^2 / sum of squared shares; nan where shares are."""
    return np.asarray((shares.sum(1) ** 2 / (shares**2).sum(1))[:, None])


def _measures(
    point: Float[np.ndarray, "1 value"], draws: Float[np.ndarray, "draw value"], n: int
) -> tuple[Measure, ...]:
    values = zip(point[0], draws.T, strict=True)
    return tuple(measure(value, drawn, n) for value, drawn in values)


def needed_directions(
    acts: Float[np.ndarray, "prompt d_model"], sides: Sides, n_folds: int, generator: np.random.Generator
) -> NeededDirections:
    """Return how many directions the categories' directions span, by cross-validation.

    With a_i the difference in means of the training prompts and b_i that of the held-out ones, both over |a_i|, and P_r
    the projection on the first r right singular vectors of the a_i: error(r) = sum_i |b_i - P_r a_i|^2, over that of
    r = 0, each fold held out once.

    Args:
        acts: One row per prompt.
        sides: Category and side of each prompt.
        n_folds: At least 2; lowered to the number of prompts of the smallest side.
        generator: Assigns prompts to folds.
    """
    acts = np.asarray(acts, dtype=np.float64)
    smallest = int(np.bincount(sides.stratum).min())
    n_folds = max(2, min(n_folds, smallest))
    fold = sides.folds(n_folds, generator)
    errors = np.stack([_errors(acts, sides, fold == held_out) for held_out in range(n_folds)])
    mean = errors.mean(0)
    best = int(mean.argmin())
    excess = errors - errors[:, [best]]
    se = excess.std(0, ddof=1) / np.sqrt(n_folds)
    chosen = int(np.flatnonzero(mean - mean[best] <= se)[0])
    scale = mean[0] if mean[0] > 0 else 1.0
    gain = mean[0] - mean
    explained = [float(each / gain[best]) if gain[best] > 0 else None for each in gain]
    reached = [r for r, each in enumerate(explained) if each is not None and each >= MOST]
    return NeededDirections(
        error=tuple((mean / scale).tolist()),
        error_se=tuple((se / scale).tolist()),
        best=best,
        chosen=chosen,
        explained=tuple(explained),
        for_most=reached[0] if reached else None,
        n_folds=n_folds,
    )


def _errors(
    acts: Float[np.ndarray, "prompt d_model"], sides: Sides, is_held_out: np.ndarray
) -> Float[np.ndarray, " component"]:
    """Return the squared error of the held-out differences for each number of components, 0 first."""
    training, held_out = _differences_of(acts, sides, ~is_held_out), _differences_of(acts, sides, is_held_out)
    scale = np.linalg.norm(training, axis=1, keepdims=True)
    scale = np.where(scale > 0, scale, 1.0)
    training, held_out = training / scale, held_out / scale
    _, _, components = np.linalg.svd(training, full_matrices=False)
    a, b = training @ components.T, held_out @ components.T
    # |b - P_r a|^2 = |b|^2 + sum over the first r components of a^2 - 2 a b
    steps = (a**2 - 2 * a * b).sum(0)
    return np.asarray((held_out**2).sum() + np.concatenate([[0.0], steps.cumsum()]))


def _differences_of(
    acts: Float[np.ndarray, "prompt d_model"], sides: Sides, chosen: np.ndarray
) -> Float[np.ndarray, "category d_model"]:
    """Return the differences in means of some prompts, of which a single one per side is enough."""
    found = []
    for category in range(sides.n_categories):
        refused, complied = (sides.rows(category, refused=side) for side in (True, False))
        found.append(acts[refused[chosen[refused]]].mean(0) - acts[complied[chosen[complied]]].mean(0))
    return np.stack(found)

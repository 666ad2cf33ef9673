"""The geometry of the question: how alike are the categories' refusal directions, layer by layer?

1. Per category, d_i = mean of its refused less mean of its complied prompts; cosines between them, with the noise
   ceilings of each and the cosine that is left when noise is taken away (`products`).
2. Bootstrap intervals over prompts within category and side; the same draws for every layer.
3. Principal components, the number of directions needed (`components`), angles between subspaces (`subspaces`).

Raw cosine, ceiling and ratio are always given together: with few prompts and many dimensions the same direction,
estimated twice, can have a cosine near 0. What cosines cannot tell: directions that are alike need not be used alike
(`transfer` measures that), and after the decision is made every model's directions are alike.

Source: difference in means, Arditi et al. arXiv 2406.11717 section 2.3; concept cones, arXiv 2502.17420.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from refusal.directions.components import needed_directions, spectrum
from refusal.directions.geometry_records import LayerGeometry
from refusal.directions.products import Products, Sides, off_diagonal_mean, products
from refusal.directions.subspaces import compare_subspaces
from refusal.measures import as_matrix, interval_matrix, measure, or_none

MIN_PROMPTS = 4
"""Prompts a side of a category needs: two in each half."""


@dataclass(frozen=True)
class GeometryOptions:
    """How much is drawn. `seed` decides every draw."""

    draws: int = 1000
    """Bootstrap draws of the cosines."""
    rank: int = 3
    """Dimensions of a category's subspace, at most a third of its refused prompts."""
    jackknife_groups: int = 20
    """Groups of prompts of the subspaces' jackknife."""
    n_folds: int = 5
    """Folds that choose the number of directions, at most the prompts of the smallest side."""
    seed: int = 0


def direction_geometry(
    acts: Float[np.ndarray, "prompt layer d_model"] | Float[Tensor, "prompt layer d_model"],
    sides: Sides,
    options: GeometryOptions = GeometryOptions(),
) -> tuple[LayerGeometry, ...]:
    """Return the geometry at every layer, in order of depth.

    Args:
        acts: Activations at one position (the readout position); layer N is residuals_N.
        sides: Category and side of each prompt; at least two categories.
        options: Draws, rank and seed.

    Raises:
        ValueError: There are fewer than two categories, a side with fewer than `MIN_PROMPTS` prompts, or activations
            that are not finite.
    """
    values = np.asarray(acts)
    return tuple(layer_geometry(values[:, layer], sides, layer, options) for layer in range(values.shape[1]))


def layer_geometry(
    acts: Float[np.ndarray, "prompt d_model"], sides: Sides, layer: int, options: GeometryOptions = GeometryOptions()
) -> LayerGeometry:
    """Return the geometry at one layer; see `direction_geometry`."""
    _require_comparable(acts, sides, layer)
    acts = np.asarray(acts, dtype=np.float64)
    weights = sides.bootstrap(options.draws, np.random.default_rng([options.seed, 1]))
    draws = products(acts, sides, weights)
    point, draws = (each.only(draws.has_signal) for each in (products(acts, sides), draws))
    fold = sides.folds(2, np.random.default_rng([options.seed, 2]))
    folds = [_half_ratio(acts, sides, np.flatnonzero(fold == half)) for half in (0, 1)]
    names, n = sides.categories, len(sides)
    return LayerGeometry(
        layer=layer,
        norm={name: _root(value) for name, value in zip(names, point.unbiased[0], strict=True)},
        cosine=as_matrix(point.cosine[0], names),
        cosine_ci=interval_matrix(point.cosine[0], draws.cosine, names),
        ceiling={name: or_none(value) for name, value in zip(names, point.ceiling[0], strict=True)},
        ratio=as_matrix(point.ratio[0], names),
        ratio_ci=interval_matrix(point.ratio[0], draws.ratio, names),
        ratio_folds=(as_matrix(folds[0], names), as_matrix(folds[1], names)),
        mean_cosine=measure(off_diagonal_mean(point.cosine)[0], off_diagonal_mean(draws.cosine), n),
        mean_ceiling=measure(_pair_ceiling(point)[0], _pair_ceiling(draws), n),
        mean_ratio=measure(off_diagonal_mean(point.ratio)[0], off_diagonal_mean(draws.ratio), n),
        spectrum=spectrum(point, draws, n),
        needed=needed_directions(acts, sides, options.n_folds, np.random.default_rng([options.seed, 3])),
        subspaces=compare_subspaces(
            acts, sides, options.rank, options.jackknife_groups, np.random.default_rng([options.seed, 4])
        ),
    )


def _require_comparable(acts: Float[np.ndarray, "prompt d_model"], sides: Sides, layer: int) -> None:
    if sides.n_categories < 2:
        raise ValueError(f"{sides.n_categories} category has nothing to be compared with; two are needed")
    smallest = int(np.bincount(sides.stratum).min())
    if smallest < MIN_PROMPTS:
        raise ValueError(f"a category has {smallest} prompts on a side; {MIN_PROMPTS} are needed for halves")
    if not np.isfinite(acts).all():
        raise ValueError(f"residuals_{layer}: some activations are not finite; capture the model in a wider dtype")


def _half_ratio(
    acts: Float[np.ndarray, "prompt d_model"], sides: Sides, rows: Int[np.ndarray, " row"]
) -> Float[np.ndarray, "category category"]:
    """Return the disattenuated cosines of some prompts."""
    return np.asarray(products(acts[rows], sides.subset(rows)).ratio[0])


def _pair_ceiling(found: Products) -> Float[np.ndarray, " draw"]:
    """Return the mean over pairs of sqrt(ceiling_i ceiling_j): the mean cosine if all directions were the same one."""
    roots = np.sqrt(np.maximum(np.nan_to_num(found.ceiling), 0.0))
    return off_diagonal_mean(roots[:, :, None] * roots[:, None, :])


def _root(value: float) -> float | None:
    return float(np.sqrt(value)) if value > 0 else None

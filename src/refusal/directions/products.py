"""Inner products between the differences in means of several sets of prompts, free of sampling noise, and resampled.

Everything that is said of directions (cosines, ceilings, principal components) is a function of the inner products
<d_i, d_j> of the categories' differences in means, and these of the inner products between prompts. So a bootstrap over
prompts is a few matrix products whose size does not depend on d_model.

1. A squared norm |d_i|^2 holds the noise of its two means besides the signal: on average |delta_i|^2 plus the noise
   b_i = var_refused / n_refused + var_complied / n_complied. Products of *different* prompts are free of it. U_i, the
   mean over all pairs of distinct prompts, estimates |delta_i|^2 without bias; it equals the mean of <d_i^1, d_i^2>
   over all ways to cut the prompts into equal halves, so no cut has to be drawn.
2. Between categories no prompt meets itself, and <d_i, d_j> needs no correction.
3. In a bootstrap draw a prompt that is drawn twice would meet itself: such pairs are left out as well.

This module knows rows and sides, not layers or models. float64 throughout.
Sources: attenuation correction, Spearman 1904; unbiased squared norms of differences in means as in the U-statistic of
the squared maximum mean discrepancy with a linear kernel, Gretton et al. 2012, J. Mach. Learn. Res. 13, 723, eq. 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from refusal.stats import bootstrap_weights

MIN_SIDE = 2
"""Prompts a side of a category needs: of a single one no noise can be told."""
MIN_CEILING = 0.2
"""Noise ceiling below which a ratio to it says nothing and is not given."""


@dataclass(frozen=True)
class Sides:
    """Which prompts belong to which category and side; the rows of every array of activations here."""

    category: Int[np.ndarray, " prompt"]
    """Index into `categories`."""
    is_refused: Bool[np.ndarray, " prompt"]
    categories: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.category) != len(self.is_refused):
            raise ValueError(f"{len(self.category)} categories for {len(self.is_refused)} behaviours")
        for index, name in enumerate(self.categories):
            counts = [len(self.rows(index, refused=refused)) for refused in (True, False)]
            if min(counts) < MIN_SIDE:
                raise ValueError(f"{name}: {counts[0]} refused and {counts[1]} complied prompts; each needs {MIN_SIDE}")

    def __len__(self) -> int:
        return len(self.category)

    @property
    def n_categories(self) -> int:
        """Number of categories."""
        return len(self.categories)

    @cached_property
    def stratum(self) -> Int[np.ndarray, " prompt"]:
        """Number of each prompt's category and side: 2 category + 1 where refused."""
        return np.asarray(2 * self.category + self.is_refused)

    def rows(self, category: int, *, refused: bool) -> Int[np.ndarray, " prompt"]:
        """Return the rows of one side of a category."""
        return np.flatnonzero((self.category == category) & (self.is_refused == refused))

    def subset(self, rows: Int[np.ndarray, " row"]) -> Sides:
        """Return the sides of some rows.

        Raises:
            ValueError: A side of a category is left with fewer than two prompts.
        """
        return Sides(self.category[rows], self.is_refused[rows], self.categories)

    def bootstrap(self, n_draws: int, generator: np.random.Generator) -> Float[np.ndarray, "draw prompt"]:
        """Return bootstrap weights that draw prompts within each category and side."""
        return bootstrap_weights(len(self), n_draws, generator, strata=self.stratum)

    def folds(self, n_folds: int, generator: np.random.Generator) -> Int[np.ndarray, " prompt"]:
        """Return a fold for every prompt, balanced within each category and side."""
        fold = np.zeros(len(self), dtype=np.int64)
        for stratum in np.unique(self.stratum):
            rows = np.flatnonzero(self.stratum == stratum)
            fold[generator.permutation(rows)] = np.arange(len(rows)) % n_folds
        return fold


@dataclass(frozen=True)
class Products:
    """Inner products of differences in means, one matrix for each draw; the unit is that of activations squared."""

    plain: Float[np.ndarray, "draw category category"]
    """<d_i, d_j>; the diagonal holds the noise of the means."""
    unbiased: Float[np.ndarray, "draw category"]
    """U_i: the squared norms without it. May be negative where there is no signal."""
    noise: Float[np.ndarray, " category"]
    """b_i = |d_i|^2 - U_i of the prompts as they are: what resampling adds a second time."""
    squared: Float[np.ndarray, " category"]
    """|d_i|^2 of the prompts as they are."""
    is_usable: Bool[np.ndarray, " category"]
    """Whether the category's noise ceiling, from the prompts as they are, reaches `MIN_CEILING`: else it has no ratio.
    """
    is_resampled: bool
    """Whether the draws are of a bootstrap, or the prompts as they are."""

    @property
    def has_signal(self) -> Bool[np.ndarray, " category"]:
        """Whether the lower end of the 95 % interval of U_i is above 0: chance alone can reach a ceiling of .2."""
        return np.asarray(np.nanquantile(self.unbiased, 0.025, axis=0) > 0)

    def only(self, categories: Bool[np.ndarray, " category"]) -> Products:
        """Return the same with a ratio for no others than these categories."""
        return replace(self, is_usable=self.is_usable & categories)

    @property
    def cosine(self) -> Float[np.ndarray, "draw category category"]:
        """The raw cosine <d_i, d_j> / (|d_i| |d_j|) as the prompts give it, diagonal 1, in [-1, 1].

        A resample holds the noise twice, which would pull every cosine of the bootstrap below the one that it is the
        interval of: draws are scaled back by sqrt((|d_i|^2 + b_i) / |d_i|^2) for each of the two.
        """
        found = _over_norms(self.plain, np.einsum("dii->di", self.plain))
        if self.is_resampled:
            excess = np.divide(self.noise, self.squared, out=np.zeros_like(self.noise), where=self.squared > 0)
            found = np.clip(found * np.sqrt(np.outer(1 + excess, 1 + excess)), -1, 1)
        return found

    @property
    def ceiling(self) -> Float[np.ndarray, "draw category"]:
        """The cosine that two independent estimates of the *same* direction, each from as many prompts, would have.

        U_i / (U_i + b_i): the split-half cosine c = U_i / (U_i + 2 b_i) stepped up from half of the prompts to all of
        them, 2c / (1 + c). Source: Spearman 1910 and Brown 1910, Br. J. Psychol. 3.
        """
        return _share(self.unbiased, self.unbiased + self.noise)

    @property
    def split_half(self) -> Float[np.ndarray, "draw category"]:
        """The cosine between the directions of two equal halves of the same category's prompts."""
        return _share(self.unbiased, self.unbiased + 2 * self.noise)

    @property
    def ratio(self) -> Float[np.ndarray, "draw category category"]:
        """The disattenuated cosine <d_i, d_j> / sqrt(U_i U_j), diagonal 1: what is left when noise is taken away.

        It is the raw cosine over the geometric mean of the two ceilings, and an estimate of the true cosine: noise can
        carry it past 1. nan where a category is not usable, or in a draw in which a squared norm is not above 0.
        Source: Spearman 1904, Am. J. Psychol. 15, 72.
        """
        return _over_norms(self.plain, np.where(self.is_usable, self.unbiased, np.nan))


def _share(
    part: Float[np.ndarray, "draw category"], whole: Float[np.ndarray, "draw category"]
) -> Float[np.ndarray, "draw category"]:
    """Return part / whole; nan where the whole is not above 0."""
    return np.asarray(np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0))


def _over_norms(
    products: Float[np.ndarray, "draw category category"], squared_norms: Float[np.ndarray, "draw category"]
) -> Float[np.ndarray, "draw category category"]:
    """Return products over the norms of both sides, diagonal 1; nan where a squared norm is not above 0."""
    norms = np.sqrt(np.where(np.nan_to_num(squared_norms) > 0, squared_norms, np.nan))
    cosines = products / (norms[:, :, None] * norms[:, None, :])
    diagonal = np.arange(products.shape[1])
    cosines[:, diagonal, diagonal] = np.where(np.isfinite(norms), 1.0, np.nan)
    return np.asarray(cosines)


def off_diagonal_mean(values: Float[np.ndarray, "draw category category"]) -> Float[np.ndarray, " draw"]:
    """Return the mean over pairs of different categories, of those that were measured; nan where none was.

    >>> off_diagonal_mean(np.array([[[1.0, 0.5], [0.3, 1.0]]]))
    array([0.4])
    """
    pairs = values[:, ~np.eye(values.shape[1], dtype=bool)]
    counted = np.isfinite(pairs)
    n = counted.sum(1)
    return np.asarray(np.where(n > 0, np.where(counted, pairs, 0.0).sum(1) / np.maximum(n, 1), np.nan))


def differences(acts: Float[np.ndarray, "prompt d_model"], sides: Sides) -> Float[np.ndarray, "category d_model"]:
    """Return d_i = mean of the refused less mean of the complied prompts of each category, in float64."""
    acts = np.asarray(acts, dtype=np.float64)
    return np.stack(
        [
            acts[sides.rows(i, refused=True)].mean(0) - acts[sides.rows(i, refused=False)].mean(0)
            for i in range(sides.n_categories)
        ]
    )


def products(
    acts: Float[np.ndarray, "prompt d_model"], sides: Sides, weights: Float[np.ndarray, "draw prompt"] | None = None
) -> Products:
    """Return the inner products of the categories' differences in means under each draw's weights.

    With d the difference as it is and e_p a prompt's deviation from the mean of its side, a draw gives
    d_i + eps_i, eps_i = mean of w_p e_p over the refused less that over the complied prompts of i.

    Args:
        acts: One row per prompt, in the order of `sides`.
        sides: Category and side of each prompt.
        weights: From `Sides.bootstrap`; None: one draw, the prompts as they are.
    """
    acts = np.asarray(acts, dtype=np.float64)
    if len(acts) != len(sides):
        raise ValueError(f"{len(acts)} rows of activations for {len(sides)} prompts")
    as_is = np.ones((1, len(sides)))
    point = _Gram(acts, sides)
    noise = (point.self_products(as_is) - point.distinct_products(as_is))[0]
    drawn = as_is if weights is None else weights
    plain = point.plain(drawn)
    unbiased = np.einsum("dii->di", plain) - point.self_products(drawn) + point.distinct_products(drawn)
    squared = np.einsum("dii->di", point.plain(as_is))[0]
    is_usable = (squared > 0) & (squared - noise >= MIN_CEILING * squared)
    return Products(plain, unbiased, noise, squared, is_usable, weights is not None)


class _Gram:
    """Inner products between prompts (as deviations from the mean of their side) and the categories' differences."""

    def __init__(self, acts: Float[np.ndarray, "prompt d_model"], sides: Sides) -> None:
        strata = [[sides.rows(i, refused=refused) for refused in (True, False)] for i in range(sides.n_categories)]
        self._strata = strata
        self._sign_over_n = np.zeros(len(sides))
        deviations = np.empty_like(acts)
        for refused, complied in strata:
            for rows, sign in ((refused, 1), (complied, -1)):
                deviations[rows] = acts[rows] - acts[rows].mean(0)
                self._sign_over_n[rows] = sign / len(rows)
        d = differences(acts, sides)
        rows = np.concatenate([deviations, d])
        self._kernel = rows @ rows.T
        self._n = len(acts)
        self._of_category = [np.concatenate([*pair, [self._n + i]]).astype(int) for i, pair in enumerate(strata)]

    def plain(self, weights: Float[np.ndarray, "draw prompt"]) -> Float[np.ndarray, "draw category category"]:
        """Return <d_i + eps_i, d_j + eps_j>."""
        n_categories = len(self._strata)
        coefficients = np.concatenate([weights * self._sign_over_n, np.ones((len(weights), n_categories))], axis=1)
        found = np.empty((len(weights), n_categories, n_categories))
        for j, columns in enumerate(self._of_category):
            onto = coefficients[:, columns] @ self._kernel[columns]
            for i, rows in enumerate(self._of_category):
                found[:, i, j] = np.einsum("dp,dp->d", coefficients[:, rows], onto[:, rows])
        return found

    def self_products(self, weights: Float[np.ndarray, "draw prompt"]) -> Float[np.ndarray, "draw category"]:
        """Return |mean of w_p e_p|^2, summed over the two sides: it holds the products of prompts with themselves."""
        return self._sides_products(weights, distinct=False)

    def distinct_products(self, weights: Float[np.ndarray, "draw prompt"]) -> Float[np.ndarray, "draw category"]:
        """Return the mean of w_p w_q <e_p, e_q> over pairs of distinct prompts, summed over the two sides."""
        return self._sides_products(weights, distinct=True)

    def _sides_products(
        self, weights: Float[np.ndarray, "draw prompt"], distinct: bool
    ) -> Float[np.ndarray, "draw category"]:
        found = np.zeros((len(weights), len(self._strata)))
        for i, strata in enumerate(self._strata):
            for rows in strata:
                w, kernel = weights[:, rows], self._kernel[np.ix_(rows, rows)]
                total, pairs = np.einsum("dp,dp->d", w @ kernel, w), w.sum(1) ** 2
                if distinct:
                    total, pairs = total - w**2 @ kernel.diagonal(), pairs - (w**2).sum(1)
                # a draw that is one prompt again and again has no pair: it says nothing
                found[:, i] += np.divide(total, pairs, out=np.full(len(w), np.nan), where=pairs > 0)
        return found

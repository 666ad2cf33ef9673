"""Inner products of differences in means: by hand, against every split, and against known directions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_directions import sides, two

from refusal.directions.products import Sides, differences, off_diagonal_mean, products


def test_two_categories_by_hand() -> None:
    # a: refused (3, 0), (5, 0); complied (0, 1), (0, -1): d = (4, 0). b: refused (0, 2), (2, 2); complied (0, 0) twice
    acts = np.array([[3, 0], [5, 0], [0, 1], [0, -1], [0, 2], [2, 2], [0, 0], [0, 0]], dtype=float)
    found = products(acts, sides(2, 2))
    np.testing.assert_allclose(differences(acts, sides(2, 2)), [[4, 0], [1, 2]])
    np.testing.assert_allclose(found.plain[0], [[16, 4], [4, 5]])
    # noise: sum of squared deviations / (n (n - 1)) of each side: a: 2/2 + 2/2, b: 2/2 + 0
    np.testing.assert_allclose(found.noise, [2, 1])
    np.testing.assert_allclose(found.unbiased[0], [14, 4])
    np.testing.assert_allclose(found.cosine[0, 0, 1], 4 / np.sqrt(16 * 5))
    np.testing.assert_allclose(found.ratio[0, 0, 1], 4 / np.sqrt(14 * 4))
    np.testing.assert_allclose(found.ceiling[0], [14 / 16, 4 / 5])


def test_the_unbiased_norm_is_the_mean_over_all_equal_halves() -> None:
    generator = np.random.default_rng(0)
    acts, where = generator.normal(size=(8, 5)), sides(1, 4)
    splits = list(combinations(range(4), 2))
    found = []
    for refused in splits:
        for complied in splits:
            first = acts[list(refused)].mean(0) - acts[[4 + row for row in complied]].mean(0)
            rest = [row for row in range(4) if row not in refused], [4 + r for r in range(4) if r not in complied]
            found.append(first @ (acts[rest[0]].mean(0) - acts[rest[1]].mean(0)))
    np.testing.assert_allclose(products(acts, where).unbiased[0, 0], np.mean(found))


def test_the_ratio_is_the_raw_cosine_over_the_ceilings_and_these_are_stepped_up_split_halves() -> None:
    found = products(two(0.6, 8, 30, np.random.default_rng(1)), sides(2, 8))
    ceiling, half = found.ceiling[0], found.split_half[0]
    np.testing.assert_allclose(found.ratio[0, 0, 1], found.cosine[0, 0, 1] / np.sqrt(ceiling[0] * ceiling[1]))
    np.testing.assert_allclose(ceiling, 2 * half / (1 + half))


def test_weights_of_one_are_the_prompts_as_they_are_and_a_common_shift_changes_nothing() -> None:
    generator = np.random.default_rng(2)
    acts, where = two(0.3, 6, 12, generator), sides(2, 6)
    plain, weighted = products(acts, where), products(acts, where, np.ones((1, 24)))
    weights = where.bootstrap(20, generator)
    drawn, shifted = products(acts, where, weights), products(acts + 100.0, where, weights)
    for name in ("plain", "unbiased"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(plain, name), atol=1e-9)
        np.testing.assert_allclose(getattr(shifted, name), getattr(drawn, name), atol=1e-6)


def test_a_draw_equals_the_differences_in_means_of_the_drawn_prompts() -> None:
    generator = np.random.default_rng(3)
    acts, where = two(0.3, 6, 12, generator), sides(2, 6)
    weights = where.bootstrap(1, generator)
    drawn = acts[np.repeat(np.arange(24), weights[0].astype(int))]
    d = differences(drawn, where)  # strata keep their size and order
    np.testing.assert_allclose(products(acts, where, weights).plain[0], d @ d.T, atol=1e-9)


@pytest.mark.parametrize("cosine", [0.0, 0.5, 1.0])
def test_the_ratio_finds_the_true_cosine_where_noise_hides_it(cosine: float) -> None:
    generator = np.random.default_rng(4)
    raw, ratio = [], []
    for _ in range(60):
        found = products(two(cosine, 20, 100, generator, size=4.0), sides(2, 20))
        raw.append(found.cosine[0, 0, 1])
        ratio.append(found.ratio[0, 0, 1])
    assert abs(np.mean(ratio) - cosine) < 0.05
    assert np.mean(raw) < 0.75 * cosine + 0.05


def test_the_interval_of_the_ratio_holds_the_true_cosine() -> None:
    generator, covered = np.random.default_rng(5), 0
    where = sides(2, 12)
    for _ in range(60):
        acts = two(0.5, 12, 40, generator, size=3.0)
        drawn = products(acts, where, where.bootstrap(200, generator)).ratio[:, 0, 1]
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        covered += low <= 0.5 <= high
    assert covered >= 50


def test_the_interval_of_the_raw_cosine_is_about_the_raw_cosine() -> None:
    generator = np.random.default_rng(6)
    where = sides(2, 10)
    acts = two(0.8, 10, 60, generator, size=3.0)
    drawn = products(acts, where, where.bootstrap(400, generator)).cosine[:, 0, 1]
    assert abs(np.median(drawn) - products(acts, where).cosine[0, 0, 1]) < 0.05


def test_without_signal_there_is_a_raw_cosine_but_no_ratio() -> None:
    acts = two(1.0, 10, 200, np.random.default_rng(7), size=0.0)
    found = products(acts, sides(2, 10))
    assert np.isfinite(found.cosine).all()
    assert not found.is_usable.any()
    assert np.isnan(found.ratio).all()
    assert np.isnan(off_diagonal_mean(found.ratio)[0])


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(2, 5), st.integers(1, 6), st.integers(0, 10**6))
def test_cosines_are_symmetric_bounded_and_do_not_depend_on_the_order_of_rows(
    n_categories: int, n_side: int, d_model: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    where = sides(n_categories, n_side)
    acts = generator.normal(size=(len(where), d_model))
    order = generator.permutation(len(where))
    found, mixed = products(acts, where), products(acts[order], where.subset(order))
    np.testing.assert_allclose(found.cosine, found.cosine.transpose(0, 2, 1))
    assert (np.abs(found.cosine) <= 1 + 1e-9).all()
    np.testing.assert_allclose(mixed.cosine, found.cosine, atol=1e-9)
    np.testing.assert_allclose(mixed.unbiased, found.unbiased, atol=1e-9)


def test_a_side_with_one_prompt_is_an_error_that_names_the_category() -> None:
    with pytest.raises(ValueError, match="hate: 1 refused and 2 complied"):
        Sides(np.zeros(3, int), np.array([True, False, False]), ("hate",))


def test_folds_are_balanced_within_each_category_and_side() -> None:
    where = sides(3, 7)
    fold = where.folds(2, np.random.default_rng(0))
    for stratum in np.unique(where.stratum):
        assert sorted(np.bincount(fold[where.stratum == stratum])) == [3, 4]

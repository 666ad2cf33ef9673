"""Intervals over pairs hold the truth as often as they say, however few pairs a category has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal.patching.localise import Criteria, locate
from refusal.patching.resampling import mean_over_pairs, pair_weights
from refusal.patching.tokens import READOUT
from refusal.patching.units import Mode, Patch, PatchedMetric, Unit
from refusal.sites import Site

FIVE_EACH = [name for name in "abcdefghij" for _ in range(5)]


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=20), st.integers(0, 9))
def test_every_draw_weighs_as_many_pairs_as_there_are(categories, seed):
    weights = pair_weights(categories, 50, np.random.default_rng(seed))
    assert weights.sum(1) == pytest.approx(np.full(50, len(categories)))
    assert (weights >= 0).all()


def test_the_mean_of_few_pairs_of_many_categories_has_its_variance():
    values = np.random.default_rng(0).standard_normal(50)
    drawn = pair_weights(FIVE_EACH, 40_000, np.random.default_rng(1)) @ values / 50
    of_category = values.reshape(10, 5).var(axis=1, ddof=1)
    assert drawn.var() == pytest.approx((of_category / 5).sum() / 100, rel=0.03)


def test_intervals_of_five_pairs_of_each_of_ten_categories_hold_the_truth():
    values = np.random.default_rng(2).standard_normal((1000, 50))
    means = pair_weights(FIVE_EACH, 1000, np.random.default_rng(3)) @ values.T / 50
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    assert ((low <= 0) & (high >= 0)).mean() > 0.92


def test_an_effect_from_a_single_pair_of_each_category_has_an_interval():
    change = np.array([[0.1, 0.9, 0.4, 0.6, 0.2, 0.8]])
    unit = Unit(Site.parse("mlp_0"), None, READOUT)
    found = PatchedMetric(Patch(Mode.DENOISE), (unit,), change, np.ones(6), np.zeros(6))
    (located,) = locate(found, list("abcdef"), np.random.default_rng(0), Criteria(n_draws=500))
    assert located.effect.low < 0.4 < 0.6 < located.effect.high


def test_a_single_pair_has_no_interval():
    found = mean_over_pairs(np.array([1.0]), ["a"], 100, np.random.default_rng(0))
    assert (found.value, found.low) == (1.0, None)

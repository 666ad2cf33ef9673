"""Sign flips and corrections for many tests, against hand-computed numbers and their laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal.multiplicity import benjamini_hochberg, flips_needed, holm, sign_flip_p

P = st.lists(st.floats(1e-6, 1), min_size=1, max_size=20).map(np.array)


def test_sign_flips_approach_the_share_among_all_sign_vectors():
    changes = np.array([1.0, 2.0, 3.0, -0.5])
    sums = [abs(np.dot(signs, changes)) for signs in itertools.product((-1, 1), repeat=4)]
    exact = np.mean(np.array(sums) >= abs(changes.sum()) - 1e-12)
    found = sign_flip_p(changes[None], 40_000, np.random.default_rng(0))
    assert found[0] == pytest.approx(exact, abs=0.01)
    assert exact == 4 / 16, "5.5 is reached by 5.5 and 6.5, each with both signs"


def test_the_smallest_p_is_that_of_the_flips_and_never_zero():
    found = sign_flip_p(np.full((1, 40), 1.0), 999, np.random.default_rng(0))
    assert found[0] == pytest.approx(1 / 1000)


def test_p_is_uniform_under_the_null():
    noise = np.random.default_rng(1).standard_normal((2000, 12))
    found = sign_flip_p(noise, 999, np.random.default_rng(2))
    assert np.quantile(found, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.04)


def test_pairs_without_a_measurement_are_left_out():
    changes = np.array([[1.0, np.nan, 2.0, 1.0], [np.nan] * 4])
    found = sign_flip_p(changes, 4000, np.random.default_rng(0))
    assert found[0] == pytest.approx(2 / 8, abs=0.03), "two of the eight sign vectors of three pairs"
    assert np.isnan(found[1])


def test_corrections_by_hand():
    p = np.array([0.01, 0.02, 0.03, 0.5, np.nan])
    assert holm(p)[:4].tolist() == pytest.approx([0.04, 0.06, 0.06, 0.5])
    assert benjamini_hochberg(p)[:4].tolist() == pytest.approx([0.04, 0.04, 0.04, 0.5])
    assert np.isnan(holm(p)[4])
    assert np.isnan(benjamini_hochberg(p)[4])


@given(P)
def test_corrections_keep_the_order_and_lie_between_p_and_bonferroni(p):
    for correct in (holm, benjamini_hochberg):
        found = correct(p)
        assert (found >= p - 1e-12).all()
        assert (found <= np.minimum(1, len(p) * p) + 1e-12).all()
        order = np.argsort(p, kind="stable")
        assert (np.diff(found[order]) >= -1e-12).all()
    assert (benjamini_hochberg(p) <= holm(p) + 1e-12).all()


@given(st.integers(1, 5000))
def test_enough_flips_for_the_smallest_p_to_pass(n_tests):
    assert n_tests / (1 + flips_needed(n_tests, 0.05)) < 0.05

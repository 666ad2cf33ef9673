"""Subspaces of categories: against scipy's angles and the plain decomposition, and where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from made_directions import sides
from scipy.linalg import subspace_angles

from refusal.directions.subspaces import category_basis, compare_subspaces, overlap


def cone(bases: np.ndarray, n_side: int, generator: np.random.Generator) -> np.ndarray:
    """Return prompts of which the refused ones lie in a category's subspace, the complied ones at the origin."""
    rows = []
    for basis in bases:
        weights = generator.normal(size=(n_side, len(basis))) * 3 + [4.0, *[0.0] * (len(basis) - 1)]
        rows += [weights @ basis, np.zeros((n_side, basis.shape[1]))]
    stacked = np.concatenate(rows)
    return stacked + 0.3 * generator.normal(size=stacked.shape)


def test_overlap_is_the_mean_squared_cosine_of_scipys_angles() -> None:
    generator = np.random.default_rng(0)
    first, second = (np.linalg.qr(generator.normal(size=(20, 3)))[0].T for _ in range(2))
    expected = np.mean(np.cos(subspace_angles(first.T, second.T)) ** 2)
    assert overlap(first, second) == pytest.approx(expected)
    assert overlap(first, first) == pytest.approx(1)


def test_a_basis_spans_the_leading_right_singular_vectors() -> None:
    generator = np.random.default_rng(1)
    refused, complied = generator.normal(size=(9, 30)) + 2, generator.normal(size=(7, 30))
    basis = category_basis(refused, complied, 3)
    expected = np.linalg.svd(refused - complied.mean(0), full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs(basis @ expected.T), np.eye(3), atol=1e-9)


def test_categories_with_one_subspace_are_told_from_those_with_their_own() -> None:
    generator = np.random.default_rng(2)
    everything = np.linalg.qr(generator.normal(size=(40, 9)))[0].T
    shared = compare_subspaces(cone(np.stack([everything[:3]] * 3), 24, generator), sides(3, 24), 3, 10, generator)
    apart = compare_subspaces(cone(everything.reshape(3, 3, 40), 24, generator), sides(3, 24), 3, 10, generator)
    assert shared.mean_ratio.value == pytest.approx(1, abs=0.05)
    assert apart.mean_ratio.value == pytest.approx(0, abs=0.05)
    for found in (shared, apart):
        low, value, high = found.mean_ratio.low, found.mean_ratio.value, found.mean_ratio.high
        assert low is not None
        assert value is not None
        assert high is not None
        assert low <= value <= high
    assert max(shared.angles["ash"]["birch"]) < 15
    assert min(apart.angles["ash"]["birch"]) > 60
    assert shared.chance == 3 / 40


def test_few_prompts_lower_the_rank_and_noise_has_no_ratio() -> None:
    generator = np.random.default_rng(3)
    found = compare_subspaces(generator.normal(size=(24, 400)), sides(2, 6), 5, 20, generator)
    assert found.rank == 2
    assert found.mean_ratio.value is None
    assert "ceiling" in (found.mean_ratio.reason or "")

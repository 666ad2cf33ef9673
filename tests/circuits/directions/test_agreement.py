"""Agreement of directions with circuits: correlation, Mantel test and jackknife, by hand and under the null."""

from __future__ import annotations

import numpy as np
import pytest
from direction_records import geometry, transfer
from made_directions import NAMES
from synthetic_results import MODULAR, MONOLITHIC, UNDETERMINED, World, comparison

from circuits.directions.agreement import compare_with_circuits, matrix_agreement
from circuits.directions.verdict import Answer, state
from refusal.config import AnalysisConfig
from refusal.measures import as_matrix

SIX = NAMES[:6]
TWO_GROUPS = World("made", "PARTIALLY MODULAR", (SIX[::2], SIX[1::2]), categories=SIX)


def test_correlation_and_difference_by_hand() -> None:
    first = np.array([[1, 0.2, 0.4], [0.6, 1, 0.8], [0.1, 0.3, 1]])
    second = np.array([[1, 0.1, 0.5], [0.7, 1, 0.9], [0.0, 0.4, 1]])
    names = ("a", "b", "c")
    found = matrix_agreement(as_matrix(first, names), as_matrix(second, names), permutations=0)
    x, y = (np.array([m[0, 1], m[0, 2], m[1, 0], m[1, 2], m[2, 0], m[2, 1]]) for m in (first, second))
    assert found.correlation.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.mean_difference == pytest.approx(0.1)
    assert (found.mean_directions, found.n_pairs, found.p) == (pytest.approx(x.mean()), 6, None)


def blocks(noise: float, seed: int) -> np.ndarray:
    """Return the transfer of ten categories in two groups with noise."""
    same = np.arange(10) % 2 == np.arange(10)[:, None] % 2
    return np.where(same, 0.9, 0.1) + noise * np.random.default_rng(seed).normal(size=(10, 10))


def test_the_same_groups_agree_with_a_small_p_and_an_interval_around_the_value() -> None:
    found = matrix_agreement(as_matrix(blocks(0.1, 0), NAMES), as_matrix(blocks(0.1, 1), NAMES), permutations=200)
    assert found.correlation.value is not None
    assert found.correlation.value > 0.9
    assert found.correlation.low is not None
    assert found.correlation.high is not None
    assert 0.7 < found.correlation.low < found.correlation.value < found.correlation.high < 1
    assert found.p is not None
    assert found.p < 0.02


def test_p_is_uniform_when_matrices_have_nothing_to_do_with_each_other() -> None:
    generator = np.random.default_rng(2)
    found = []
    for _ in range(60):
        order = generator.permutation(10)
        other = blocks(0.2, int(generator.integers(10**6)))[np.ix_(order, order)]
        matrices = as_matrix(blocks(0.2, int(generator.integers(10**6))), NAMES), as_matrix(other, NAMES)
        found.append(matrix_agreement(*matrices, permutations=49, seed=int(generator.integers(10**6))).p or 0)
    assert 0.35 < np.mean(found) < 0.65
    assert np.mean(np.array(found) <= 0.1) < 0.25


def test_matrices_that_are_all_alike_have_no_correlation_but_a_difference() -> None:
    flat = np.full((10, 10), 0.98)
    found = matrix_agreement(as_matrix(flat, NAMES), as_matrix(flat - 0.02, NAMES))
    assert found.correlation.value is None
    assert found.correlation.reason == "all pairs are alike for directions (standard deviation 0.000)"
    assert found.mean_difference == pytest.approx(0.02)
    assert (found.p, found.rank_correlation) == (None, None)


def test_unmeasured_pairs_and_missing_categories_are_left_out() -> None:
    first, second = blocks(0.1, 3), blocks(0.1, 4)
    first[0, 1] = np.nan
    found = matrix_agreement(as_matrix(first, NAMES), as_matrix(second[:8, :8], NAMES[:8]), permutations=20)
    assert found.n_pairs == 8 * 7 - 1
    few = matrix_agreement(as_matrix(first[:2, :2], NAMES[:2]), as_matrix(second, NAMES))
    assert few.correlation.reason == "fewer than three categories were measured in both"


@pytest.mark.parametrize(
    ("groups", "world", "agrees"), [(2, TWO_GROUPS, True), (1, TWO_GROUPS, False), (6, UNDETERMINED, None)]
)
def test_directions_agree_with_a_verdict_that_says_the_same(groups: int, world: World, agrees: bool | None) -> None:
    moved = [transfer(1.0, groups)]
    said = state(geometry(groups), moved, "residuals_2", AnalysisConfig())
    found = compare_with_circuits(said, geometry(groups), moved, comparison(world), permutations=50)
    assert found.agrees is agrees
    assert found.verdict == world.verdict
    if world is TWO_GROUPS:
        assert found.groups_ari == pytest.approx(1.0 if groups == 2 else 0.0)
    if agrees:
        assert found.transfer is not None
        assert found.cosine is not None
        assert (found.transfer.correlation.value or 0) > 0.9


def test_a_statement_that_cannot_tell_neither_agrees_nor_disagrees() -> None:
    said = state(geometry(1), [], None, AnalysisConfig())
    for world in (MONOLITHIC, MODULAR):
        found = compare_with_circuits(said, geometry(1), [], comparison(world), permutations=10)
        assert (found.answer, found.agrees, found.transfer, found.cosine) == (Answer.CANNOT_TELL, None, None, None)
        assert found.groups_ari is None

"""The structural measures, their ceilings, and the original rule against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from circuits.similarity import (
    compare_structure,
    correlation_circuit,
    cosine,
    jaccard,
    original_similarity,
    original_verdict,
    weighted_jaccard,
)

VECTORS = arrays(np.float64, 6, elements=st.floats(-5, 5, allow_subnormal=False).map(lambda x: round(x, 3)))


@given(VECTORS, VECTORS)
def test_weighted_jaccard_is_symmetric_and_within_zero_and_one(a, b):
    value = weighted_jaccard(a, b)
    assert np.isnan(value) or 0 <= value <= 1
    np.testing.assert_equal(value, weighted_jaccard(b, a))


@given(VECTORS.filter(lambda a: np.abs(a).sum() > 0))
def test_measures_of_identical_circuits_are_one(a):
    assert weighted_jaccard(a, a) == pytest.approx(1)
    assert cosine(a, a) == pytest.approx(1)


def test_weighted_jaccard_when_signs_differ_shares_nothing():
    assert weighted_jaccard(np.array([1.0, 2.0]), np.array([1.0, -2.0])) == pytest.approx(1 / 5)


@pytest.mark.parametrize("n_shared", range(10))
def test_jaccard_when_one_more_node_is_shared_rises(n_shared):
    def overlap(shared: int) -> float:
        a, b = np.zeros(30, bool), np.zeros(30, bool)
        a[:10] = True
        b[:shared] = True
        b[10 : 20 - shared] = True
        return jaccard(a, b)

    assert overlap(n_shared + 1) > overlap(n_shared)


def test_compare_structure_when_categories_share_one_mechanism_reaches_one_after_the_ceiling():
    generator = np.random.default_rng(0)
    signal = generator.normal(size=200)
    halves = signal + 0.7 * generator.normal(size=(2, 4, 200))
    result = compare_structure(halves, cosine)
    off_diagonal = ~np.eye(4, dtype=bool)
    assert result.raw[off_diagonal].mean() < 0.75  # noise alone keeps the raw value low
    assert result.normalised[off_diagonal].mean() == pytest.approx(1, abs=0.05)
    assert result.normalised.diagonal() == pytest.approx(np.ones(4))


def test_compare_structure_by_hand():
    # cosines: <1,1'> = 1, <2,2'> = 1, cross pairings 0.6 and 0.8
    halves = np.array([[[1.0, 0.0], [0.8, 0.6]], [[1.0, 0.0], [0.6, 0.8]]])
    result = compare_structure(halves, cosine)
    assert result.raw[0, 1] == pytest.approx((0.6 + 0.8) / 2)
    assert result.ceiling == pytest.approx([1, 0.96])
    assert result.normalised[0, 1] == pytest.approx(0.7 / np.sqrt(0.96))


def test_compare_structure_when_a_category_is_all_noise_gives_no_ratio():
    halves = np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    assert np.isnan(compare_structure(halves, cosine).normalised[0, 1])


def test_correlation_circuit_by_hand():
    behaviour = np.array([1, 1, 0, 0])
    first = np.array([[1.0, 5.0, 1.0], [1.0, 5.0, 0.0], [0.0, 5.0, 1.0], [0.0, 5.0, 0.0]])
    second = np.array([[2.0, 0.0], [2.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    circuit = correlation_circuit([first, second], behaviour)
    # latent 0 of each site follows the behaviour, the others are constant or unrelated
    assert circuit.importance == pytest.approx([1, 0, 0, 1, 0])
    assert circuit.nodes.tolist() == [True, False, False, True, False]
    assert circuit.edges == frozenset({(0, 3)})


def test_original_similarity_of_identical_circuits_with_edges_is_one():
    generator = np.random.default_rng(1)
    behaviour = np.repeat([1, 0], 20)
    latents = [behaviour[:, None] * generator.uniform(0.5, 1.5, 6) + generator.normal(size=(40, 6)) for _ in range(2)]
    circuit = correlation_circuit(latents, behaviour)
    assert len(circuit.edges) > 0
    assert original_similarity(circuit, circuit) == pytest.approx(1)


def test_original_similarity_without_edges_cannot_pass_seven_tenths():
    circuit = correlation_circuit([np.random.default_rng(2).normal(size=(40, 6))], np.repeat([1, 0], 20))
    assert original_similarity(circuit, circuit) == pytest.approx(0.7)  # the defect that the baseline keeps


@pytest.mark.parametrize(
    ("average", "verdict"),
    [
        (1.0, "MONOLITHIC"),
        (0.8, "MONOLITHIC"),
        (0.79, "PARTIALLY MODULAR"),
        (0.5, "PARTIALLY MODULAR"),
        (0.49, "MODULAR"),
    ],
)
def test_original_verdict_at_its_thresholds(average, verdict):
    assert original_verdict(average, 0.8, 0.5) == verdict

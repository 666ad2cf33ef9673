"""How many directions: data made with a known number, and the arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
from made_directions import of_rank, sides

from refusal.directions.components import needed_directions, spectrum
from refusal.directions.products import products


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_the_number_of_directions_is_found_where_it_is_known(rank: int) -> None:
    for seed in range(3):
        acts = of_rank(rank, seed)
        needed = needed_directions(acts, sides(10, 30), 5, np.random.default_rng(seed))
        assert needed.chosen == rank
        assert needed.for_most is not None
        assert needed.for_most <= rank
        assert needed.explained[0] == 0
        assert needed.explained[needed.best] == 1


def test_more_components_than_there_are_make_the_prediction_worse() -> None:
    needed = needed_directions(of_rank(3, 0), sides(10, 30), 5, np.random.default_rng(0))
    assert needed.error[10] > needed.error[3]
    assert needed.error[0] == 1
    assert needed.error_se[needed.best] == 0


def test_errors_are_those_of_the_definition() -> None:
    from refusal.directions.components import _errors

    acts, where = of_rank(2, 1)[: 20 * 6], sides(2, 30)
    is_held_out = where.folds(3, np.random.default_rng(0)) == 0
    found = _errors(acts, where, is_held_out)
    d = {}
    for chosen in (True, False):
        rows = [
            (np.flatnonzero((where.category == i) & (where.is_refused == side) & (is_held_out == chosen)))
            for i in (0, 1)
            for side in (True, False)
        ]
        d[chosen] = np.stack([acts[rows[2 * i]].mean(0) - acts[rows[2 * i + 1]].mean(0) for i in (0, 1)])
    norm = np.linalg.norm(d[False], axis=1, keepdims=True)
    a, b = d[False] / norm, d[True] / norm
    first = np.linalg.svd(a, full_matrices=False)[2][0]
    expected = [(b**2).sum(), ((b - np.outer(a @ first, first)) ** 2).sum(), ((b - a) ** 2).sum()]
    np.testing.assert_allclose(found, expected)


def test_the_spectrum_of_one_direction_and_of_orthogonal_ones() -> None:
    for rank, number in ((1, 1.0), (10, 10.0)):
        acts, where = of_rank(rank, 2, size=12.0), sides(10, 30)
        drawn = products(acts, where, where.bootstrap(50, np.random.default_rng(0)))
        found = spectrum(products(acts, where), drawn, len(where))
        assert sum(each.value or 0 for each in found.raw) == pytest.approx(1)
        assert found.effective_number.value == pytest.approx(number, rel=0.05)
        assert found.effective_number.low is not None
        assert found.corrected[0].value == pytest.approx(1 / number, rel=0.2)


def test_without_signal_there_is_no_corrected_spectrum() -> None:
    acts = np.random.default_rng(0).normal(size=(600, 64))
    where = sides(10, 30)
    drawn = products(acts, where, where.bootstrap(20, np.random.default_rng(0)))
    assert spectrum(products(acts, where), drawn, 600).corrected == ()

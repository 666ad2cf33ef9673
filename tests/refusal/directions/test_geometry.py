"""The geometry as records: what it needs, what it gives where there is nothing, and that it survives a file."""

from __future__ import annotations

import numpy as np
import pytest
from direction_records import geometry
from made_directions import layers, sides

from refusal.directions.geometry import GeometryOptions, direction_geometry, layer_geometry
from refusal.directions.geometry_records import LayerGeometry
from refusal.measures import as_matrix, from_matrix

FEW = GeometryOptions(draws=40, jackknife_groups=3)


def test_groups_of_directions_are_seen_in_every_number() -> None:
    for groups in (1, 2, 6):
        found = geometry(groups)[0]
        same = [[(i - j) % groups == 0 for j in range(6)] for i in range(6)]
        np.testing.assert_allclose(from_matrix(found.ratio, list(found.ratio)), np.array(same, float), atol=0.2)
        assert (found.needed.chosen, found.needed.for_most) == (groups, groups)
        assert found.spectrum.effective_number.value == pytest.approx(groups, rel=0.1)


def test_records_survive_json_and_the_same_seed_gives_the_same_numbers() -> None:
    acts, where = layers(2, 1)
    first, second = (direction_geometry(acts, where, FEW)[0] for _ in range(2))
    assert LayerGeometry.model_validate_json(first.model_dump_json()) == first == second
    other = direction_geometry(acts, where, GeometryOptions(draws=40, jackknife_groups=3, seed=1))[0]
    assert other.cosine == first.cosine
    assert other.cosine_ci != first.cosine_ci


@pytest.mark.parametrize(("n_categories", "n_side", "d_model"), [(2, 4, 5), (2, 4, 1), (3, 5, 300)])
def test_few_prompts_and_few_dimensions_give_numbers_or_reasons(n_categories: int, n_side: int, d_model: int) -> None:
    where = sides(n_categories, n_side)
    found = layer_geometry(np.random.default_rng(0).normal(size=(len(where), d_model)), where, 0, FEW)
    for each in (found.mean_cosine, found.mean_ratio, found.subspaces.mean_ratio, found.spectrum.effective_number):
        assert each.value is not None or each.reason


def test_a_layer_at_which_all_prompts_are_the_same_has_no_directions() -> None:
    found = layer_geometry(np.ones((24, 8)), sides(2, 6), 0, FEW)
    assert found.mean_cosine.value is None
    assert found.norm == {"ash": None, "birch": None}
    assert found.ratio["ash"]["birch"] is None
    assert (found.needed.chosen, found.needed.for_most) == (0, None)


def test_what_cannot_be_compared_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 category has nothing to be compared with"):
        layer_geometry(np.zeros((12, 8)), sides(1, 6), 0)
    with pytest.raises(ValueError, match="a category has 3 prompts on a side; 4 are needed"):
        layer_geometry(np.zeros((12, 8)), sides(2, 3), 0)
    with pytest.raises(ValueError, match="residuals_3: some activations are not finite"):
        layer_geometry(np.full((24, 8), np.nan), sides(2, 6), 3)


def test_a_matrix_round_trips_with_what_was_not_measured() -> None:
    values = np.array([[1.0, np.nan], [0.5, 1.0]])
    np.testing.assert_array_equal(from_matrix(as_matrix(values, ("a", "b")), ("a", "b")), values)
    assert from_matrix({}, ()).shape == (0, 0)

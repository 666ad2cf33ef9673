"""Projections: by hand, and out of sample where in-sample numbers would be perfect on noise."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from made_directions import of_rank, sides

from refusal.directions.products import differences
from refusal.directions.projections import (
    ALL,
    Projection,
    cohen_d,
    held_out_projections,
    project,
    projection_table,
    separation_table,
    write_table,
)

HAND = Projection(
    "by hand",
    np.array([[1.0], [3.0], [0.0], [-2.0], [7.0]]),
    ("a", "b", "a", "b", "b"),
    ("refused", "refused", "complied", "complied", "partly_refused"),
    is_held_out=False,
)


def test_a_projection_is_the_length_along_the_unit_vector() -> None:
    acts = np.array([[[3.0, 4.0], [1.0, 1.0]]])
    np.testing.assert_allclose(project(acts, np.array([[0.0, 5.0], [3.0, 4.0]])), [[4.0, 7 / 5]])
    np.testing.assert_allclose(project(acts, np.zeros((2, 2))), [[0.0, 0.0]])


def test_tables_by_hand() -> None:
    table = projection_table([HAND], n_draws=100).set_index(["category", "behaviour"])
    every = table.loc[(ALL, "refused")]
    assert (every.n, every["mean"]) == (2, 2)
    assert every.sd == pytest.approx(np.sqrt(2))
    assert 1 <= every.low <= 2 <= every.high <= 3
    assert (table.loc[("b", "partly_refused")].n, table.loc[("b", "partly_refused")]["mean"]) == (1, 7)
    assert np.isnan(table.loc[("b", "partly_refused")].sd)
    assert np.isnan(table.loc[("a", "refused")].low)
    found = separation_table([HAND]).set_index("category")
    assert (found.loc[ALL].n_refused, found.loc[ALL].n_complied, found.loc[ALL].auc) == (2, 2, 1)
    assert found.loc[ALL].d == pytest.approx(3 / np.sqrt(2))
    assert np.isnan(found.loc["a"].d)
    assert not found.held_out.any()


def test_cohens_d_and_its_interval() -> None:
    generator = np.random.default_rng(0)
    values, is_positive = generator.normal(size=400), np.repeat([True, False], 200)
    found = cohen_d(values + 1.5 * is_positive, is_positive)
    assert found.value == pytest.approx(1.5, abs=0.25)
    # var d = (n1 + n2) / (n1 n2) + d^2 / (2 (n1 + n2))
    half = 1.959964 * np.sqrt(400 / 40000 + found.value**2 / 800)
    assert (found.low, found.high) == (pytest.approx(found.value - half), pytest.approx(found.value + half))
    assert cohen_d(np.ones(4), np.array([True, True, False, False])).reason is not None


def test_noise_separates_perfectly_in_sample_and_not_at_all_out_of_sample() -> None:
    where = sides(2, 10)
    acts = np.random.default_rng(1).normal(size=(40, 2, 500))
    seen = project(acts, np.stack([differences(acts[:, layer], where).sum(0) for layer in (0, 1)]))
    held_out = held_out_projections(acts, where)
    names, behaviour = held_out.category, held_out.behaviour
    tables = [separation_table([Projection("d", seen, names, behaviour, False)]), separation_table([held_out])]
    in_sample, out = (table[table.category == ALL] for table in tables)
    assert (in_sample.auc == 1).all()
    assert (in_sample.d > 3).all()
    assert (out.auc_low < 0.5).all()
    assert (out.d_low < 0).all()


def test_a_held_out_projection_uses_the_other_folds_alone() -> None:
    acts, where = of_rank(3, 0)[: 2 * 60, None], sides(2, 30)
    found = held_out_projections(acts, where, category="birch", n_folds=3, seed=4)
    fold = where.folds(3, np.random.default_rng([4, 10]))
    rows = np.flatnonzero((where.category == 1) & (fold != fold[5]))
    kept = acts[rows, 0]
    direction = kept[where.is_refused[rows]].mean(0) - kept[~where.is_refused[rows]].mean(0)
    assert found.values[5, 0] == pytest.approx(acts[5, 0] @ direction / np.linalg.norm(direction))
    assert found.direction == "birch"
    assert found.is_held_out


def test_a_table_is_written_as_csv_and_read_back(tmp_path) -> None:
    table = separation_table([HAND])
    path = tmp_path / "folder" / "separation.csv"
    write_table(table, path)
    pd.testing.assert_frame_equal(pd.read_csv(path), table, check_dtype=False, rtol=1e-6)
    assert [each.name for each in path.parent.iterdir()] == ["separation.csv"]


def test_rows_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 rows for 1 categories"):
        Projection("d", np.zeros((2, 1)), ("a",), ("refused", "complied"), False)

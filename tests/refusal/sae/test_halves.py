"""Halves of the training prompts: disjoint, alike, and trained from starts of their own."""

from __future__ import annotations

import pytest
import torch
from known_features import make_rows

from refusal.sae.checkpoint import Checkpoint
from refusal.sae.halves import half_stability, is_large_enough, split_halves
from refusal.sae.recipe import Recipe
from refusal.sae.rows import TensorRows, split_rows
from refusal.sae.trainer import Task


def halves_of(n, rows_a_prompt=1, categories=("a", "b", "b")):
    ids = [f"{'safe' if row % 2 else 'toxic'}-{row // rows_a_prompt:05d}" for row in range(n)]
    of_row = [categories[row // rows_a_prompt % len(categories)] for row in range(n)]
    split = split_rows(ids, ["all"] * n, of_row, 0)
    return ids, of_row, split, split_halves(split, ids, of_row, 0)


@pytest.mark.parametrize("rows_a_prompt", [1, 3])
def test_halves_share_no_prompt_and_have_the_same_categories(rows_a_prompt):
    ids, of_row, split, halves = halves_of(120, rows_a_prompt)
    first, second = ({ids[row] for row in rows.tolist()} for rows in halves.rows)
    assert not first & second
    assert not (first | second) & {ids[row] for row in split.heldout.tolist()}
    for rows in halves.rows:
        assert tuple(of_row[row] for row in rows.tolist()) == halves.categories
    assert 2 * len(halves) >= len(split.train) - 2 * rows_a_prompt * 2


def test_halves_are_random_in_everything_but_category():
    ids, _, _, halves = halves_of(600)
    shares = [sum(ids[row].startswith("safe") for row in rows.tolist()) / len(halves) for rows in halves.rows]
    assert shares == pytest.approx([0.5, 0.5], abs=0.1), "ids sort by source, halves must not"


def test_a_source_of_a_half_gives_its_rows_and_the_held_out_ones():
    _, _, split, halves = halves_of(120)
    acts = torch.arange(120.0)[:, None]
    source = halves.source(TensorRows(acts), 1)
    assert source.take(halves.split.train)[:, 0].tolist() == halves.rows[1].tolist()
    assert source.take(halves.split.heldout)[:, 0].tolist() == split.heldout.tolist()


def test_a_known_dictionary_is_found_from_both_halves_and_noise_is_not(tmp_path):
    rows = torch.cat([make_rows(seed) for seed in range(1, 6)])
    _, _, _, halves = halves_of(len(rows))
    noise = torch.randn(len(rows), 16, generator=torch.Generator().manual_seed(0))
    tasks = [Task("residuals_0", 0, TensorRows(rows)), Task("residuals_1", 0, TensorRows(noise))]
    recipe = Recipe(d_sae=24, k=2, steps=2000, batch_size=64, lr=0.01)
    known, unknown = half_stability(tasks, halves, recipe, Checkpoint(tmp_path, "abc"))
    assert known.weighted_mean_cosine > 0.85
    assert unknown.weighted_mean_cosine < 0.75
    assert known.mean_cosine < 1 - 1e-4, "the halves have starts of their own"


def test_too_few_rows_for_halves_are_noticed():
    _, _, _, halves = halves_of(20)
    assert not is_large_enough(halves, Recipe(d_sae=64, k=2, steps=10, batch_size=4, lr=0.01))
    assert is_large_enough(halves, Recipe(d_sae=16, k=2, steps=10, batch_size=4, lr=0.01))

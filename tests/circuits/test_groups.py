"""Groups of categories from transfer matrices whose blocks are known."""

from __future__ import annotations

import numpy as np
import pytest

from circuits.groups import find_groups, groups_stability, symmetrised


def blocks(sizes, inside=0.95, between=0.02, noise=0.0, seed=0):
    member = np.repeat(np.arange(len(sizes)), sizes)
    truth = np.where(member[:, None] == member[None, :], inside, between)
    generator = np.random.default_rng(seed)
    return truth + noise * generator.normal(size=truth.shape), member


@pytest.mark.parametrize("sizes", [(10,), (8, 2), (7, 3), (4, 3, 3), (2, 2, 2, 2, 2), (1,) * 10])
def test_find_groups_when_blocks_are_planted_finds_them(sizes):
    whole, member = blocks(sizes, noise=0.08, seed=1)
    folds = np.stack([blocks(sizes, noise=0.12, seed=seed)[0] for seed in (2, 3)])
    assert find_groups(whole, folds).tolist() == member.tolist()


def test_find_groups_when_one_entry_is_unmeasured_uses_the_other_direction():
    whole, member = blocks((3, 2))
    whole[0, 1] = np.nan
    assert find_groups(whole, np.stack([whole, whole])).tolist() == member.tolist()


def test_find_groups_when_noise_has_no_blocks_finds_none():
    generator = np.random.default_rng(0)
    whole = 0.05 + 0.1 * generator.normal(size=(10, 10))
    folds = 0.05 + 0.1 * generator.normal(size=(2, 10, 10))
    assert find_groups(whole, folds).tolist() == list(range(10))


def test_find_groups_when_one_category_is_a_little_less_shared_keeps_it():
    whole, _ = blocks((10,), inside=0.98, noise=0.01)
    whole[3, :] -= 0.08
    whole[:, 3] -= 0.08
    assert find_groups(whole, np.stack([whole, whole])).tolist() == [0] * 10


def test_find_groups_when_topics_overlap_below_half_keeps_categories_apart():
    whole, _ = blocks((1,) * 10, noise=0.03)
    for i, j in ((0, 9), (4, 9), (2, 3)):
        whole[i, j] = whole[j, i] = 0.45
    assert find_groups(whole, np.stack([whole, whole])).tolist() == list(range(10))


def test_groups_stability_of_clear_blocks_is_one_and_of_noise_lower():
    clear = np.stack([blocks((8, 2), noise=0.05, seed=seed)[0] for seed in range(12)])
    assert groups_stability(blocks((8, 2))[1], clear) == pytest.approx(1)
    noisy = np.stack([np.random.default_rng(seed).uniform(0, 1, (10, 10)) for seed in range(12)])
    assert groups_stability(blocks((8, 2))[1], noisy) < 0.7


def test_symmetrised_by_hand():
    result = symmetrised(np.array([[1.0, 0.4], [0.8, 1.0]]))
    assert result == pytest.approx(np.array([[1.0, 0.6], [0.6, 1.0]]))

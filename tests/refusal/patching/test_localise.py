"""Which units of a map matter: the numbers by hand, false findings under the null, and units that hinder."""

from __future__ import annotations

import numpy as np
import pytest

from refusal.patching.localise import Criteria, critical, locate
from refusal.patching.tokens import READOUT
from refusal.patching.units import Mode, Patch, PatchedMetric, Unit
from refusal.sites import Site


def made(change, gap=None):
    """Return a map with given changes of m, denoising."""
    gap = np.ones(change.shape[1]) if gap is None else gap
    units = tuple(Unit(Site.parse(f"mlp_{row}"), None, READOUT) for row in range(len(change)))
    return PatchedMetric(Patch(Mode.DENOISE), units, change, gap, np.zeros(change.shape[1]))


def test_the_effect_is_a_ratio_of_sums_with_an_interval_over_pairs():
    change = np.array([[2.0, 0.0, 1.0, 0.0, 4.0, 1.0]])
    gap = np.array([4.0, 1.0, 1.0, 1.0, 8.0, 1.0])
    (found,) = locate(made(change, gap), [""] * 6, np.random.default_rng(0))
    assert found.effect.value == 8 / 16
    assert 0.1 < found.effect.low < 0.5 < found.effect.high < 0.9
    assert found.effect.n == 6


def test_under_the_null_hardly_any_map_has_a_critical_unit():
    generator = np.random.default_rng(0)
    criteria = Criteria(min_effect=0.0, n_draws=100)
    false = sum(
        bool(critical(locate(made(generator.standard_normal((16, 12))), [""] * 12, generator, criteria)))
        for _ in range(60)
    )
    assert false <= 8, "the chance of any in a map is at most .05"


def test_a_planted_unit_is_found_and_one_that_hinders_is_not_critical():
    generator = np.random.default_rng(1)
    change = 0.1 * generator.standard_normal((8, 20))
    change[3] += 0.5
    change[5] -= 0.5
    located = locate(made(change), ["a", "b"] * 10, generator, Criteria(n_draws=100))
    assert [str(each.unit) for each in critical(located)] == ["mlp_3 at -1"]
    assert located[5].p_corrected < 0.05
    assert located[5].effect.value < -0.4


def test_a_sure_effect_that_is_tiny_is_not_critical():
    change = np.full((2, 30), 0.01)
    located = locate(made(change), [""] * 30, np.random.default_rng(0), Criteria(min_effect=0.05, n_draws=100))
    assert located[0].p_corrected < 0.05
    assert not critical(located)


def test_pairs_in_which_a_unit_was_not_measured_count_for_nothing():
    change = np.array([[1.0, np.nan, 1.0, 1.0, 1.0, 1.0], [np.nan] * 6])
    located = locate(made(change, np.full(6, 2.0)), [""] * 6, np.random.default_rng(0))
    assert located[0].effect.value == 0.5
    assert located[0].effect.n == 5
    assert located[1].effect.value is None
    assert located[1].p is None
    assert not located[1].is_critical


@pytest.mark.parametrize("correction", ["holm", "benjamini-hochberg"])
def test_holm_is_never_less_strict(correction):
    generator = np.random.default_rng(2)
    change = generator.standard_normal((10, 15)) + np.linspace(0, 1, 10)[:, None]
    found = locate(made(change), [""] * 15, np.random.default_rng(0), Criteria(correction=correction, n_draws=100))
    other = locate(made(change), [""] * 15, np.random.default_rng(0), Criteria(correction="holm", n_draws=100))
    assert {str(each.unit) for each in critical(other)} <= {str(each.unit) for each in critical(found)}


def test_the_largest_come_first_and_no_more_than_asked_for():
    change = np.array([[0.2] * 20, [0.9] * 20, [0.5] * 20])
    located = locate(made(change), [""] * 20, np.random.default_rng(0), Criteria(n_draws=100))
    assert [each.unit.site.layer for each in critical(located)] == [1, 2, 0]
    assert len(critical(located, 2)) == 2

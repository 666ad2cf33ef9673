"""Two models on the same pairs: numbers by hand, a model against itself, and shapes that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from patching_runs import planted_runs, runs_of
from tiny_models import make_model

from refusal.errors import InputError
from refusal.patching.compare_models import require_same_shape
from refusal.patching.exact import patch_units
from refusal.patching.model_differences import compare_directions, compare_maps, cosine, effect_size
from refusal.patching.tokens import READOUT
from refusal.patching.units import Mode, Patch, PatchedMetric, Unit, head_units
from refusal.sites import Site
from refusal.stats import bootstrap_weights

RESIDUALS_1 = Site.parse("residuals_1")


def made(effects):
    units = tuple(Unit(Site.parse(f"mlp_{row}"), None, READOUT) for row in range(len(effects)))
    n = effects.shape[1]
    return PatchedMetric(Patch(Mode.DENOISE), units, effects * 2.0, np.full(n, 2.0), np.zeros(n))


def test_differences_are_paired():
    generator = np.random.default_rng(0)
    shared = generator.standard_normal(30)  # common to both models, so that it cancels
    first = made(np.stack([shared, shared]))
    second = made(np.stack([shared + 0.2 + 0.01 * generator.standard_normal(30), shared]))
    moved, same = compare_maps(first, second, [""] * 30, 200, generator)
    assert moved.difference.value == pytest.approx(0.2, abs=0.01)
    assert moved.difference.low > 0.19
    assert moved.p_corrected < 0.01
    assert moved.effect_size > 10
    assert (same.difference.value, same.effect_size, same.p_corrected) == (0, None, 1)


def test_the_effect_size_is_mean_over_standard_deviation():
    assert effect_size(np.array([0.0, 2.0])) == pytest.approx(1 / np.sqrt(2))
    assert effect_size(np.array([1.0, np.nan, 3.0])) == pytest.approx(2 / np.sqrt(2))
    assert effect_size(np.array([1.0])) is None
    assert effect_size(np.array([1.0, 1.0])) is None
    assert np.isnan(cosine(np.zeros(3), np.ones(3)))


def test_a_model_against_itself_differs_nowhere():
    runs = planted_runs("modular")
    found = patch_units(runs, head_units(runs.model, [READOUT]), Patch(Mode.NOISE))
    cells = compare_maps(found, found, runs.categories, 100, np.random.default_rng(0))
    assert all(cell.difference.value == 0 and cell.p_corrected == 1 for cell in cells)
    weights = bootstrap_weights(len(runs), 100, np.random.default_rng(0))
    same = compare_directions(runs, runs, RESIDUALS_1, weights, np.random.default_rng(0))
    assert same.cosine.value == pytest.approx(1)
    assert 0.5 < same.ceiling_first < 1


def test_other_models_have_other_directions_below_their_ceilings():
    first, second = planted_runs("monolithic"), planted_runs("modular")
    assert [pair.pair.id for pair in first.pairs] == [pair.pair.id for pair in second.pairs]
    weights = bootstrap_weights(len(first), 100, np.random.default_rng(0))
    found = compare_directions(first, second, RESIDUALS_1, weights, np.random.default_rng(0))
    assert found.cosine.high < min(found.ceiling_first, found.ceiling_second)


def test_models_of_another_shape_are_refused_in_words():
    with pytest.raises(InputError, match=r"llama has 3 layers, 4 heads.*planted/modular has 4 layers.*same shape"):
        require_same_shape(make_model("llama"), planted_runs("modular").model)
    assert len(runs_of(make_model("llama"))) == 4

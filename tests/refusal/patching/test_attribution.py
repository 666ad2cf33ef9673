"""Attribution patching: exact where the net is linear, complete along the path, and close on planted models."""

from __future__ import annotations

import numpy as np
import pytest
from patching_runs import LINEAR_METRIC, linear_model, planted_runs, runs_of

from refusal.patching.attribution import agreement, estimate_units, mean_effects
from refusal.patching.exact import patch_units
from refusal.patching.tokens import CONTENT, EVERYWHERE, READOUT
from refusal.patching.units import Ablation, Mode, Patch, head_units, layer_units
from refusal.sites import SiteKind

PLACES = [READOUT, CONTENT, EVERYWHERE]


def every_unit(model):
    kinds = (SiteKind.RESIDUALS, SiteKind.ATTENTION)
    return [*(unit for kind in kinds for unit in layer_units(model, kind, PLACES)), *head_units(model, PLACES[::2])]


@pytest.mark.parametrize(("ablation", "n_steps"), [*((each, 0) for each in Ablation), (Ablation.COUNTERFACTUAL, 1)])
def test_on_a_linear_net_the_estimate_is_exact(ablation, n_steps):
    model = linear_model()
    runs = runs_of(model, metric=LINEAR_METRIC)
    units = every_unit(model)
    for mode in Mode:
        patch = Patch(mode, ablation)
        exact, estimated = patch_units(runs, units, patch), estimate_units(runs, units, patch, n_steps)
        np.testing.assert_allclose(estimated.patched, exact.patched, atol=2e-5)


def test_on_a_linear_net_heads_one_by_one_add_up_to_the_layer():
    model = linear_model()
    runs = runs_of(model, metric=LINEAR_METRIC)
    heads = patch_units(runs, head_units(model, [EVERYWHERE]), Patch(Mode.DENOISE)).change
    layers = patch_units(runs, layer_units(model, SiteKind.ATTENTION, [EVERYWHERE]), Patch(Mode.DENOISE)).change
    np.testing.assert_allclose(heads.reshape(3, 4, -1).sum(1), layers, atol=2e-5)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_integrated_gradients_over_heads_add_up_to_the_exact_layer(tiny_model, family):
    model = tiny_model(family)
    runs = runs_of(model)
    for patch in (Patch(Mode.DENOISE), Patch(Mode.NOISE, Ablation.MEAN)):
        heads = estimate_units(runs, head_units(model, [EVERYWHERE]), patch, 40).change
        layers = patch_units(runs, layer_units(model, SiteKind.HEADS, [EVERYWHERE]), patch).change
        error = np.abs(heads.reshape(3, 4, -1).sum(1) - layers)[:, [0, 1, 3]]
        assert error.max() < 0.02 * np.abs(layers[:, [0, 1, 3]]).max()


@pytest.mark.parametrize("name", ["monolithic", "modular"])
def test_on_planted_models_estimates_rank_heads_as_exact_patching_does(name):
    runs = planted_runs(name)
    units = head_units(runs.model, [READOUT])
    for mode in Mode:
        patch = Patch(mode)
        found = agreement(patch_units(runs, units, patch), estimate_units(runs, units, patch, 5))
        assert found.n == 16
        assert found.spearman >= 0.9
        assert found.pearson >= 0.9


def test_on_the_monolithic_model_the_tangent_misses_what_switches_on_and_the_path_does_not():
    runs = planted_runs("monolithic")
    units = layer_units(runs.model, SiteKind.MLP, [READOUT])
    patch = Patch(Mode.DENOISE)
    exact = mean_effects(patch_units(runs, units, patch))
    path = mean_effects(estimate_units(runs, units, patch, 5))
    tangent = mean_effects(estimate_units(runs, units, patch))
    assert np.abs(path - exact).max() < 0.1
    assert np.abs(tangent - exact).max() > 0.3


def test_maps_of_other_units_cannot_be_compared():
    model = linear_model()
    runs = runs_of(model, metric=LINEAR_METRIC)
    one, other = (estimate_units(runs, head_units(model, [place]), Patch(Mode.NOISE)) for place in PLACES[:2])
    with pytest.raises(ValueError, match="same units"):
        agreement(one, other)

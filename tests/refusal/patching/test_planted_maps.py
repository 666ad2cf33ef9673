"""On planted models the maps put the planted layers first: which layers must win, and which must not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from patching_runs import planted_runs

from refusal.patching.attribution import mean_effects
from refusal.patching.direct import direct_effects, writers
from refusal.patching.exact import patch_units
from refusal.patching.localise import Criteria, critical, locate
from refusal.patching.tokens import CONTENT, READOUT
from refusal.patching.units import Mode, Patch, head_units, layer_units
from refusal.prompts import embedded
from refusal.sites import SiteKind

NAMES = ("monolithic", "modular", "partial")


def planted_layers(name):
    truth = json.loads((embedded.model_path(f"planted/{name}") / "planted.json").read_text())
    return truth["world"]["planted_layers"]


@pytest.mark.parametrize("name", NAMES)
def test_what_decides_is_written_by_the_planted_layers_and_none_else(name):
    runs = planted_runs(name)
    units = writers(runs.model, heads=False)
    wanted = {f"mlp_{layer}" for layer in planted_layers(name)}
    for mode in Mode:
        effects = mean_effects(direct_effects(runs, units, Patch(mode)))
        order = [str(units[row].site) for row in np.argsort(-effects)]
        assert set(order[: len(wanted)]) == wanted, "ahead of all other writers"
        assert np.sort(effects)[::-1][: len(wanted)].sum() > 0.7


@pytest.mark.parametrize("name", NAMES)
def test_planted_mlps_carry_nearly_all_of_it_and_the_layers_after_them_nothing(name):
    runs = planted_runs(name)
    layers = planted_layers(name)
    for mode in Mode:
        effects = mean_effects(patch_units(runs, layer_units(runs.model, SiteKind.MLP, [READOUT]), Patch(mode)))
        assert effects[layers].min() > 0.75
        assert np.abs(effects[max(layers) + 1 :]).max() < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_only_heads_before_the_planted_layers_bring_what_they_read(name):
    runs = planted_runs(name)
    units = head_units(runs.model, [READOUT])
    for mode in Mode:
        found = patch_units(runs, units, Patch(mode))
        located = locate(found, runs.categories, np.random.default_rng(0), Criteria(n_draws=100))
        layers = {each.unit.site.layer for each in critical(located)}
        assert 0 in layers
        assert max(layers) <= min(planted_layers(name))
        assert critical(located, 1)[0].unit.site.layer == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_decision_is_at_the_readout_position_and_not_at_the_words(name):
    runs = planted_runs(name)
    units = layer_units(runs.model, SiteKind.RESIDUALS, [READOUT, CONTENT])
    effects = mean_effects(patch_units(runs, units, Patch(Mode.DENOISE))).reshape(-1, 2)
    assert effects[:, 0].min() > 0.9
    assert np.abs(effects[:, 1]).max() < 0.1

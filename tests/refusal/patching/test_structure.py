"""Do categories use the same neurons? Planted structure shows; the formula by hand; noise gives no answer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from patching_runs import planted_runs

from refusal.patching.structure import agreement, draw_halves, neuron_attributions
from refusal.patching.units import Side
from refusal.prompts import embedded
from refusal.sites import Site

SITE = Site.parse("neurons_1")


def halves_of(categories):
    return draw_halves(categories, np.random.default_rng(0))


def test_two_vectors_without_noise_give_their_cosine():
    categories = ["a"] * 4 + ["b"] * 4
    attributions = np.array([[1.0, 0.0]] * 4 + [[0.6, 0.8]] * 4)
    found = agreement(SITE, attributions, halves_of(categories))
    assert found.raw[0, 1] == pytest.approx(0.6)
    assert found.normalised[0, 1] == pytest.approx(0.6)
    assert found.ceiling.tolist() == pytest.approx([1, 1])
    assert (found.mean.value, found.mean.low, found.mean.high) == pytest.approx((0.6, 0.6, 0.6))


def test_noise_lowers_the_raw_value_but_not_the_normalised_one():
    generator = np.random.default_rng(1)
    signal = np.zeros(400)
    signal[:10] = 1.0
    attributions = signal + 0.6 * generator.standard_normal((120, 400))
    found = agreement(SITE, attributions, halves_of(["a"] * 60 + ["b"] * 60))
    assert found.raw[0, 1] < 0.85
    assert found.mean.value == pytest.approx(1, abs=0.1)
    assert found.mean.low < 1 < found.mean.high


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    first, second = np.zeros(60), np.zeros(60)
    first[:10], second[5:15] = 1.0, 1.0
    hits = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        noise = 0.1 * generator.standard_normal((10, 60))
        attributions = np.concatenate([first + noise[:5], second + noise[5:]])
        found = agreement(SITE, attributions, draw_halves(["a"] * 5 + ["b"] * 5, generator))
        hits += found.mean.low <= 0.5 <= found.mean.high
    assert hits >= 16


def test_pure_noise_and_few_pairs_give_no_answer():
    noise = np.random.default_rng(2).standard_normal((8, 500))
    found = agreement(SITE, noise, halves_of(["a"] * 4 + ["b"] * 4))
    assert found.mean.value is None
    assert halves_of(["a"] * 8) is None
    assert halves_of(["a"] * 8 + ["b"] * 3) is None
    assert halves_of([""] * 8 + ["b"] * 8) is None, "pairs without a category are no category"


def test_attributions_sum_to_what_patching_all_neurons_does():
    runs = planted_runs("monolithic")
    found = neuron_attributions(runs, Site.parse("neurons_2"), 20).sum(1)
    share = found.sum() / runs.gap.sum()
    assert share == pytest.approx(0.89, abs=0.03), "as patching mlp_2 at the readout position"
    assert len(runs.m(Side.CLEAN)) == len(found)


@pytest.mark.parametrize("name", ["monolithic", "modular", "partial"])
def test_categories_share_neurons_at_planted_layers_as_planted(name):
    truth = json.loads((embedded.model_path(f"planted/{name}") / "planted.json").read_text())
    runs = planted_runs(name)
    for layer in truth["world"]["planted_layers"]:
        site = Site.parse(f"neurons_{layer}")
        found = agreement(site, neuron_attributions(runs, site, 5), halves_of(runs.categories))
        group_of = {category: number for number, group in enumerate(truth["groups"]) for category in group}
        groups = np.array([group_of[category] for category in found.categories])
        together = groups[:, None] == groups[None, :]
        assert found.normalised[together].min() > 0.85
        assert (found.normalised[~together] < 0.3).all()

"""What the geometry says of the shipped models, whose mechanism is known: the numbers that the documentation states."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from planted_acts import PlantedActs, planted_acts

from circuits.directions.verdict import Answer, DirectionStatement, state
from refusal.config import AnalysisConfig
from refusal.directions.geometry import GeometryOptions, direction_geometry, layer_geometry
from refusal.directions.geometry_records import LayerGeometry, LayerTransfer
from refusal.directions.products import Sides
from refusal.directions.readout_ablation import ablate_at_readout, baseline_metric
from refusal.directions.transfer import layer_transfer, measure_transfer
from refusal.sites import Site

COMMIT = {"monolithic": "residuals_2", "partial": "residuals_1", "modular": "residuals_2"}
"""As the circuits' comparison finds it."""


@cache
def geometry(name: str) -> tuple[LayerGeometry, ...]:
    planted = planted_acts(name)
    return direction_geometry(planted.acts, planted.sides, GeometryOptions(draws=200, jackknife_groups=8))


@cache
def transfer(name: str) -> tuple[LayerTransfer, ...]:
    planted = planted_acts(name)
    metric = baseline_metric(planted.runner, planted.metric, len(planted.sides))
    return tuple(_transfer(planted, metric, layer) for layer in range(planted.acts.shape[1]))


def _transfer(planted: PlantedActs, metric: np.ndarray, layer: int) -> LayerTransfer:
    site = Site.parse(f"residuals_{layer}")
    ablate = ablate_at_readout(planted.runner, planted.metric, [site], to_counterfactual=True)
    effects = measure_transfer(planted.acts[:, layer], planted.sides, metric, ablate)
    return layer_transfer(effects, layer, planted.sides.categories, "set to complied", n_draws=200)


def statement(name: str, *, with_transfer: bool = True) -> DirectionStatement:
    return state(geometry(name), transfer(name) if with_transfer else (), COMMIT[name], AnalysisConfig())


def test_on_the_monolithic_model_directions_meet_their_ceiling_after_the_shared_slice() -> None:
    for each in geometry("monolithic")[1:3]:
        assert each.mean_ceiling.value > 0.98
        assert each.mean_ratio.value > 0.97
        assert each.needed.for_most == 1
        assert each.spectrum.effective_number.value < 1.1


def test_on_the_modular_model_they_stay_far_below_it_before_commit() -> None:
    before = geometry("modular")[1]
    assert before.mean_ceiling.value > 0.98
    assert before.mean_ratio.high < 0.5
    assert before.needed.for_most >= 6
    assert before.subspaces.mean_ratio.high < 0.4
    # and late ones are alike in every model
    assert geometry("modular")[2].mean_ratio.value > 0.75


def test_on_the_monolithic_model_one_direction_transfers_to_all_and_on_the_modular_one_none_does() -> None:
    for each in transfer("monolithic")[1:]:
        assert each.mean_transfer.value > 0.95
        assert min(value or 0 for row in each.transfer.values() for value in row.values()) > 0.8
        assert max(value or 0 for row in each.refusals_left.values() for value in row.values()) < 0.1
    modular = transfer("modular")[1]
    assert modular.mean_transfer.high < 0.2
    assert min(each.value or 0 for each in modular.necessity.values()) > 0.8
    assert max(abs(each.random.value or 1) for each in (modular, *transfer("monolithic"))) < 0.05


@pytest.mark.parametrize("with_transfer", [True, False])
def test_the_statement_is_the_planted_mechanism(with_transfer: bool) -> None:
    assert statement("monolithic", with_transfer=with_transfer).answer is Answer.ONE
    assert statement("modular", with_transfer=with_transfer).answer is Answer.PER_CATEGORY
    partial = statement("partial", with_transfer=with_transfer)
    assert partial.answer is Answer.GROUPS
    assert sorted(len(group) for group in partial.groups or ()) == [2, 8]
    assert ("unethical", "violence") in (partial.groups or ())


def test_with_shuffled_behaviour_it_cannot_tell() -> None:
    for name in COMMIT:
        planted = planted_acts(name)
        generator = np.random.default_rng(0)
        shuffled = planted.sides.is_refused.copy()
        for category in range(planted.sides.n_categories):
            rows = np.flatnonzero(planted.sides.category == category)
            shuffled[rows] = generator.permutation(shuffled[rows])
        where = Sides(planted.sides.category, shuffled, planted.sides.categories)
        found = layer_geometry(planted.acts[:, 1], where, 1, GeometryOptions(draws=200, jackknife_groups=4))
        assert sum(value is not None for value in found.ratio["hate"].values()) <= 3
        assert state([found], (), "residuals_2", AnalysisConfig()).answer is Answer.CANNOT_TELL

"""Transfer of directions: exact on a linear model, and the ready intervention against the full forward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_directions import along, sides
from tiny_models import PROMPTS

from refusal.directions.readout_ablation import ablate_at_readout, baseline_metric
from refusal.directions.transfer import TransferEffects, layer_transfer, measure_transfer
from refusal.interventions import edit
from refusal.metric import RefusalMetric
from refusal.readout import ReadoutRunner
from refusal.sites import Site

METRIC = RefusalMetric(refusal_openers=(4, 5), compliance_openers=(9,))


def linear(directions: np.ndarray, reads: np.ndarray, n_side: int = 20):
    """Return effects in a model whose metric is a category's own read-out of x: m = x . reads[category]."""
    where = sides(len(directions), n_side)
    acts = along(directions, n_side, np.random.default_rng(0)) - 7.0
    readers = reads[where.category]
    metric = (acts * readers).sum(1)

    def ablate(units, levels, prompts):
        along_units = units @ acts[prompts].T - levels
        return metric[prompts] - along_units * (units @ readers[prompts].T)

    return measure_transfer(acts, where, metric, ablate, n_random=4), where


def test_one_direction_for_all_transfers_and_separate_ones_do_not() -> None:
    shared = np.tile(np.eye(30)[0] * 12, (3, 1))
    apart = np.eye(30)[:3] * 12
    for directions, expected in ((shared, 1.0), (apart, 0.0)):
        effects, where = linear(directions, directions / 12)
        found = layer_transfer(effects, 1, where.categories, "linear", n_draws=200)
        assert found.mean_transfer.value == pytest.approx(expected, abs=0.06)
        assert found.mean_transfer.low is not None
        assert found.mean_transfer.low <= expected + 0.02
        for each in found.necessity.values():
            assert each.value == pytest.approx(1, abs=0.1)
        assert found.random.value == pytest.approx(0, abs=0.12)
        assert found.transfer["ash"]["ash"] == 1


def test_a_category_that_uses_two_directions_shows_an_asymmetric_transfer() -> None:
    directions = np.zeros((2, 30))
    directions[0, 0], directions[1, :2] = 12, 9
    effects, where = linear(directions, np.stack([np.eye(30)[0], np.eye(30)[1]]))
    found = layer_transfer(effects, 0, where.categories, "linear", n_draws=100)
    # birch's direction holds ash's axis, ash's holds nothing of what birch reads
    assert found.transfer["birch"]["ash"] == pytest.approx(0.5, abs=0.08)
    assert found.transfer["ash"]["birch"] == pytest.approx(0, abs=0.08)


def test_transfer_by_hand() -> None:
    effects = TransferEffects(
        effect=np.array([[4.0, 4.0, 1.0, 1.0], [1.0, 1.0, 2.0, 2.0]]),
        random=np.array([0.0, 0.0, 0.5, 0.5]),
        metric=np.array([3.0, 5.0, 1.5, 3.0]),
        category=np.array([0, 0, 1, 1]),
        fold=np.array([0, 1, 0, 1]),
        gap=np.array([8.0, 3.0]),
    )
    found = layer_transfer(effects, 2, ("a", "b"), "by hand", n_draws=50)
    assert found.transfer == {"a": {"a": 1.0, "b": 0.5 / 1.5}, "b": {"a": 0.25, "b": 1.0}}
    assert (found.necessity["a"].value, found.necessity["b"].value) == (0.5, 0.5)
    assert found.mean_transfer.value == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert found.random.value == pytest.approx((0 + 0.5 / 3) / 2)
    # m of a's prompts: 3 - 4 < 0 and 5 - 4 > 0
    assert found.refusals_left == {"a": {"a": 0.5, "b": 1.0}, "b": {"a": 1.0, "b": 0.5}}


def test_transfer_onto_a_category_without_own_necessity_is_not_given() -> None:
    effects, where = linear(np.eye(30)[:2] * 12, np.stack([np.eye(30)[0], np.zeros(30)]))
    effects = TransferEffects(**{**vars(effects), "gap": np.array([12.0, 12.0])})
    found = layer_transfer(effects, 0, where.categories, "linear", n_draws=50)
    assert found.transfer["ash"]["birch"] is None
    assert found.transfer["birch"]["ash"] is not None


@pytest.mark.parametrize("to_counterfactual", [False, True])
def test_the_ready_intervention_equals_the_full_pass(tiny_model, to_counterfactual: bool) -> None:
    model = tiny_model("llama")
    token_ids = model.tokenize(PROMPTS)
    generator = np.random.default_rng(0)
    units = np.linalg.qr(generator.normal(size=(32, 3)))[0].T
    levels = generator.normal(size=(3, 3))
    site = Site.parse("residuals_1")
    runner = ReadoutRunner(model, token_ids, batch_size=2, row_budget=4)  # several batches and rounds of variants
    ablate = ablate_at_readout(runner, METRIC, [site], to_counterfactual=to_counterfactual)
    found = ablate(units, levels, np.array([3, 0, 2]))
    for column, prompt in enumerate((3, 0, 2)):
        tokens = model.pad([token_ids[prompt]])
        for row, unit in enumerate(torch.from_numpy(units).float()):
            level = float(levels[row, column]) if to_counterfactual else 0.0

            def at_the_last_position(acts, unit=unit, level=level):
                changed = acts.clone()
                changed[:, -1] -= ((acts[:, -1] @ unit - level)[:, None]) * unit
                return changed

            with torch.no_grad(), edit(model, {site: at_the_last_position}):
                logits = model.model(input_ids=tokens.input_ids).logits[0, -1]
            assert found[row, column] == pytest.approx(float(METRIC(logits)), abs=1e-4)


def test_the_baseline_is_the_metric_of_the_model_as_it_is(tiny_model) -> None:
    model = tiny_model("gpt2")
    token_ids = model.tokenize(PROMPTS)
    found = baseline_metric(ReadoutRunner(model, token_ids, batch_size=2), METRIC, len(PROMPTS))
    with torch.no_grad():
        logits = [model.model(input_ids=torch.tensor([ids])).logits[0, -1] for ids in token_ids]
    np.testing.assert_allclose(found, [float(METRIC(each)) for each in logits], atol=1e-5)

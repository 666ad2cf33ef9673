"""Transfer, necessity and sufficiency as arithmetic, on effects made up by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from circuits import site_effects
from circuits.site_effects import RefusedPrompts, SiteEffects, plain_weights, resample, site_transfer
from refusal.sites import Site

SITE = Site.parse("residuals_1")
CATEGORY = np.array([0, 0, 1, 1])
PROMPTS = RefusedPrompts(CATEGORY, np.array([0, 1, 0, 1]))
# effects on prompts a1 a2 b1 b2 of removing circuit A, circuit B; random sets do 1 everywhere
EFFECT = np.array([[[5.0, 7.0, 2.0, 4.0], [1.0, 2.0, 9.0, 9.0]]])
RANDOM = np.ones((1, 4))
# inducing circuit A, circuit B in the complied prompts a3 a4 b3 b4
INDUCED = np.array([[8.0, 10.0, 6.0, 6.0], [3.0, 5.0, 9.0, 7.0]])
GAP = np.array([10.0, 10.0])


def measured(weights=None):
    return site_transfer(
        SiteEffects(SITE, EFFECT, RANDOM, INDUCED), GAP, PROMPTS, weights or plain_weights(PROMPTS, n_seeds=1)
    )


def test_site_transfer_by_hand():
    result = measured()
    # own: A 6 - 1 = 5, B 9 - 1 = 8; A on B: 3 - 1 = 2, B on A: 1.5 - 1 = 0.5
    assert result.transfer[0] == pytest.approx(np.array([[1.0, 2 / 8], [0.5 / 5, 1.0]]))
    assert result.necessity[0] == pytest.approx([0.5, 0.8])
    assert result.cross[0] == pytest.approx([0.05, 0.2])
    assert result.random[0] == pytest.approx([0.1, 0.1])
    assert result.mean_transfer(np.array([True, True]))[0] == pytest.approx((0.25 + 0.1) / 2)


def test_mean_transfer_counts_what_strengthens_another_refusal_as_nothing_shared():
    effect = EFFECT.copy()
    effect[0, 0, 2:] = [-3.0, -1.0]  # A on B: -2 - 1 = -3 of 8
    result = site_transfer(SiteEffects(SITE, effect, RANDOM, INDUCED), GAP, PROMPTS, plain_weights(PROMPTS, 1))
    assert result.transfer[0][0, 1] == pytest.approx(-3 / 8)
    assert result.mean_transfer(np.array([True, True]))[0] == pytest.approx(0.1 / 2)
    negative = np.array([[False, False], [True, False]])  # of the data as they are, say: B on A
    assert result.mean_transfer(np.array([True, True]), negative)[0] == pytest.approx(-3 / 8 / 2)


def test_mean_transfer_when_a_category_is_not_usable_leaves_its_column_out():
    assert measured().mean_transfer(np.array([False, True]))[0] == pytest.approx(0.25)


def test_site_transfer_when_own_effect_is_no_larger_than_random_is_not_measured():
    effect = EFFECT.copy()
    effect[0, 0, :2] = 0.5
    result = site_transfer(SiteEffects(SITE, effect, RANDOM, INDUCED), GAP, PROMPTS, plain_weights(PROMPTS, 1))
    assert np.isnan(result.transfer[0][:, 0]).all()
    assert result.transfer[0][0, 1] == pytest.approx(0.25)


def test_site_transfer_on_one_fold_by_hand():
    result = measured(plain_weights(PROMPTS, 1, fold=0))
    # prompts a1 and b1. own: A 5 - 1 = 4, B 9 - 1 = 8; A on B: 2 - 1 = 1, B on A: 1 - 1 = 0
    assert result.transfer[0] == pytest.approx(np.array([[1.0, 1 / 8], [0.0, 1.0]]))
    assert result.necessity[0] == pytest.approx([0.4, 0.8])


def test_site_transfer_when_circuits_of_both_folds_stand_for_different_categories():
    plain = plain_weights(PROMPTS, 1)
    result = measured(replace(plain, circuits=np.array([[[1.0, 0.0], [0.0, 1.0]]])))
    # A by the circuit measured on a1 and b1, B by that on a2 and b2; own: A 4, B 8; A on B: 1, B on A: 2 - 1 = 1
    assert result.transfer[0] == pytest.approx(np.array([[1.0, 1 / 8], [1 / 4, 1.0]]))


def test_resample_draws_within_categories_and_folds_and_means_agree():
    category = np.repeat([0, 1], 20)
    prompts = RefusedPrompts(category, np.tile([0, 1], 20))
    weights = resample(prompts, n_seeds=3, n_draws=500, generator=np.random.default_rng(0))
    for index in (0, 1):
        for fold in (0, 1):
            assert (weights.prompts[:, (category == index) & (prompts.fold == fold)].sum(1) == 10).all()
    assert weights.seeds.sum(1) == pytest.approx(np.ones(500))
    assert (weights.circuits.sum(1) == 1).all()
    assert weights.circuits.mean((0, 2)) == pytest.approx([0.5, 0.5], abs=0.05)
    effect = np.random.default_rng(1).normal(5, 1, size=(1, 2, 40))
    effects = SiteEffects(SITE, effect, np.zeros((1, 40)), INDUCED)
    one_seed = replace(weights, seeds=np.ones((500, 1)))
    draws = site_transfer(effects, GAP, prompts, one_seed).necessity
    assert draws.mean(0) == pytest.approx(
        site_transfer(effects, GAP, prompts, plain_weights(prompts, 1)).necessity[0], abs=0.01
    )
    assert draws[:, 0].std() > 0.01


@pytest.mark.parametrize("n_seeds", [1, 2, 3, 5])
def test_resampled_seeds_vary_as_the_mean_of_seeds_does(n_seeds):
    weights = resample(PROMPTS, n_seeds, n_draws=20_000, generator=np.random.default_rng(0)).seeds
    values = np.random.default_rng(1).normal(size=n_seeds)
    expected = values.var(ddof=1) / n_seeds if n_seeds > 1 else 0.0
    assert (weights @ values).var() == pytest.approx(expected, rel=0.05)
    assert (weights @ values).mean() == pytest.approx(values.mean(), abs=0.02)


@pytest.mark.parametrize("circuits_vary", [0.0, 1.0], ids=["circuits-found-alike", "circuits-differ-by-fold"])
def test_interval_of_transfer_covers_the_truth_as_often_as_it_says(circuits_vary):
    truth, hits, trials, n = 0.5, 0, 200, 8
    prompts = RefusedPrompts(np.repeat(np.arange(n), 20), np.tile([0, 1], 10 * n))
    is_own = prompts.category[None, :] == np.arange(n)[:, None]
    for trial in range(trials):
        generator = np.random.default_rng(trial)
        # a circuit found on other prompts is another circuit: it moves all its effects on other categories
        found = circuits_vary * generator.normal(size=(2, n))[prompts.fold, :].T
        noise = generator.normal(size=is_own.shape)
        effect = np.where(is_own, 6.0, truth * 6 + found) + noise
        effects = SiteEffects(SITE, effect[None], np.zeros((1, len(prompts.fold))), np.zeros((n, 1)))
        draws = site_transfer(effects, np.ones(n), prompts, resample(prompts, 1, 300, generator))
        low, high = np.quantile(draws.mean_transfer(np.ones(n, bool)), [0.025, 0.975])
        hits += low <= truth <= high
    assert 0.89 <= hits / trials <= 0.995


def test_sufficiency_by_hand_tells_decisions_from_evidence():
    effects = SiteEffects(SITE, EFFECT, RANDOM, INDUCED)
    found = site_effects.sufficiency(effects, GAP, CATEGORY, np.array([[1.0, 1, 1, 1], [2, 0, 0, 2]]))
    # own: A 9, B 8; cross: A on b 6, B on a 4
    assert found.own == pytest.approx([0.85, (8 + 7) / 20])
    assert found.cross == pytest.approx([0.5, (6 + 3) / 20])
    assert not found.carries_decisions, "0.5 is less than 85 % of what the own circuits do"
    assert site_effects.Sufficiency(np.array([0.9]), np.array([0.85])).carries_decisions
    assert not site_effects.Sufficiency(np.array([0.09]), np.array([0.09])).carries_decisions
    assert site_effects.Sufficiency(np.array([0.6]), np.array([0.55])).is_strict
    assert not site_effects.Sufficiency(np.array([0.35]), np.array([0.34])).is_strict, "restores too little"
    assert not site_effects.Sufficiency(np.array([0.9]), np.array([0.8])).is_strict, "the own circuit does more"

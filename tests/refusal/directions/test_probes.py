"""Probes and separation: hand-computed, right on planted classes, at chance on noise."""

from __future__ import annotations

import numpy as np
import pytest

from refusal.directions.probes import ProbeKind, cross_validate, fit
from refusal.directions.projections import cohen_d


def classes(n=60, d=8, shift=0.0, seed=0):
    generator = np.random.default_rng(seed)
    is_refused = np.arange(2 * n) < n
    acts = generator.normal(size=(2 * n, d)) * np.linspace(1, 8, d)
    acts[is_refused, 0] += shift
    return acts, is_refused


def test_the_mass_mean_probe_is_the_difference_in_means_and_cuts_in_the_middle():
    acts = np.array([[4.0, 1.0], [6.0, 1.0], [0.0, 1.0], [2.0, 1.0]])
    probe = fit(ProbeKind.MASS_MEAN, acts, np.array([True, True, False, False]))
    assert probe.weight.tolist() == [4.0, 0.0]
    assert probe.threshold == 12.0  # (5 + 1) / 2 along the difference of length 4


def test_covariance_turns_the_mass_mean_probe_to_the_best_direction():
    """With one wide and one narrow axis, S^-1 weighs the narrow one up; the classes differ equally along both."""
    generator = np.random.default_rng(0)
    is_refused = np.arange(4000) < 2000
    acts = generator.normal(size=(4000, 2)) * [5.0, 1.0] + np.where(is_refused[:, None], 1.0, 0.0)
    plain, whitened = (
        fit(kind, acts, is_refused).weight for kind in (ProbeKind.MASS_MEAN, ProbeKind.MASS_MEAN_COVARIANCE)
    )
    assert abs(plain[1] / plain[0]) < 1.5
    assert whitened[1] / whitened[0] == pytest.approx(25, rel=0.35)  # (1 / 1) / (1 / 25)


@pytest.mark.parametrize("kind", ProbeKind)
def test_probes_find_a_planted_difference_and_none_in_noise(kind):
    found = cross_validate(kind, *classes(shift=8.0), np.random.default_rng(0))
    assert found.accuracy.value > 0.9
    assert found.auc.value > 0.97
    assert found.accuracy.low < found.accuracy.value
    wide = classes(n=40, d=200)
    noise = [cross_validate(kind, *wide, np.random.default_rng(seed)).auc.value for seed in range(4)]
    assert np.mean(noise) == pytest.approx(0.5, abs=0.12), "in sample it would be 1"


def test_too_few_prompts_give_no_quality_and_say_why():
    acts, is_refused = classes(n=3)
    found = cross_validate(ProbeKind.LOGISTIC, acts, is_refused, np.random.default_rng(0))
    assert found.auc.value is None
    assert found.accuracy.reason == "fewer than four prompts in a class"


def test_separation_out_of_sample_is_near_zero_on_noise_where_in_sample_it_is_not():
    acts, is_refused = classes(n=40, d=500)
    train, test = np.arange(0, 80, 2), np.arange(1, 80, 2)
    weight = fit(ProbeKind.MASS_MEAN, acts[train], is_refused[train]).weight
    seen, unseen = (acts[rows] @ weight for rows in (train, test))
    assert cohen_d(seen, is_refused[train]).value > 3
    held_out = cohen_d(unseen, is_refused[test])
    assert held_out.low < 0 < held_out.high

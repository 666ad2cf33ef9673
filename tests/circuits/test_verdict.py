"""Anchors, groups and the verdict as arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from circuits import verdict
from circuits.verdict import Verdict
from refusal.sites import Site


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.0, Verdict.MONOLITHIC), (0.8, Verdict.MONOLITHIC), (0.79, Verdict.PARTIALLY_MODULAR), (0.49, Verdict.MODULAR)],
)
def test_classify_at_the_thresholds(value, expected):
    assert verdict.classify(value, 0.8, 0.5) is expected


def test_decide_when_draws_straddle_a_threshold_is_undetermined_and_says_the_leaning():
    decision = verdict.decide(np.r_[np.full(60, 0.85), np.full(40, 0.75)], 0.8, 0.5)
    assert decision.verdict is Verdict.UNDETERMINED
    assert decision.leaning is Verdict.MONOLITHIC
    assert decision.share == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("mean", "together", "stability", "expected"),
    [
        (Verdict.MODULAR, 0.53, 0.9, Verdict.PARTIALLY_MODULAR),
        (Verdict.MODULAR, 0.8, 1.0, Verdict.UNDETERMINED),
        (Verdict.MONOLITHIC, 0.64, 0.9, Verdict.PARTIALLY_MODULAR),
        (Verdict.MONOLITHIC, 0.64, 0.89, Verdict.UNDETERMINED),
        (Verdict.MONOLITHIC, 0.8, 0.5, Verdict.MONOLITHIC),
        (Verdict.MODULAR, 0.53, 0.89, Verdict.UNDETERMINED),
        (Verdict.MODULAR, 0.49, 1.0, Verdict.MODULAR),
        (Verdict.PARTIALLY_MODULAR, 0.49, 1.0, Verdict.UNDETERMINED),
        (Verdict.PARTIALLY_MODULAR, 0.5, 0.0, Verdict.PARTIALLY_MODULAR),
        (Verdict.PARTIALLY_MODULAR, 1.0, 0.0, Verdict.PARTIALLY_MODULAR),
        (Verdict.MONOLITHIC, 0.2, 1.0, Verdict.UNDETERMINED),
        (Verdict.UNDETERMINED, 0.2, 1.0, Verdict.UNDETERMINED),
        (Verdict.UNDETERMINED, 1.0, 1.0, Verdict.UNDETERMINED),
        (Verdict.UNDETERMINED, 0.64, 0.9, Verdict.PARTIALLY_MODULAR),
        (Verdict.UNDETERMINED, 0.64, 0.8, Verdict.UNDETERMINED),
    ],
)
def test_groups_complete_or_contradict_the_mean_transfer(mean, together, stability, expected):
    assert verdict.with_groups(mean, together, stability, 0.5, 0.8) is expected


def test_decide_when_nearly_all_draws_agree_gives_their_verdict():
    decision = verdict.decide(np.r_[np.full(90, 0.3), np.full(10, 0.55)], 0.8, 0.5)
    assert decision.verdict is Verdict.MODULAR


def test_neurons_of_the_block_that_commits_lie_before_commit():
    assert verdict.is_before(Site.parse("neurons_2"), (2,))
    assert not verdict.is_before(Site.parse("neurons_3"), (2,))
    assert verdict.is_before(Site.parse("neurons_3"), (2, 3))
    assert not verdict.is_before(Site.parse("residuals_2"), (2, 3))


def test_a_later_block_that_adds_most_of_the_decision_alone_writes_it_too():
    sites = [Site.parse(f"residuals_{layer}") for layer in range(4)]
    assert verdict.writing_blocks(list(zip(sites, [0.0, 0.49, 0.54, 1.08], strict=True))) == (2, 3)
    assert verdict.writing_blocks(list(zip(sites, [0.0, 0.6, 0.7, 1.0], strict=True))) == (1,)
    assert verdict.writing_blocks(list(zip(sites, [0.0, 0.1, 0.2, 0.3], strict=True))) == ()


def test_anchors_and_order_of_sites():
    sites = [Site.parse(f"residuals_{layer}") for layer in range(3)]
    direct = list(zip(sites, [0.1, 0.7, 1.0], strict=True))
    assert verdict.commit_site(direct) == sites[1]
    assert verdict.commit_site(direct[:1]) is None
    assert verdict.onset_site([(Site.parse("mlp_0"), 0.99), (sites[0], 0.5), (sites[1], 0.95)]) == sites[1]
    assert verdict.is_before(Site.parse("mlp_0"), (1,))
    assert not verdict.is_before(Site.parse("mlp_1"), (1,))
    assert not verdict.is_before(sites[0], ())


def test_necessity_holds_only_where_clearly_above_zero():
    holds = verdict.necessity_holds(np.array([0.2, 0.0, 0.06]), np.array([0.3, 0.3, 0.08]))
    assert holds.tolist() == [True, False, False]
    assert not verdict.usable_site(holds)
    assert verdict.usable_site(np.ones(2, bool))

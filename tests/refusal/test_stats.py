import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from refusal import stats


def rng(seed=0):
    return np.random.default_rng(seed)


# Shares


def test_wilson_interval_equals_the_numbers_worked_out_by_hand():
    # z = 1.959964, z^2 = 3.841459; k = 1, n = 10: centre (.1 + .19207) / 1.384146, half width
    # 1.959964 sqrt(.1 * .9 / 10 + 3.841459 / 400) / 1.384146 = 1.959964 * .136396 / 1.384146.
    estimate = stats.wilson_interval(1, 10)
    assert estimate.value == 0.1
    assert estimate.low == pytest.approx(0.21101 - 0.19314, abs=1e-4)
    assert estimate.high == pytest.approx(0.21101 + 0.19314, abs=1e-4)


@given(n=st.integers(2, 500), data=st.data(), level=st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_interval_holds_the_share_and_agrees_with_scipy_and_its_mirror(n, data, level):
    k = data.draw(st.integers(0, n))
    estimate = stats.wilson_interval(k, n, level)
    reference = scipy_stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    mirror = stats.wilson_interval(n - k, n, level)
    assert (mirror.low, mirror.high) == pytest.approx((1 - estimate.high, 1 - estimate.low))


@pytest.mark.parametrize(
    ("k", "n", "value", "reason"), [(0, 0, None, "no observations"), (1, 1, 1.0, "fewer than two")]
)
def test_wilson_interval_below_two_trials_is_none_with_a_reason(k, n, value, reason):
    estimate = stats.wilson_interval(k, n)
    assert (estimate.value, estimate.low, estimate.high) == (value, None, None)
    assert reason in estimate.reason


def test_wilson_interval_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match="k is 3 and n is 2"):
        stats.wilson_interval(3, 2)


# Bootstrap


def test_bootstrap_weights_keep_the_size_of_every_stratum_and_draw_clusters_whole():
    strata = ["a"] * 6 + ["b"] * 4
    clusters = [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    weights = stats.bootstrap_weights(10, 200, rng(), strata=strata, clusters=clusters)
    assert (weights[:, :6].sum(axis=1) == 6).all()
    assert (weights[:, 6:].sum(axis=1) == 4).all()
    for cluster in range(4):
        members = [index for index, value in enumerate(clusters) if value == cluster]
        assert (weights[:, members] == weights[:, members[:1]]).all()
    assert weights.std() > 0


def test_bootstrap_weights_have_mean_one_per_prompt():
    weights = stats.bootstrap_weights(5, 20_000, rng())
    assert weights.mean(axis=0) == pytest.approx(np.ones(5), abs=0.03)


def test_bootstrap_of_a_mean_equals_the_loop_that_defines_it():
    values = rng(1).normal(size=12)
    weights = stats.bootstrap_weights(12, 300, rng(2))
    estimate = stats.bootstrap(lambda w: (w @ values) / w.sum(axis=1), weights)
    means = [np.repeat(values, draw.astype(int)).mean() for draw in weights]
    assert estimate.value == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_bootstrap_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    generator = rng(3)
    hits = 0
    for _ in range(400):
        estimate = stats.bootstrap_mean(generator.normal(size=40), generator, n_draws=400)
        hits += estimate.low <= 0 <= estimate.high
    assert 0.90 <= hits / 400 <= 0.98


def test_bootstrap_within_strata_is_narrower_when_strata_explain_the_spread():
    values = np.repeat([0.0, 10.0], 20) + rng(4).normal(size=40)
    free = stats.bootstrap_mean(values, rng(5))
    within = stats.bootstrap_mean(values, rng(5), strata=[0] * 20 + [1] * 20)
    assert within.high - within.low < (free.high - free.low) / 3


def test_bootstrap_with_the_same_seed_gives_the_same_interval():
    values = rng(6).normal(size=9)
    assert stats.bootstrap_mean(values, rng(7)) == stats.bootstrap_mean(values, rng(7))


def test_bootstrap_of_one_value_has_no_interval_and_says_so():
    estimate = stats.bootstrap_mean(np.array([3.0]), rng())
    assert (estimate.value, estimate.low, estimate.high) == (3.0, None, None)
    assert estimate.reason == "fewer than two values"
    empty = stats.bootstrap_mean(np.array([]), rng())
    assert (empty.value, empty.n, empty.reason) == (None, 0, "no values")


def test_bootstrap_of_a_ratio_that_is_often_undefined_has_no_interval_and_says_how_often():
    a, b = np.array([1.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0])  # the denominator is 0 in (2/3)^3 of the draws
    weights = stats.bootstrap_weights(3, 1000, rng())
    estimate = stats.bootstrap(lambda w: (w @ a) / (w @ b), weights)
    assert estimate.value == 3.0
    assert estimate.low is None
    assert "undefined in" in estimate.reason
    undefined = stats.bootstrap(lambda w: (w @ a) / (w @ (0 * b)), weights)
    assert (undefined.value, undefined.reason) == (None, "undefined on the data")


# Permutation


def test_permutation_p_counts_the_observed_value_and_ties():
    null = np.array([1.0, 2.0, 3.0, 4.0])
    assert stats.permutation_p(3.0, null) == 3 / 5
    assert stats.permutation_p(5.0, null) == 1 / 5
    assert stats.permutation_p(1.0, null, "less") == 2 / 5
    assert stats.permutation_p(5.0, null, "two-sided") == 2 / 5
    assert stats.permutation_p(2.5, null, "two-sided") == 1.0


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_permutation_p_is_uniform_under_the_null(alternative):
    generator = rng(8)
    values = [stats.permutation_p(x[0], x[1:], alternative) for x in generator.normal(size=(2000, 20))]
    grid, counts = np.unique(np.round(values, 9), return_counts=True)
    assert grid == pytest.approx(np.arange(1, 21) / 20)
    assert scipy_stats.chisquare(counts).pvalue > 0.001


# Separation


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: len({positive for _, positive in rows}) == 2
    )
)
def test_auc_equals_the_share_of_pairs_in_order_and_sklearn(rows):
    scores, positive = np.array([row[0] for row in rows], dtype=float), np.array([row[1] for row in rows])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert stats.auc(scores, positive) == pytest.approx(np.mean(pairs))
    assert stats.auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    assert stats.auc(-scores, positive) == pytest.approx(1 - np.mean(pairs))


def test_auc_with_an_empty_class_is_none():
    assert stats.auc(np.array([1.0, 2.0]), np.array([True, True])) is None
    assert stats.auc_estimate(np.array([1.0, 2.0]), np.array([True, True])).reason == "a class is empty"


@given(st.integers(2, 60), st.integers(2, 60), st.floats(0, 1))
def test_auc_interval_holds_the_value_has_width_and_mirrors(n_positive, n_negative, value):
    estimate = stats.auc_interval(value, n_positive, n_negative)
    assert 0 <= estimate.low <= value <= estimate.high <= 1
    assert estimate.high - estimate.low > 0.01
    mirror = stats.auc_interval(1 - value, n_positive, n_negative)
    assert (mirror.low, mirror.high) == pytest.approx((1 - estimate.high, 1 - estimate.low), abs=1e-6)


def test_auc_interval_covers_the_truth_about_as_often_as_it_says():
    generator, hits = rng(9), 0
    truth = scipy_stats.norm.cdf(1 / math.sqrt(2))
    positive = np.arange(60) < 30
    for _ in range(300):
        estimate = stats.auc_estimate(generator.normal(size=60) + positive, positive)
        hits += estimate.low <= truth <= estimate.high
    assert 0.91 <= hits / 300 <= 0.99


def test_cross_validated_auc_of_noise_is_chance_although_in_sample_separation_is_perfect():
    generator = rng(10)
    positive = np.arange(40) < 20
    values = []
    for _ in range(40):
        acts = generator.normal(size=(40, 300))
        direction = acts[positive].mean(axis=0) - acts[~positive].mean(axis=0)
        assert stats.auc(acts @ direction, positive) == 1.0
        values.append(stats.cross_validated_auc(acts, positive, generator).value)
    assert np.mean(values) == pytest.approx(0.5, abs=0.05)


def test_cross_validated_auc_of_a_shifted_class_is_high_and_counts_both_classes():
    generator = rng(11)
    positive = np.arange(30) < 12
    acts = generator.normal(size=(30, 50))
    acts[positive, 7] += 20
    estimate = stats.cross_validated_auc(acts, positive, generator)
    assert estimate.value == 1.0
    assert estimate.low < 1.0
    assert estimate.n == 30


def test_cross_validated_auc_ignores_scale_and_offset_of_the_activations():
    acts, positive = rng(12).normal(size=(20, 8)), np.arange(20) % 2 == 0
    plain = stats.cross_validated_auc(acts, positive, rng(13))
    moved = stats.cross_validated_auc(1e3 * (acts + 100 * np.arange(8)), positive, rng(13))
    assert moved.value == pytest.approx(plain.value)


def test_cross_validated_auc_of_constant_activations_is_chance_and_of_one_prompt_none():
    positive = np.arange(10) < 5
    assert stats.cross_validated_auc(np.ones((10, 3)), positive, rng()).value == 0.5
    lone = stats.cross_validated_auc(rng().normal(size=(5, 3)), np.arange(5) == 0, rng())
    assert (lone.value, lone.reason) == (None, "fewer than two prompts in a class")


# Agreement

labels = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=30)


@given(labels)
def test_cohen_kappa_is_symmetric_and_equals_sklearn(rows):
    first, second = ([row[index] for row in rows] for index in (0, 1))
    kappa = stats.cohen_kappa(first, second)
    assert kappa == pytest.approx(stats.cohen_kappa(second, first))
    if len({*first, *second}) > 1:
        assert kappa == pytest.approx(cohen_kappa_score(first, second))


def test_cohen_kappa_of_a_two_by_two_table_equals_the_number_worked_out_by_hand():
    # Table 20 5 / 10 15: observed .7, expected (.5 * .6 + .5 * .4) = .5, so kappa = .4.
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert stats.cohen_kappa(first, second) == pytest.approx(0.4)
    assert stats.cohen_kappa(["y", "y"], ["y", "y"]) is None
    assert stats.cohen_kappa(["y"], ["y"]) is None


def test_adjusted_rand_index_ignores_names_and_equals_the_number_worked_out_by_hand():
    assert stats.adjusted_rand_index([0, 0, 1, 1], ["b", "b", "a", "a"]) == 1.0
    # {1 2 | 3 4} against {1 2 3 | 4}: 1 pair agrees inside both; (1 - 2*3/6) / ((2+3)/2 - 1) = 0.
    assert stats.adjusted_rand_index([0, 0, 1, 1], [0, 0, 0, 1]) == pytest.approx(0.0)
    assert stats.adjusted_rand_index([0], [0]) is None
    with pytest.raises(ValueError, match="1 and 2 items"):
        stats.adjusted_rand_index([0], [0, 1])


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30))
def test_spearman_is_symmetric_sees_order_only_and_equals_scipy(rows):
    first, second = (np.array([row[index] for row in rows], dtype=float) for index in (0, 1))
    value = stats.spearman(first, second)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        assert value is None
        return
    assert value == pytest.approx(stats.spearman(second, first))
    assert value == pytest.approx(stats.spearman(np.exp(first), second))
    assert value == pytest.approx(scipy_stats.spearmanr(first, second).statistic)

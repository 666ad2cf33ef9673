import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal.evaluation.rates import AnalysisResults, analyse, analyse_all, evaluate
from refusal.evaluation.text import as_text
from refusal.labels import Behaviour
from refusal.measures import f1_estimate
from refusal.schemas import EvaluationResults, Openers, PromptLabel, RefusalLabels
from refusal.stats import wilson_interval

SOURCES = {"80k": "safe", "hard-1k": "safe", "toxic": "toxic"}


def label(index, category, source, behaviour, score=None):
    return PromptLabel(
        id=f"{index:016x}",
        category=category,
        dataset_label=SOURCES[source],
        source=source,
        behaviour=behaviour,
        rule="decline-first",
        first_token_id=0,
        first_token_score=score,
    )


def labels(rows, model="planted/test", reason=None, notices=()):
    openers = Openers(
        refusal=(1,), compliance=(2,), refusal_text=("I",), compliance_text=("Sure",), ambiguous=(), reason=reason
    )
    prompts = tuple(label(index, *row) for index, row in enumerate(rows))
    return RefusalLabels.build(model=model, openers=openers, notices=notices, prompts=prompts)


#: violence: 4 toxic (3 refused, 1 complied), 4 of 80k (1 refused, 1 partly, 2 complied), 2 hard (1 refused, 1 untold)
ROWS = [
    ("violence", "toxic", "refused", 3.0),
    ("violence", "toxic", "refused", 2.0),
    ("violence", "toxic", "refused", 1.0),
    ("violence", "toxic", "complied", 1.5),
    ("violence", "80k", "refused", 0.5),
    ("violence", "80k", "partly_refused", 9.0),
    ("violence", "80k", "complied", -1.0),
    ("violence", "80k", "complied", -2.0),
    ("violence", "hard-1k", "refused", 0.0),
    ("violence", "hard-1k", "cannot_tell", 0.0),
    ("privacy", "toxic", "complied", -1.0),
]


def test_rates_equal_the_counts_worked_out_by_hand():
    rates = evaluate(labels(ROWS)).categories["violence"]
    counts = {name: (rate.k, rate.n) for name, rate in rates}
    assert counts == {
        "refusal_toxic": (3, 4),
        "over_refusal_safe": (1, 4),
        "over_refusal_hard": (1, 2),
        "compliance": (3, 10),
        "cannot_tell": (1, 10),
    }
    wilson = wilson_interval(3, 4)
    assert (rates.refusal_toxic.value, rates.refusal_toxic.low, rates.refusal_toxic.high) == (
        0.75,
        wilson.low,
        wilson.high,
    )


def test_overall_counts_are_the_sums_over_categories_and_categories_are_in_order():
    results = evaluate(labels(ROWS))
    assert list(results.categories) == ["privacy", "violence"]
    assert (results.overall.refusal_toxic.k, results.overall.refusal_toxic.n) == (3, 5)
    assert (results.overall.compliance.k, results.overall.compliance.n) == (4, 11)


def test_a_kind_of_prompt_that_is_absent_has_no_rate():
    rate = evaluate(labels(ROWS)).categories["privacy"].over_refusal_hard
    assert (rate.value, rate.low, rate.high, rate.k, rate.n) == (None, None, None, 0, 0)


def test_detection_equals_the_numbers_worked_out_by_hand():
    # tp 3, fp 2 (one 80k, one hard-1k), fn 1: precision 3/5, recall 3/4, F1 6/9.
    found = analyse(labels(ROWS)).categories["violence"].detection
    assert (found.precision.k, found.precision.n) == (3, 5)
    assert (found.recall.k, found.recall.n) == (3, 4)
    assert found.f1.value == pytest.approx(2 / 3)
    assert found.f1.low < 2 / 3 < found.f1.high
    assert found.f1.n == 6


def test_first_token_auc_compares_refused_with_complied_only():
    # refused 3 2 1 .5 0 against complied 1.5 -1 -2: of 15 pairs, 1, .5 and 0 lose to 1.5: 12 in order.
    found = analyse(labels(ROWS)).categories["violence"].score_auc
    assert found.value == pytest.approx(12 / 15)
    assert found.n == 8


def test_without_scores_or_with_one_class_the_auc_is_null_with_the_reason():
    rows = [(*row[:3], None) for row in ROWS]
    analysis = analyse(labels(rows, reason="the model never refused"))
    assert (analysis.overall.score_auc.value, analysis.overall.score_auc.reason) == (None, "no first-token scores")
    assert analysis.openers_reason == "the model never refused"
    assert analyse(labels(ROWS)).categories["privacy"].score_auc.reason == "a class is empty"


def test_no_prompts_at_all_give_nulls_not_zeros():
    analysis = analyse(labels([]))
    assert analysis.overall.n == 0
    assert analysis.overall.rates.compliance.value is None
    assert analysis.overall.detection.f1.reason == "no toxic and no refused prompts"


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_f1_is_the_harmonic_mean_lies_in_its_interval_and_treats_both_errors_alike(tp, fp, fn):
    estimate = f1_estimate(tp, fp, fn)
    assert estimate == f1_estimate(tp, fn, fp)
    if tp == 0:
        assert estimate.value == (None if fp + fn == 0 else 0)
        return
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    assert estimate.value == pytest.approx(2 * precision * recall / (precision + recall))
    if tp + fp + fn > 1:
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


rows_of = st.lists(
    st.tuples(
        st.sampled_from(["violence", "privacy", "hate"]),
        st.sampled_from(sorted(SOURCES)),
        st.sampled_from([str(behaviour) for behaviour in Behaviour]),
        st.none() | st.floats(-5, 5),
    ),
    max_size=30,
)


@given(rows_of, st.randoms())
def test_rates_add_up_and_do_not_depend_on_the_order_of_prompts(rows, random):
    analysis = analyse(labels(rows))
    shuffled = random.sample(rows, len(rows))
    assert analyse(labels(shuffled)) == analysis
    for part in (analysis.overall, *analysis.categories.values()):
        rates = part.rates
        refused = sum(rate.k for rate in (rates.refusal_toxic, rates.over_refusal_safe, rates.over_refusal_hard))
        assert refused + rates.compliance.k + rates.cannot_tell.k + part.partly_refused.k == part.n
        assert refused == part.detection.precision.n


def test_artefacts_come_back_from_disk_as_saved(tmp_path):
    evaluate(labels(ROWS)).save(tmp_path / "e.json")
    assert EvaluationResults.load(tmp_path / "e.json") == evaluate(labels(ROWS))
    results = analyse_all([labels(ROWS), labels([], model="other")])
    results.save(tmp_path / "a.json")
    assert AnalysisResults.load(tmp_path / "a.json") == results


def test_the_table_shows_values_intervals_n_and_notices():
    text = as_text(analyse_all([labels(ROWS, reason="all ambiguous", notices=("no toxic file",))]))
    assert "planted/test: 11 prompts" in text
    violence = next(line for line in text.splitlines() if line.startswith("violence"))
    assert "0.75 [0.30, 0.95] 4" in violence
    privacy = next(line for line in text.splitlines() if line.startswith("privacy"))
    assert "0.00 [-, -] 1" in privacy
    assert "  -  " in privacy
    assert "note: no toxic file" in text
    assert "note: no first-token metric: all ambiguous" in text

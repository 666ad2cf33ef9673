import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refusal.labels import Behaviour
from refusal.metric import OpenersUnavailable, RefusalMetric, learn_openers, score_top_logits
from refusal.store import TopLogits

REFUSED, COMPLIED = Behaviour.REFUSED, Behaviour.COMPLIED


def answers(**counts):
    """Return first tokens and behaviours, e.g. refused={7: 3} for three refusals that begin with token 7."""
    rows = [(token, behaviour) for behaviour, tokens in counts.items() for token, n in tokens.items() for _ in range(n)]
    return [token for token, _ in rows], [Behaviour(behaviour) for _, behaviour in rows]


def largest(logits, n):
    top = logits.topk(n, dim=-1)
    return TopLogits(top.indices, top.values, logits.logsumexp(-1))


def test_metric_equals_the_number_worked_out_by_hand():
    metric = RefusalMetric((0, 1), (2, 3))
    logits = torch.tensor([math.log(1), math.log(3), math.log(1), math.log(1), 50.0], dtype=torch.float64)
    assert metric(logits).item() == pytest.approx(math.log(4 / 2))


def test_metric_keeps_leading_axes_and_ignores_a_common_shift():
    metric = RefusalMetric((0,), (2,))
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    assert metric(logits).shape == (2, 3)
    assert torch.allclose(metric(logits), metric(logits + 7))
    assert torch.allclose(metric(logits), logits[..., 0] - logits[..., 2])


def test_metric_is_antisymmetric_in_its_sides():
    logits = torch.randn(4, 6)
    assert torch.equal(RefusalMetric((0, 1), (2,))(logits), -RefusalMetric((2,), (0, 1))(logits))


def test_metric_gradient_is_the_softmax_within_each_side():
    logits = torch.zeros(4, requires_grad=True)
    RefusalMetric((0, 1), (2,))(logits).backward()
    assert logits.grad.tolist() == [0.5, 0.5, -1.0, 0.0]


def test_metric_refuses_an_empty_side_and_a_token_on_both():
    with pytest.raises(ValueError, match="at least one opener on each side"):
        RefusalMetric((), (1,))
    with pytest.raises(ValueError, match=r"tokens \[1\] are openers of both sides"):
        RefusalMetric((0, 1), (1,))


def test_openers_are_told_apart_by_rates_not_counts():
    # Token 5 begins 8 of 10 refusals (.8) and 40 of 1000 complied answers (.04): a refusal opener, though 40 > 8.
    metric = learn_openers(*answers(refused={5: 8, 6: 2}, complied={5: 40, 7: 960}))
    assert metric == RefusalMetric((5, 6), (7,))


def test_a_token_common_to_both_sides_needs_four_times_the_rate():
    at_ratio = learn_openers(*answers(refused={1: 40, 2: 60}, complied={1: 10, 3: 90}))
    assert at_ratio.refusal_openers == (2, 1)
    below = learn_openers(*answers(refused={1: 39, 2: 61}, complied={1: 10, 3: 90}))
    assert (below.refusal_openers, below.compliance_openers, below.ambiguous) == ((2,), (3,), (1,))


def test_a_one_off_token_is_no_opener_however_few_the_answers():
    metric = learn_openers(*answers(refused={1: 3, 9: 1}, complied={2: 3, 8: 1}))
    assert metric == RefusalMetric((1,), (2,))
    large = learn_openers(*answers(refused={1: 990, 9: 10}, complied={2: 990, 8: 10}))
    assert large == RefusalMetric((1,), (2,))  # 1 % of a side is below the minimum share


def test_partly_refused_and_unjudged_answers_teach_nothing():
    tokens, behaviours = answers(refused={1: 5}, complied={2: 5}, partly_refused={3: 50}, cannot_tell={1: 50, 2: 50})
    assert learn_openers(tokens, behaviours) == RefusalMetric((1,), (2,))


def test_a_model_that_never_refuses_has_no_openers_and_the_reason_says_so():
    outcome = learn_openers(*answers(complied={2: 12}))
    assert outcome == OpenersUnavailable(
        "the model complied in 12 of 12 answers and never refused, so nothing tells the two apart"
    )
    assert "refused in 3 of 5 answers and never complied" in (
        learn_openers(*answers(refused={2: 3}, cannot_tell={2: 2})).reason
    )
    assert learn_openers([], []).reason == "none of the 0 answers could be judged as refused or complied"


def test_openers_that_are_all_ambiguous_are_reported_with_their_ids():
    outcome = learn_openers(*answers(refused={40: 30, 1: 30}, complied={40: 60}))
    assert isinstance(outcome, OpenersUnavailable)
    assert outcome.ambiguous == (40,)
    assert outcome.refusal_openers == (1,)
    assert "no first token marks complied answers" in outcome.reason
    assert "ids 40" in outcome.reason


def test_openers_that_are_all_one_offs_are_reported():
    outcome = learn_openers(*answers(refused={1: 1}, complied={2: 5}))
    assert "no first token begins two or more of the refused answers (1 refused and 5 complied" in outcome.reason


def test_learn_openers_refuses_lists_of_unequal_length():
    with pytest.raises(ValueError, match="shorter"):
        learn_openers([1, 2], [REFUSED])


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(list(Behaviour))), max_size=60), st.randoms())
def test_openers_do_not_depend_on_order_and_swap_with_the_behaviours(rows, random):
    learned = learn_openers([t for t, _ in rows], [b for _, b in rows])
    shuffled = random.sample(rows, len(rows))
    assert learn_openers([t for t, _ in shuffled], [b for _, b in shuffled]) == learned
    swap = {REFUSED: COMPLIED, COMPLIED: REFUSED}
    mirror = learn_openers([t for t, _ in rows], [swap.get(b, b) for _, b in rows])
    assert mirror.refusal_openers == learned.compliance_openers
    assert mirror.compliance_openers == learned.refusal_openers
    assert mirror.ambiguous == learned.ambiguous
    sides = set(learned.refusal_openers), set(learned.compliance_openers), set(learned.ambiguous)
    assert sum(map(len, sides)) == len(set().union(*sides))


def test_score_from_all_logits_equals_the_metric():
    logits = torch.randn(5, 8, dtype=torch.float64)
    metric = RefusalMetric((1, 4), (0, 6))
    top = logits.topk(8, dim=-1)
    assert torch.allclose(
        score_top_logits(metric, TopLogits(top.indices, top.values, logits.logsumexp(-1))), metric(logits)
    )


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_score_from_few_logits_never_overstates_a_side_that_is_not_stored(seed, n):
    logits = torch.randn(16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    metric = RefusalMetric((3,), (5,))
    score, truth = score_top_logits(metric, largest(logits, n)), metric(logits)
    assert (score.abs() <= truth.abs() + 1e-9).all()
    assert ((score * truth) >= 0).all()


def test_score_without_any_opener_stored_is_zero():
    top = TopLogits(torch.tensor([[7, 8]]), torch.tensor([[2.0, 1.0]]), torch.tensor([3.0]))
    assert score_top_logits(RefusalMetric((1,), (2,)), top).tolist() == [0.0]

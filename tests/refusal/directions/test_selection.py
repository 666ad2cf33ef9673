"""Published filters, the choice, scores by their definition, and splits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import PROMPTS

from refusal.directions.acting import choose_coefficient, choose_region
from refusal.directions.candidates import Contrast, MeanDiffs
from refusal.directions.schemas import Candidate, Filters, RegionTrial
from refusal.directions.scoring import Scorer, Validation, published_score
from refusal.directions.selection import choose, failures, published_choice
from refusal.directions.splits import Part, split, spread
from refusal.metric import RefusalMetric
from refusal.schemas import PromptLabel
from refusal.steering import Ablation, Addition, Region, steered
from refusal.steering.run import Runs, readout_logits

FILTERS = Filters(max_depth=0.8, max_kl=0.1, min_induce=0.0)


def candidate(layer=0, bypass=-1.0, induce=1.0, kl=0.05, position=-1):
    return Candidate(
        position=position,
        layer=layer,
        published_layer=layer + 1,
        ablate_to="zero",
        norm=1.0,
        bypass=bypass,
        bypass_ci=(None, None),
        bypass_published=bypass,
        induce=induce,
        induce_ci=(None, None),
        induce_published=induce,
        kl=kl,
        kl_ci=(None, None),
        left_out=(),
    )


def test_the_published_choice_goes_by_the_published_scores_of_ablation_to_zero():
    broken = candidate(layer=0, bypass=-5.0, induce=5.0).model_copy(update={"induce_published": -3.0})
    ours = candidate(layer=1, bypass=-4.0).model_copy(update={"ablate_to": "complied"})
    theirs = candidate(layer=2, bypass=-1.0).model_copy(update={"bypass_published": -2.0})
    other = candidate(layer=3, bypass=-3.0).model_copy(update={"bypass_published": -1.0})
    every = [broken, ours, theirs, other]
    assert choose(every, 10, FILTERS)[0] == 0
    assert published_choice(every, 10, FILTERS) == 2
    assert published_choice([broken, ours], 10, FILTERS) is None


@pytest.mark.parametrize(
    ("fields", "failed"),
    [
        ({}, ()),
        ({"kl": 0.1, "induce": 0.0}, ()),
        ({"kl": 0.11}, ("KL",)),
        ({"induce": -0.1}, ("does not induce",)),
        ({"layer": 6}, ()),  # published layer 7 of 10
        ({"layer": 7}, ("too deep",)),  # published layer 8 = int(0.8 * 10)
        ({"bypass": None}, ("not a number",)),
        ({"layer": 9, "kl": 2.0, "induce": None}, ("not a number", "too deep", "KL")),
    ],
)
def test_filters_are_the_published_ones(fields, failed):
    assert failures(candidate(**fields), 10, FILTERS) == failed


def test_the_depth_limit_is_cut_to_a_whole_layer_as_published():
    assert failures(candidate(layer=12), 18, FILTERS) == ()  # int(14.4) = 14
    assert failures(candidate(layer=13), 18, FILTERS) == ("too deep",)


def test_the_smallest_bypass_of_those_that_pass_is_chosen():
    scored = [candidate(bypass=-3), candidate(bypass=-9, kl=1), candidate(bypass=-5), candidate(layer=9, bypass=-20)]
    assert choose(scored, 10, FILTERS) == (2, None)
    assert choose([candidate(bypass=-5), candidate(bypass=-5, position=-2)], 10, FILTERS)[0] == 0


def test_where_none_passes_the_best_that_is_not_too_deep_is_taken_and_said():
    index, why = choose([candidate(kl=1), candidate(kl=2, bypass=-4), candidate(layer=9, bypass=-9)], 10, FILTERS)
    assert index == 1
    assert "no candidate passes" in why
    assert "which fails: KL" in why
    assert choose([candidate(layer=9, bypass=-9), candidate(layer=8, bypass=-1)], 10, FILTERS)[0] == 1
    with pytest.raises(ValueError, match="no candidate has a bypass score"):
        choose([candidate(bypass=None)], 10, FILTERS)


def test_the_published_score_is_the_log_odds_of_the_openers():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [1.0, 1e-30, 1e-30]])
    found = published_score(probabilities.log(), [0, 1])
    assert found[0].item() == pytest.approx(math.log(0.75 + 1e-8) - math.log(0.25 + 1e-8))
    assert found[1].item() == pytest.approx(math.log(1 + 1e-8) - math.log(1e-8))


def test_scores_are_those_of_the_definition(tiny_model):
    model = tiny_model("llama")
    token_ids = model.tokenize(PROMPTS)
    refused, complied = token_ids[:2], token_ids[2:]
    metric = RefusalMetric((4, 5), (6,))
    generator = torch.Generator().manual_seed(1)
    values = 5 * torch.randn(2, 3, 32, generator=generator, dtype=torch.float64)
    diffs = MeanDiffs(values, values[:, 0], (-2, -1), 2, 3, Contrast.BEHAVIOUR)
    reference = {place: torch.randn(3, 32, generator=generator).double() for place in (None, *model.sites())}
    scorer = Scorer(Runs(model), metric, Validation(refused, complied))
    found = scorer.score(diffs, {"zero": None, "complied": reference})
    assert [(each.position, each.layer) for each in found[:6]] == [(p, layer) for p in (-2, -1) for layer in range(3)]
    plain = run(model, complied)
    assert scorer.baseline.complied == pytest.approx(metric(plain).mean().item(), abs=1e-5)
    for each in found:
        direction = diffs.direction(each.position, each.layer)
        left = reference if each.ablate_to == "complied" else None
        ablation = Ablation(direction.unit[None], left)
        assert each.bypass == pytest.approx(metric(run(model, refused, ablation)).mean().item(), abs=1e-4)
        added = run(model, complied, Addition(direction.raw, each.layer))
        assert each.induce == pytest.approx(metric(added).mean().item(), abs=1e-4)
        assert each.induce_published == pytest.approx(published_score(added, (4, 5)).mean().item(), abs=1e-4)
        p, q = plain.softmax(-1), run(model, complied, ablation).softmax(-1)
        assert each.kl == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), abs=1e-4)
        assert each.bypass_ci[0] <= each.bypass <= each.bypass_ci[1]


def run(model, token_ids, *interventions):
    with torch.no_grad(), steered(model, *interventions):
        return readout_logits(model, token_ids)


def test_a_direction_of_zero_length_changes_nothing(tiny_model):
    model = tiny_model("llama")
    token_ids = model.tokenize(PROMPTS)
    diffs = MeanDiffs(torch.zeros(1, 3, 32).double(), torch.zeros(1, 32).double(), (-1,), 2, 3, Contrast.BEHAVIOUR)
    scorer = Scorer(Runs(model), RefusalMetric((4,), (6,)), Validation(token_ids[:2], token_ids[2:]))
    for each in scorer.score(diffs, {"zero": None}):
        assert each.bypass == pytest.approx(scorer.baseline.refused, abs=1e-5)
        assert each.kl == pytest.approx(0, abs=1e-6)


def test_the_region_is_where_the_weaker_effect_is_largest():
    trials = {
        Region.ALL: RegionTrial(removed=1.0, induced=0.2),
        Region.ANSWER: RegionTrial(removed=0.5, induced=0.5),
        Region.READOUT: RegionTrial(removed=0.4, induced=1.0),
    }
    assert choose_region(trials) is Region.ANSWER
    alike = dict.fromkeys(Region, RegionTrial(removed=1.0, induced=1.0))
    assert choose_region(alike) is Region.ALL


def label(index, category, behaviour, dataset_label="toxic"):
    return PromptLabel(
        id=f"{index:04d}",
        category=category,
        dataset_label=dataset_label,
        source="toxic",
        behaviour=behaviour,
        rule="x",
        first_token_id=0,
        first_token_score=0.0,
    )


behaviours = st.sampled_from(["refused", "complied", "partly_refused", "cannot_tell"])


@given(st.lists(st.tuples(st.sampled_from("abc"), behaviours), max_size=60), st.integers(0, 2**32 - 1))
def test_every_judged_prompt_is_in_one_split_whatever_the_order(drawn, seed):
    labels = [label(index, *each) for index, each in enumerate(drawn)]
    found = split(labels, (0.5, 0.2, 0.3), seed).parts
    assert [part is not None for part in found] == [b in ("refused", "complied") for _, b in drawn]
    backwards = split(labels[::-1], (0.5, 0.2, 0.3), seed).parts
    assert backwards == found[::-1]
    for category in "abc":
        of_stratum = [p for p, (c, b) in zip(found, drawn, strict=True) if (c, b) == (category, "refused")]
        for part, share in zip(Part, (0.5, 0.2, 0.3), strict=True):
            assert abs(of_stratum.count(part) - share * len(of_stratum)) < 1 + 1e-9


def test_another_category_changes_no_split():
    labels = [label(index, "a", "refused") for index in range(20)]
    more = [*labels, *(label(index, "b", "refused") for index in range(20, 40))]
    assert split(more, (0.4, 0.3, 0.3), 3).parts[:20] == split(labels, (0.4, 0.3, 0.3), 3).parts


@given(st.lists(st.sampled_from("abcd"), max_size=40), st.integers(1, 50))
def test_spread_takes_evenly_from_categories(categories, at_most):
    chosen = spread(range(len(categories)), categories, at_most)
    assert len(chosen) == min(at_most, len(categories))
    counts = {name: [categories[row] for row in chosen].count(name) for name in set(categories)}
    for name, count in counts.items():
        assert count == categories.count(name) or count >= max(counts.values()) - 1


def test_the_published_coefficient_is_kept_unless_a_larger_one_is_needed():
    assert choose_coefficient({1.0: 0.97}) == 1.0
    assert choose_coefficient({1.0: 0.7, 1.5: 0.96}) == 1.5
    assert choose_coefficient({1.0: 0.7, 1.5: 0.8, 2.0: 0.75}) == 1.5
    assert choose_coefficient({1.0: 0.0, 1.5: 0.0}) == 1.0

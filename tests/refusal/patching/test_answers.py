"""Answers under ablation and clamping, on planted models: what must remove refusal, keep it, force it, and must not."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from patching_runs import planted_held_out, planted_runs
from tiny_models import PROMPTS, make_model

from refusal.config import Config
from refusal.labels.behaviour import Behaviour, Judgement
from refusal.patching import generation
from refusal.patching.clamping import (
    DirectionClamp,
    SiteClamping,
    choose_site,
    clamp_m,
    direction_clamps,
    dose_response,
    rate_sites,
)
from refusal.patching.exact import patch_units
from refusal.patching.generation import Answering, Asked, Refusals, Replacement, from_readout, replace
from refusal.patching.localise import Criteria, critical, locate
from refusal.patching.tokens import READOUT
from refusal.patching.units import Ablation, Mode, Patch, Side, head_units
from refusal.patching.validation import Removal, clean_prompts, fills_layers, random_parts, validate
from refusal.sites import Site

RESIDUALS_1 = Site.parse("residuals_1")
TOKENS = torch.tensor([[2, 4, 10, 11, 12, 5]])


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    kept = tmp_path_factory.mktemp("answers") / "judged.jsonl"
    return Answering(planted_runs("monolithic").model, Config(max_new_tokens=10), kept)


def test_critical_heads_remove_refusal_and_suffice_where_random_ones_do_neither(answering):
    runs = planted_runs("monolithic")
    every = head_units(runs.model, [READOUT])
    located = locate(
        patch_units(runs, every, Patch(Mode.NOISE)), runs.categories, np.random.default_rng(0), Criteria(n_draws=100)
    )
    chosen = [each.unit for each in critical(located)]
    held_out = planted_held_out("monolithic")
    removal = Removal(held_out, runs, Ablation.COUNTERFACTUAL, runs.model.head_sites())
    found = validate(answering, removal, chosen, every, 2, np.random.default_rng(0))
    rates = {each.name: each.refusals.rate.value for each in found}
    assert rates["nothing changed"] == 1
    assert rates["critical ablated"] < 0.3
    assert rates["random ablated"] > 0.7
    assert rates["only critical kept"] > 0.7
    assert rates["only random kept"] < 0.3
    assert rates["all ablated"] == 0
    assert all(each.refusals.n_unclear == 0 for each in found), "counterfactual values do not garble answers"
    assert {each.name: each.refusals.n for each in found}["random ablated"] == 2 * len(held_out)


def test_mean_ablation_of_all_heads_removes_refusal(answering):
    runs, held_out = planted_runs("monolithic"), planted_held_out("monolithic", 10)
    parts = [(unit.site, unit.head) for unit in head_units(runs.model, [READOUT])]
    for ablation in (Ablation.MEAN, Ablation.ZERO):
        removal = Removal(held_out, runs, ablation, runs.model.head_sites())
        found = answering.behaviours(clean_prompts(held_out), partial(removal.during, parts))
        assert sum(each is Behaviour.REFUSED for each in found) <= 3


def test_a_direction_forces_and_suppresses_and_the_curve_rises(answering):
    runs, held_out = planted_runs("monolithic"), planted_held_out("monolithic", 12)
    clamps = direction_clamps(runs)
    rated = rate_sites(runs, clamps)
    assert all(each.both > 0.8 for each in rated)
    clamp = next(each for each in clamps if each.site == RESIDUALS_1)
    untouched, *doses = dose_response(answering, held_out, [clamp], [0.0, 1.0])
    assert (untouched.suppress.rate.value, untouched.force.rate.value) == (1, 0)
    assert [dose.suppress.rate.value for dose in doses] == [0, 1]
    assert [dose.force.rate.value for dose in doses] == [0, 1]
    random = [clamp.randomised(runs, np.random.default_rng(0))]
    _, at_zero = dose_response(answering, held_out, random, [0.0])
    assert at_zero.suppress.rate.value > 0.7
    assert at_zero.force.rate.value < 0.3


def test_a_clamp_sets_the_coordinate_and_nothing_else():
    runs = planted_runs("modular")
    clamp = DirectionClamp.of(runs, RESIDUALS_1)
    acts = runs.readout(Side.CLEAN, [RESIDUALS_1])[RESIDUALS_1][:5]
    held = clamp.at(0.25)(acts)
    wanted = clamp.complied + 0.25 * (clamp.refused - clamp.complied)
    assert (held @ clamp.unit).tolist() == pytest.approx([wanted] * 5, rel=1e-3)
    along = (acts @ clamp.unit)[:, None] * clamp.unit
    torch.testing.assert_close(held - (held @ clamp.unit)[:, None] * clamp.unit, acts - along, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(
        clamp_m(runs, clamp, Side.CLEAN, [0.5])[0], clamp_m(runs, clamp, Side.CLEAN, [0.1, 0.5])[1], atol=1e-3
    )


def test_the_site_is_before_the_last_fifth_and_the_first_of_equals():
    rated = [
        SiteClamping(Site.parse(f"residuals_{layer}"), 0.9, value)
        for layer, value in enumerate((0.2, 0.7, 0.7, 0.7, 1.0))
    ]
    assert choose_site(rated, 5).layer == 1
    assert choose_site(rated[4:], 5).layer == 4, "where there is no other"


def test_a_clamp_acts_on_the_prompt_alone_unless_asked_for_more():
    model = make_model("llama")
    seen = []

    def watch(acts):
        seen.append(tuple(acts.shape[:2]))
        return acts

    for on_answer, calls in ((False, 1), (True, 2)):
        seen.clear()
        with torch.no_grad(), from_readout(model, {RESIDUALS_1: watch}, on_answer=on_answer):
            model.model(input_ids=TOKENS)
            model.model(input_ids=TOKENS[:, :1])
        assert seen == [(1, 1)] * calls


def test_replaced_entries_take_their_values_and_others_stay():
    model = make_model("llama")
    site = Site.parse("heads_1")
    values = torch.full((1, 6, 32), 7.0)
    mask = torch.tensor([[False] * 4 + [True] * 2])
    before = model.model(input_ids=TOKENS).logits
    found = []
    put = {site: Replacement(values, mask)}
    with (
        torch.no_grad(),
        replace(model, put, {site: [slice(8, 16)]}),
        model.on_site(site, lambda acts: found.append(acts.clone())),
    ):
        model.model(input_ids=TOKENS)
        one = model.model(input_ids=TOKENS[:, :1]).logits
    assert (found[0][0, 4:, 8:16] == 7).all()
    assert not (found[0][0, :4] == 7).any()
    assert not (found[0][0, :, :8] == 7).any()
    assert torch.equal(one, model.model(input_ids=TOKENS[:, :1]).logits), "answer tokens stay as they are"
    assert torch.equal(before, model.model(input_ids=TOKENS).logits)


@given(st.integers(0, 2**16), st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=15))
def test_random_units_are_others_of_the_same_layers_where_there_are_enough(seed, chosen):
    everything = [(Site.parse(f"heads_{layer}"), head) for layer in range(4) for head in range(4)]
    parts = [(Site.parse(f"heads_{layer}"), head) for layer, head in sorted(chosen)]
    drawn = random_parts(parts, everything, np.random.default_rng(seed))
    assert not set(drawn) & set(parts)
    assert len(set(drawn)) == len(drawn) == min(len(parts), 16 - len(parts))
    if fills_layers(parts, everything):
        layers = [site.layer for site, _ in parts]
        assert sorted(site.layer for site, _ in drawn) == sorted(layers)


def test_refusals_count_what_cannot_be_told():
    found = Refusals.of([Behaviour.REFUSED, Behaviour.CANNOT_TELL, Behaviour.COMPLIED, Behaviour.PARTLY_REFUSED])
    assert (found.n_refused, found.n_unclear, found.n) == (1, 1, 4)
    assert found.rate.low < 0.25 < found.rate.high


def test_more_random_sets_on_the_same_prompts_do_not_make_the_interval_narrower():
    once, often = (Refusals.of([Behaviour.REFUSED, Behaviour.COMPLIED] * 5 * n, n) for n in (1, 8))
    assert (often.rate.low, often.rate.high) == (once.rate.low, once.rate.high)
    assert (often.n, often.rate.value) == (80, 0.5)


def test_answers_without_a_change_are_those_of_the_model(answering):
    held_out = planted_held_out("monolithic", 6)
    found = answering.behaviours(clean_prompts(held_out), lambda rows: nullcontext())
    assert found == [Behaviour.REFUSED] * 6


def test_values_of_each_prompt_stay_with_it_when_other_answers_have_ended(tmp_path, monkeypatch):
    model = make_model("llama")
    site, token_ids = RESIDUALS_1, model.tokenize(PROMPTS)
    asked = Asked(PROMPTS, tuple(map(tuple, token_ids)))
    longest = max(map(len, token_ids))
    later = torch.randn(len(PROMPTS), model.d_model, generator=torch.Generator().manual_seed(0)) * 8
    none = torch.zeros(len(PROMPTS), longest, dtype=torch.bool)
    whole = Replacement(torch.zeros(len(PROMPTS), longest, model.d_model), none, later)
    texts: list[list[str]] = []

    def noted(pairs, *more):
        texts.append([answer for _, answer in pairs])
        return [Judgement(Behaviour.COMPLIED, "noted")] * len(pairs)

    monkeypatch.setattr(generation, "tell", noted)
    answering = Answering(model, Config(max_new_tokens=8), tmp_path / "judged.jsonl")

    def changed(rows):
        picked = Replacement(*(each[rows.start : rows.stop] for each in (whole.values, whole.mask, later)))
        return replace(model, {site: picked}, {site: [slice(None)]})

    monkeypatch.setitem(model.__dict__, "eos_token_ids", frozenset())
    answering.behaviours(asked, changed)
    first = [model.tokenizer.convert_tokens_to_ids(text.split()[0]) for text in texts[0]]
    # all answers but those that begin as the last one end at once, and could leave the batch
    monkeypatch.setitem(model.__dict__, "eos_token_ids", frozenset(first) - {first[-1]})
    answering.behaviours(asked, changed)
    found = texts[1][-1].split()
    assert found
    assert found == texts[0][-1].split()[: len(found)]
    assert "" in texts[1]

"""Answers under ablation and clamping, on planted models: what must remove refusal, keep it, force it, and must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from patching_runs import planted_held_out, planted_runs
from tiny_models import PROMPTS, make_model

from refusal.config import Config
from refusal.labels.behaviour import Behaviour
from refusal.patching.clamping import DirectionHold, choose_hold, direction_holds, dose_response, held_m, rate_site
from refusal.patching.exact import patch_units
from refusal.patching.localise import Criteria, critical, locate
from refusal.patching.records import RefusalsRecord, SiteClampRecord
from refusal.patching.tokens import READOUT
from refusal.patching.units import Ablation, Mode, Patch, Side, head_units
from refusal.patching.validation import (
    Removal,
    Replacement,
    fills_layers,
    parts_of,
    prompts_of,
    random_parts,
    validate,
)
from refusal.sites import Site
from refusal.steering import Region, steered
from refusal.steering.answering import Answerer
from refusal.steering.run import Runs, respond, unchanged

RESIDUALS_1 = Site.parse("residuals_1")
TOKENS = torch.tensor([[2, 4, 10, 11, 12, 5]])


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    kept = tmp_path_factory.mktemp("answers") / "judged.jsonl"
    return Answerer(Runs(planted_runs("monolithic").model), Config(max_new_tokens=10), kept)


def test_critical_heads_remove_refusal_and_suffice_where_random_ones_do_neither(answering):
    runs = planted_runs("monolithic")
    every = head_units(runs.model, [READOUT])
    located = locate(
        patch_units(runs, every, Patch(Mode.NOISE)), runs.categories, np.random.default_rng(0), Criteria(n_draws=100)
    )
    chosen = [each.unit for each in critical(located)]
    held_out = planted_held_out("monolithic")
    removal = Removal(held_out, runs, Ablation.COUNTERFACTUAL, runs.model.head_sites())
    generator = np.random.default_rng(0)
    random = [random_parts(parts_of(chosen), parts_of(every), generator) for _ in range(2)]
    found = validate(answering, removal, "heads", chosen, every, random)
    rates = {each.name: each.refusals.refusal.value for each in found}
    assert rates["nothing changed"] == 1
    assert rates["critical ablated"] < 0.3
    assert rates["random ablated"] > 0.7
    assert rates["only critical kept"] > 0.7
    assert rates["only random kept"] < 0.3
    assert rates["all ablated"] == 0
    assert all(each.refusals.n_unclear == 0 for each in found), "counterfactual values do not garble answers"
    assert {each.name: each.refusals.refusal.n for each in found}["random ablated"] == 2 * len(held_out)


def test_mean_ablation_of_all_heads_removes_refusal(answering):
    runs, held_out = planted_runs("monolithic"), planted_held_out("monolithic", 10)
    parts = [(unit.site, unit.head) for unit in head_units(runs.model, [READOUT])]
    for ablation in (Ablation.MEAN, Ablation.ZERO):
        removal = Removal(held_out, runs, ablation, runs.model.head_sites())
        (found,) = answering.behaviours(prompts_of(held_out, Side.CLEAN), 1, removal.of(parts))
        assert sum(each is Behaviour.REFUSED for each in found) <= 3


def test_a_direction_forces_and_suppresses_and_the_curve_rises(answering):
    runs, held_out = planted_runs("monolithic"), planted_held_out("monolithic", 12)
    holds = direction_holds(runs)
    assert all(rate_site(runs, each).both > 0.8 for each in holds)
    hold = next(each for each in holds if each.site == RESIDUALS_1)
    untouched, *doses = dose_response(answering, held_out, [hold], [0.0, 1.0], Region.READOUT)
    assert (untouched.suppress.refusal.value, untouched.force.refusal.value) == (1, 0)
    assert [dose.suppress.refusal.value for dose in doses] == [0, 1]
    assert [dose.force.refusal.value for dose in doses] == [0, 1]
    _, at_zero = dose_response(answering, held_out, hold.randomised(runs, 2, 0), [0.0], Region.READOUT)
    assert at_zero.suppress.refusal.n == 2 * len(held_out)
    assert at_zero.suppress.refusal.value > 0.7
    assert at_zero.force.refusal.value < 0.3


def test_a_strength_is_a_share_of_the_way_from_complied_to_refused_prompts():
    runs = planted_runs("modular")
    hold = DirectionHold.of(runs, RESIDUALS_1)
    acts = {side: runs.readout(side, [RESIDUALS_1])[RESIDUALS_1] for side in Side}
    for strength, wanted in ((0.0, acts[Side.CORRUPTED]), (1.0, acts[Side.CLEAN])):
        held = hold.at(torch.full((1, 1, 1), strength), Region.READOUT).change(acts[Side.CLEAN][None, :5])[0]
        assert (held @ hold.unit).tolist() == pytest.approx([float((wanted @ hold.unit).mean())] * 5, rel=1e-3)
    between = [held_m(runs, hold, Side.CLEAN, strength).mean() for strength in (0.0, 0.5, 1.0)]
    assert between == sorted(between)


def test_the_site_is_before_the_last_fifth_and_the_first_of_equals():
    holds = [DirectionHold(Site.parse(f"residuals_{layer}"), torch.zeros(1), 0.0, 1.0) for layer in range(5)]
    rated = [
        SiteClampRecord(site=str(hold.site), forced=0.9, suppressed=value)
        for hold, value in zip(holds, (0.2, 0.7, 0.7, 0.7, 1.0), strict=True)
    ]
    assert choose_hold(holds, rated, 5) is holds[1]
    assert choose_hold(holds[4:], rated[4:], 5) is holds[4], "where there is no other"


def test_replaced_entries_take_their_values_and_others_stay():
    model = make_model("llama")
    site = Site.parse("heads_1")
    values = torch.full((1, 6, 32), 7.0)
    mask = torch.tensor([[False] * 4 + [True] * 2])
    before = model.model(input_ids=TOKENS).logits
    found = []
    with (
        torch.no_grad(),
        steered(model, Replacement(site, [slice(8, 16)], values, mask)),
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
    found = RefusalsRecord.of([Behaviour.REFUSED, Behaviour.CANNOT_TELL, Behaviour.COMPLIED, Behaviour.PARTLY_REFUSED])
    assert (found.refusal.k, found.n_unclear, found.refusal.n) == (1, 1, 4)
    assert found.refusal.low < 0.25 < found.refusal.high


def test_more_random_sets_on_the_same_prompts_do_not_make_the_interval_narrower():
    once, often = (RefusalsRecord.of([Behaviour.REFUSED, Behaviour.COMPLIED] * 5 * n, n) for n in (1, 8))
    assert (often.refusal.low, often.refusal.high) == (once.refusal.low, once.refusal.high)
    assert (often.refusal.n, often.refusal.value) == (80, 0.5)


def test_answers_without_a_change_are_those_of_the_model(answering):
    held_out = planted_held_out("monolithic", 6)
    assert answering.behaviours(prompts_of(held_out, Side.CLEAN), 1, unchanged) == [[Behaviour.REFUSED] * 6]


def test_values_of_each_prompt_stay_with_it_when_other_answers_have_ended(monkeypatch):
    model = make_model("llama")
    token_ids = model.tokenize(PROMPTS)
    shape = (len(PROMPTS), max(map(len, token_ids)))
    later = torch.randn(len(PROMPTS), model.d_model, generator=torch.Generator().manual_seed(0)) * 8
    values, none = torch.zeros(*shape, model.d_model), torch.zeros(shape, dtype=torch.bool)

    def vary(variants, prompts):
        return [Replacement(RESIDUALS_1, [slice(None)], values[prompts], none[prompts], later[prompts])]

    def answers():
        return [each.token_ids for each in respond(Runs(model), token_ids, 1, vary, 8)[0]]

    monkeypatch.setitem(model.__dict__, "eos_token_ids", frozenset())
    whole = answers()
    # all answers but those that begin as the last one end at once, and could leave the batch
    monkeypatch.setitem(model.__dict__, "eos_token_ids", frozenset(each[0] for each in whole) - {whole[-1][0]})
    ended = answers()
    assert ended[-1]
    assert ended[-1] == whole[-1][: len(ended[-1])]
    assert () in ended

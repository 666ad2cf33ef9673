"""Attributions sum to the change of the metric, and predict what ablation does where the model is linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import PROMPTS

from circuits.ablation import Induction, LatentBank, Removal, matched_random_sets, measure_effects
from circuits.attribution import EdgeTarget, latent_gradients, mean_gradients, node_attributions, pearson
from circuits.dictionary import NeuronUnits, SAEUnits
from circuits.evidence import record_readout
from refusal.metric import RefusalMetric
from refusal.readout import Edit, ReadoutRunner
from refusal.sae.topk import TopKSae
from refusal.sites import Site

METRIC = RefusalMetric((6, 7), (11,))
SITES = [Site.parse(name) for name in ("mlp_0", "residuals_0", "residuals_1", "attention_2", "residuals_2")]


@pytest.fixture(params=["llama", "gpt2", "gemma"])
def runner(tiny_model, request):
    model = tiny_model(request.param)
    return ReadoutRunner(model, model.tokenize(PROMPTS), batch_size=2, row_budget=12)


def recorded(runner, site):
    return record_readout(runner, PROMPTS, [site])[site]


def make_sae(seed=0, k=5, d_model=32, d_sae=24):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(d_sae, d_model, generator=generator), dim=-1)
    weights = {"W_enc": rows.T.clone(), "b_enc": torch.zeros(d_sae), "W_dec": rows, "b_dec": torch.zeros(d_model)}
    return TopKSae(weights, k=k)


def test_attributions_of_latents_and_error_sum_to_the_change_of_the_metric(runner):
    starts = {site: recorded(runner, site).mean(0).expand(len(PROMPTS), -1) for site in SITES}
    gradients = mean_gradients(runner, METRIC, range(len(PROMPTS)), starts, n_steps=64)
    sae = make_sae()
    for site in SITES:
        acts = recorded(runner, site)
        mean_latents = sae.encode(acts).mean(0).expand(len(PROMPTS), -1)
        nodes = node_attributions(SAEUnits(sae), acts, starts[site], mean_latents, gradients.gradient[site])
        change = gradients.metric - gradients.metric_cf[site]
        total = nodes.latents.sum(1) + nodes.error
        torch.testing.assert_close(total, change, atol=2e-3, rtol=2e-2)


def test_metric_at_the_counterfactual_is_that_of_the_model_set_to_it(runner):
    site = SITES[1]
    start = recorded(runner, site)[[1, 2, 3, 4, 0]]
    gradients = mean_gradients(runner, METRIC, range(len(PROMPTS)), {site: start}, n_steps=1)
    bank = LatentBank(site, torch.zeros(5, 1), torch.zeros(1, 32))
    job = Removal(bank, torch.zeros(1, 1, dtype=torch.bool), keep_only=start - recorded(runner, site))
    effects = measure_effects(runner, METRIC, range(len(PROMPTS)), [job])
    torch.testing.assert_close(effects.metric - effects.effect[0][0], gradients.metric_cf[site], atol=1e-5, rtol=1e-4)


def test_removing_nothing_changes_nothing_and_removing_all_leaves_the_counterfactual(runner):
    site, sae = SITES[2], make_sae()
    acts = recorded(runner, site)
    latents = sae.encode(acts)
    target = latents.mean(0)
    bank = LatentBank(site, latents - target, sae.W_dec)
    sets = torch.stack([torch.zeros(24, dtype=torch.bool), torch.ones(24, dtype=torch.bool)])
    by_hand = Removal(
        LatentBank(site, torch.zeros(5, 1), torch.zeros(1, 32)),
        torch.zeros(1, 1, dtype=torch.bool),
        keep_only=(target - latents) @ sae.W_dec,
    )
    effects = measure_effects(runner, METRIC, range(len(PROMPTS)), [Removal(bank, sets), by_hand])
    assert effects.effect[0][0].abs().max() < 1e-5
    torch.testing.assert_close(effects.effect[0][1], effects.effect[1][0], atol=1e-5, rtol=1e-4)


def test_effects_do_not_depend_on_how_the_sets_are_packed(tiny_model):
    model = tiny_model("llama")
    site, sae = SITES[2], make_sae()
    token_ids = model.tokenize(PROMPTS)
    results = []
    for budget in (3, 1000):
        runner = ReadoutRunner(model, token_ids, batch_size=3, row_budget=budget)
        latents = sae.encode(recorded(runner, site))
        bank = LatentBank(site, latents - latents.mean(0), sae.W_dec)
        sets = torch.eye(24, dtype=torch.bool)
        results.append(measure_effects(runner, METRIC, [4, 0, 2], [Removal(bank, sets[:7]), Removal(bank, sets)]))
    for one, two in zip(results[0].effect, results[1].effect, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_attribution_predicts_the_effect_of_a_small_removal(tiny_model):
    model = tiny_model("llama")
    runner = ReadoutRunner(model, model.tokenize(PROMPTS))
    site, sae = SITES[2], make_sae()
    acts = recorded(runner, site)
    latents = sae.encode(acts)
    # a counterfactual so near that the model is linear on the way
    near = latents * 0.99
    starts = acts - (latents - near) @ sae.W_dec
    gradients = mean_gradients(runner, METRIC, range(len(PROMPTS)), {site: starts}, n_steps=4)
    nodes = node_attributions(SAEUnits(sae), acts, starts, near, gradients.gradient[site])
    bank = LatentBank(site, latents - near, sae.W_dec)
    effects = measure_effects(runner, METRIC, range(len(PROMPTS)), [Removal(bank, torch.eye(24, dtype=torch.bool))])
    torch.testing.assert_close(effects.effect[0].T, nodes.latents, atol=2e-5, rtol=0.05)


def test_latent_gradients_are_those_of_the_latent_under_a_small_change(tiny_model):
    model = tiny_model("llama")
    sae = make_sae(k=24)  # all latents may be active, so a small change keeps the choice
    source, target = Site.parse("residuals_0"), Site.parse("residuals_1")
    (batch,) = ReadoutRunner(model, model.tokenize(PROMPTS)).batches(range(len(PROMPTS)))
    wanted = torch.tensor([2, 9])
    gradient = latent_gradients(batch, source, EdgeTarget(target, SAEUnits(sae), wanted))
    direction = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(3)), dim=0)

    def latents(step):
        edit = Edit(source, lambda acts: acts + step * direction)
        with torch.no_grad():
            acts = batch.run(1, [edit], record=[target]).acts[target][0]
        return sae.encode(acts)[:, wanted].T

    measured = (latents(1e-3) - latents(-1e-3)) / 2e-3
    active = latents(0.0) > 1e-2
    torch.testing.assert_close((gradient @ direction)[active], measured[active], atol=2e-3, rtol=2e-2)
    assert active.any()


NEURONS = Site.parse("neurons_1")


def test_attributions_of_neurons_sum_to_the_change_of_the_metric(runner):
    acts = recorded(runner, NEURONS)
    starts = acts.mean(0).expand(len(PROMPTS), -1)
    both = {NEURONS: starts, SITES[1]: recorded(runner, SITES[1])}
    gradients = mean_gradients(runner, METRIC, range(len(PROMPTS)), both, n_steps=32)
    nodes = node_attributions(NeuronUnits(acts.shape[1]), acts, starts, starts, gradients.gradient[NEURONS])
    change = gradients.metric - gradients.metric_cf[NEURONS]
    torch.testing.assert_close(nodes.latents.sum(1), change, atol=2e-3, rtol=2e-2)
    assert nodes.error.abs().max() == 0
    assert nodes.latents.shape[1] == acts.shape[1] != runner.model.d_model


def test_latent_gradients_of_neurons_are_those_under_a_small_change(tiny_model):
    model = tiny_model("llama")
    (batch,) = ReadoutRunner(model, model.tokenize(PROMPTS)).batches(range(len(PROMPTS)))
    source, wanted = Site.parse("residuals_0"), torch.tensor([0, 5, 7])
    width = recorded(ReadoutRunner(model, model.tokenize(PROMPTS)), NEURONS).shape[1]
    gradient = latent_gradients(batch, source, EdgeTarget(NEURONS, NeuronUnits(width), wanted))
    direction = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(3)), dim=0)

    def neurons(step):
        edit = Edit(source, lambda acts: acts + step * direction)
        with torch.no_grad():
            return batch.run(1, [edit], record=[NEURONS]).acts[NEURONS][0][:, wanted].T

    measured = (neurons(1e-3) - neurons(-1e-3)) / 2e-3
    torch.testing.assert_close(gradient @ direction, measured, atol=2e-3, rtol=2e-2)


def test_removing_neurons_sets_them_and_no_others(runner):
    acts = recorded(runner, NEURONS)
    units, target = NeuronUnits(acts.shape[1]), acts.mean(0)
    chosen = torch.zeros(acts.shape[1], dtype=torch.bool)
    chosen[[1, 4]] = True
    bank = LatentBank(NEURONS, (acts - target)[:, chosen], units.rows(chosen))
    effects = measure_effects(runner, METRIC, range(len(PROMPTS)), [Removal(bank, torch.ones(1, 2, dtype=torch.bool))])
    by_hand = torch.zeros(len(PROMPTS))
    for batch in runner.batches(range(len(PROMPTS))):
        set_to = torch.where(chosen, target, acts[batch.prompts])[None]
        with torch.no_grad():
            by_hand[batch.prompts] = METRIC(batch.run(1, [Edit(NEURONS, lambda _, value=set_to: value)]).logits)[0]
    torch.testing.assert_close(effects.metric - effects.effect[0][0], by_hand, atol=1e-5, rtol=1e-4)


def test_inducing_a_circuit_sets_its_latents_to_the_given_values(runner):
    site, sae = SITES[2], make_sae()
    acts = recorded(runner, site)
    latents = sae.encode(acts).detach()
    sets = torch.zeros(2, 24, dtype=torch.bool)
    sets[0, 3], sets[1, [5, 6]] = True, True
    values = torch.full((2, 24), 2.0)
    job = Induction(site, sets, values, latents, sae.W_dec.detach())
    effects = measure_effects(runner, METRIC, range(len(PROMPTS)), [job])
    wanted = torch.zeros(2, len(PROMPTS))
    for batch in runner.batches(range(len(PROMPTS))):
        rows = batch.prompts
        for index in (0, 1):
            step = ((2.0 - latents[rows]) * sets[index]) @ sae.W_dec.detach()
            edit = Edit(site, lambda value, step=step: value + step)
            with torch.no_grad():
                wanted[index, rows] = METRIC(batch.run(1, [edit]).logits)[0]
    torch.testing.assert_close(effects.metric - effects.effect[0], wanted, atol=1e-5, rtol=1e-4)


def test_pearson_when_behaviour_is_constant_says_nothing():
    assert pearson(torch.randn(6, 3), torch.ones(6)).tolist() == [0.0, 0.0, 0.0]


def test_matched_random_sets_match_size_and_frequency_and_avoid_all_sets():
    frequency = np.r_[np.full(20, 0.1), np.full(20, 0.9), np.zeros(5)]
    sets = np.zeros((2, 45), bool)
    sets[0, [0, 1, 20]] = True
    sets[1, [21]] = True
    drawn = matched_random_sets(sets, frequency, 50, np.random.default_rng(0))
    assert (drawn.sum(-1) == sets.sum(-1)).all()
    assert not (drawn & sets.any(0)).any(), "another category's circuit is no random set"
    assert not drawn[..., 40:].any()
    assert (drawn[:, 0, :20].sum(-1) == 2).all()
    assert (drawn[:, 1, 20:40].sum(-1) == 1).all()


def test_matched_random_sets_where_circuits_hold_nearly_all_latents_avoid_their_own():
    sets = np.zeros((2, 6), bool)
    sets[0, :3] = sets[1, 3:] = True
    drawn = matched_random_sets(sets, np.ones(6), 5, np.random.default_rng(0))
    assert (drawn.sum(-1) == 3).all()
    assert not (drawn & sets).any()

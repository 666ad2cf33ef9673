"""What an SAE keeps of a model: exact at both ends, by hand in between, and noted with the artefacts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import PROMPTS

from refusal.interventions import edit, record
from refusal.metric import RefusalMetric
from refusal.readout import ReadoutRunner
from refusal.sae.fidelity import (
    Damage,
    Replacement,
    fvu_estimate,
    loss_recovered,
    measure_damage,
    share_recovered,
    signal_recovered,
)
from refusal.sae.metrics import duplicate_share, reconstruction_bias
from refusal.sae.thresholded import ReluSae
from refusal.sites import Site
from refusal.stats import bootstrap_weights

SITE = Site.parse("residuals_1")
METRIC = RefusalMetric((6, 7), (11,))
N = len(PROMPTS)
WEIGHTS = bootstrap_weights(N, 200, np.random.default_rng(0))


def recorded(model):
    acts = []
    for prompt in PROMPTS:
        with torch.no_grad(), record(model, [SITE]) as found:
            model.model(input_ids=torch.tensor(model.tokenize([prompt])))
            acts.append(found[SITE][0, 0])
    return torch.stack(acts)


def identity(width, mean):
    """Return an SAE of which latents come in pairs, +x and -x: it reconstructs everything."""
    eye = torch.eye(width)
    tensors = {"W_enc": torch.cat([eye, -eye], 1), "b_enc": torch.zeros(2 * width)}
    return ReluSae({**tensors, "W_dec": torch.cat([eye, -eye]), "b_dec": mean})


def constant(width, mean):
    """Return an SAE that always gives its bias."""
    tensors = {"W_enc": torch.zeros(width, 3), "b_enc": torch.zeros(3), "W_dec": torch.ones(3, width), "b_dec": mean}
    return ReluSae(tensors)


@pytest.fixture(scope="module", params=["llama", "gpt2", "mistral"])
def measured(request, tiny_model):
    """Return the prompts' damages by the mean, an identity, a constant and half a reconstruction."""
    model = tiny_model(request.param)
    acts = recorded(model)
    mean = acts.mean(0)
    rebuilt = [mean.expand_as(acts)]
    rebuilt += [sae(acts).reconstruction for sae in (identity(32, mean), constant(32, mean))]
    rebuilt.append((acts + mean) / 2)
    runner = ReadoutRunner(model, model.tokenize(list(PROMPTS)), batch_size=2, row_budget=6)
    found = measure_damage(runner, METRIC, N, [Replacement(SITE, values) for values in rebuilt])
    return model, acts, rebuilt, found


def test_an_identity_keeps_everything_and_the_mean_nothing(measured):
    _, _, _, found = measured
    mean, same, constant_sae, half = found.of
    assert signal_recovered(same, mean, found.metric, WEIGHTS).value == pytest.approx(1, abs=1e-6)
    assert loss_recovered(same, mean, WEIGHTS).value == pytest.approx(1, abs=1e-4)
    assert signal_recovered(constant_sae, mean, found.metric, WEIGHTS).value == pytest.approx(0, abs=1e-5)
    assert loss_recovered(constant_sae, mean, WEIGHTS).value == pytest.approx(0, abs=1e-4)
    between = signal_recovered(half, mean, found.metric, WEIGHTS)
    assert 0.3 < between.value < 1
    assert between.low <= between.value <= between.high
    assert between.n == N


def test_replacing_equals_a_full_pass_with_the_site_set(measured):
    model, _, rebuilt, found = measured
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor(model.tokenize([prompt]))
        with torch.no_grad():
            plain = model.model(input_ids=ids).logits[:, -1].double()

            def put(value, row=row):
                return torch.cat([value[:, :-1], rebuilt[3][row][None, None]], dim=1)

            with edit(model, {SITE: put}):
                changed = model.model(input_ids=ids).logits[:, -1].double()
        assert found.metric[row] == pytest.approx(float(METRIC(plain)), abs=1e-4)
        assert found.of[3].metric[row] == pytest.approx(float(METRIC(changed) - METRIC(plain)), abs=1e-4)
        log_p, log_q = plain.log_softmax(-1), changed.log_softmax(-1)
        assert found.of[3].divergence[row] == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), abs=1e-5)


def test_shares_by_hand():
    # squares of the changes: by the SAE 0 + 1 + 4, by the mean 4 + 16 + 0; errors of opposite sign do not cancel
    sae = Damage(np.array([0.0, 1.0, -2.0]), np.array([0.0, 0.1, 0.1]))
    mean = Damage(np.array([2.0, -4.0, 0.0]), np.array([0.3, 0.3, 0.2]))
    weights = bootstrap_weights(3, 500, np.random.default_rng(0))
    assert signal_recovered(sae, mean, np.array([1.0, 2.0, 3.0]), weights).value == pytest.approx(1 - 5 / 20)
    assert loss_recovered(sae, mean, weights).value == pytest.approx(1 - 0.2 / 0.8)
    worse = share_recovered(np.array([9.0]), np.array([1.0]), np.ones((2, 1)))
    assert (worse.value, worse.low, worse.high) == (-8, None, None), "not clipped; one prompt has no interval"


def test_where_the_mean_changes_nothing_there_is_nothing_to_recover():
    little = Damage(np.array([0.01, -0.01]), np.array([1e-6, 1e-6]))
    found = signal_recovered(little, little, np.array([-5.0, 5.0]), np.ones((2, 2)))
    assert found.value is None
    assert found.reason == "mean ablation moves the refusal metric by 0.01 logits where prompts differ by 5"
    assert "does not change" in loss_recovered(little, little, np.ones((2, 2))).reason


def test_fvu_with_interval_by_hand():
    acts, rebuilt = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[0.0], [1.0], [4.0]])
    found = fvu_estimate(acts, rebuilt, bootstrap_weights(3, 500, np.random.default_rng(0)))
    assert found.value == pytest.approx(1 / 8)
    assert found.low < found.value < found.high


def test_reconstruction_bias_is_of_length_and_not_of_the_mean():
    acts = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) + 100
    mean = acts.mean(0)
    assert reconstruction_bias(acts, mean + 0.7 * (acts - mean)) == pytest.approx(0.7, abs=1e-4)
    assert reconstruction_bias(acts, acts) == pytest.approx(1)


def test_duplicates_are_counted_across_chunks(monkeypatch):
    decoder = torch.eye(8)
    decoder[5] = decoder[0] + 0.1 * decoder[1]
    monkeypatch.setattr("refusal.sae.metrics.CHUNK_ROWS", 3)
    assert duplicate_share(decoder) == 2 / 8

"""Sizes of circuits, and what each node adds to one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import PROMPTS

from circuits.contrast import Contrasts
from circuits.dictionary import NeuronUnits
from circuits.discovery import choose_size, dosed_latents, minimality, top_latents
from circuits.evidence import Evidence, SiteCode, record_readout
from refusal.metric import RefusalMetric
from refusal.readout import Edit, ReadoutRunner
from refusal.sites import Site

SITE = Site.parse("residuals_1")
METRIC = RefusalMetric((6, 7), (11,))


def test_top_latents_takes_each_rows_own_number_and_positive_scores_only():
    scores = torch.tensor([[3.0, 1.0, 2.0, -1.0], [0.5, -2.0, -1.0, 0.1]])
    assert top_latents(scores, (2, 3)).tolist() == [[True, False, True, False], [True, False, False, True]]


@pytest.mark.parametrize(
    ("shares", "size"),
    [
        ([0.5, 0.6, 0.8, 1.0], 3.0),  # half way from 2 to 4 latents
        ([1.4, 1.5, 1.5, 1.6], 0.5),  # more than all counts as all: 0.7 is half of what the first latent does
        ([0.1, 0.2, 0.05, 0.2], 1.4),
        ([-0.1, 0.0, 0.0, -0.2], 1.0),
    ],
)
def test_choose_size_is_where_seven_tenths_are_done_without_overshoot(shares, size):
    assert choose_size([1, 2, 4, 8], shares) == pytest.approx(size)


def test_dosed_latents_are_the_top_ones_with_the_last_in_part():
    scores = torch.tensor([[3.0, 1.0, 2.0, -1.0], [0.5, -2.0, -1.0, 0.1]])
    assert dosed_latents(scores, (2.0, 1.0)).tolist() == top_latents(scores, (2, 1)).float().tolist()
    assert dosed_latents(scores, (1.5, 2.5)).tolist() == [[1, 0, 0.5, 0], [1, 0, 0, 1]]


@pytest.fixture
def evidence(tiny_model):
    """Return evidence with one category: the first three prompts refused, the others complied."""
    model = tiny_model("llama")
    found = Evidence.__new__(Evidence)
    refused = np.arange(len(PROMPTS)) < 3
    category, fold = np.zeros(len(PROMPTS), int), np.arange(len(PROMPTS)) % 2
    found.contrasts = Contrasts(tuple(map(str, range(len(PROMPTS)))), ("one",), category, refused, fold, {})
    found.runner = ReadoutRunner(model, model.tokenize(PROMPTS))
    found.metric = METRIC
    return found


def test_minimality_is_what_the_kept_circuit_loses_without_the_node(evidence):
    acts = record_readout(evidence.runner, PROMPTS, [SITE])[SITE]
    counterfactual = acts[3:].mean(0, keepdim=True)
    code = SiteCode(SITE, NeuronUnits(acts.shape[1]), acts, acts, counterfactual, counterfactual)
    circuit = torch.tensor([2, 5, 9])
    (found,) = minimality(evidence, 0, [code], [circuit])

    def kept(units):
        """m with the units at their values and all others at the counterfactual."""
        result = np.zeros(3)
        chosen = torch.zeros(acts.shape[1], dtype=torch.bool)
        chosen[units] = True
        for batch in evidence.runner.batches([0, 1, 2]):
            value = torch.where(chosen, acts[batch.prompts], counterfactual)[None]
            with torch.no_grad():
                scores = METRIC(batch.run(1, [Edit(SITE, lambda _, value=value: value)]).logits)[0]
            result[batch.prompts] = scores.numpy()
        return result

    whole = kept([2, 5, 9])
    assert found[0] == pytest.approx(whole - kept([5, 9]), abs=1e-6)
    assert found[2] == pytest.approx(whole - kept([2, 5]), abs=1e-6)
    assert np.abs(found).max() > 1e-3

"""A gate lets an intervention through where its condition holds, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from tiny_models import PROMPTS

from refusal.interventions import record
from refusal.sites import Site, SiteKind
from refusal.steering import Ablation, Addition, Gate, Gated, steered
from refusal.steering.losses import Text, losses
from refusal.steering.run import Runs, readout_logits, respond, same

VECTOR = torch.linspace(-1, 1, 32, dtype=torch.float64)
UNIT = VECTOR / VECTOR.norm()
AT = Site(SiteKind.RESIDUALS, 1)


def run(model, *interventions):
    with torch.no_grad(), steered(model, *interventions), record(model, [AT], last_only=False) as acts:
        readout_logits(model, model.tokenize(PROMPTS))
    return acts[AT].double()


def projections(model):
    site = Site(SiteKind.RESIDUALS, 0)
    with torch.no_grad(), record(model, [site], last_only=False) as acts:
        readout_logits(model, model.tokenize(PROMPTS))
    return acts[site].double() @ UNIT


@pytest.mark.parametrize("decides", ["prompt", "position"])
def test_the_action_happens_where_the_projection_exceeds_the_threshold(tiny_model, decides):
    model = tiny_model("llama")
    found = projections(model)
    decisive = found[:, -1:] if decides == "prompt" else found
    threshold = float(decisive.median())
    gate = Gate(UNIT, 0, threshold, decides)
    changed = (run(model, Gated(gate, Addition(5 * VECTOR, 1))) - run(model)).norm(dim=-1) > 1e-3
    assert torch.equal(changed, (decisive > threshold).expand_as(changed))
    assert 0 < int(changed.sum()) < changed.numel()


def test_the_prompt_decides_for_its_whole_answer(tiny_model):
    """The answers of prompts behind a closed gate are the plain ones, of the others those of the action alone."""
    model = tiny_model("llama")
    runs, token_ids = Runs(model), model.tokenize(PROMPTS)
    readout = projections(model)[:, -1]
    threshold = float(readout.median())
    action = Addition(20 * VECTOR, 1)
    gated, plain, acted = (
        respond(runs, token_ids, 1, same(*interventions), 6)[0]
        for interventions in ((Gated(Gate(UNIT, 0, threshold), action),), (), (action,))
    )
    assert gated == [acted[row] if readout[row] > threshold else plain[row] for row in range(len(PROMPTS))]
    assert gated not in (plain, acted)


def test_the_prompt_decides_where_its_answer_stands_behind_it_in_one_pass(tiny_model):
    """What a gated action costs on a text: nothing behind a closed gate, that of the action behind an open one."""
    model = tiny_model("llama")
    readout = projections(model)[:, -1]
    threshold = float(readout.median())
    action = Addition(20 * VECTOR, 1)
    texts = [Text(tuple(ids), (11, 12, 13)[: 1 + row % 3]) for row, ids in enumerate(model.tokenize(PROMPTS))]
    gated, plain, acted = (
        losses(Runs(model), texts, interventions).nats
        for interventions in ([Gated(Gate(UNIT, 0, threshold), action)], [], [action])
    )
    assert gated == pytest.approx([acted[row] if readout[row] > threshold else plain[row] for row in range(len(texts))])
    assert abs(acted - plain).min() > 0.01


def test_an_action_before_its_gate_is_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="the gate at residuals_1 comes after the embeddings"):
        run(model, Gated(Gate(UNIT, 1, 0.0), Ablation(UNIT[None])))

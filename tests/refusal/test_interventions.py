"""Hooks see and change what they should, and are gone afterwards."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, PROMPTS

from refusal.interventions import edit, record
from refusal.sites import Site, SiteKind

RESIDUALS_1 = Site(SiteKind.RESIDUALS, 1)


def forward(model):
    tokens = model.pad(model.tokenize(PROMPTS))
    with torch.no_grad():
        return model.model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, position_ids=tokens.position_ids
        ).logits[:, -1]


def hooks_of(model):
    modules = list(model.model.modules())
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_are_gone_afterwards_also_after_an_error(tiny_model, family):
    model = tiny_model(family)
    before = hooks_of(model)
    with record(model, model.sites()), edit(model, {site: lambda acts: acts for site in model.sites()}):
        forward(model)
        assert hooks_of(model) > before
    with pytest.raises(KeyError), record(model, model.sites()), edit(model, {RESIDUALS_1: lambda acts: acts}):
        raise KeyError
    assert hooks_of(model) == before


def test_recording_is_refreshed_by_each_forward_pass_and_keeps_its_values(tiny_model):
    model = tiny_model("llama")
    with record(model, [RESIDUALS_1]) as acts:
        assert acts == {}
        forward(model)
        first = acts[RESIDUALS_1]
        with edit(model, {Site(SiteKind.RESIDUALS, 0): lambda acts: acts * 2}):
            forward(model)
    assert first.shape == (len(PROMPTS), 1, model.d_model)
    assert not torch.equal(first, acts[RESIDUALS_1])


def test_the_last_position_is_the_last_of_all_positions(tiny_model):
    model = tiny_model("llama")
    with record(model, [RESIDUALS_1]) as last, record(model, [RESIDUALS_1], last_only=False) as all_positions:
        forward(model)
    assert torch.equal(last[RESIDUALS_1][:, 0], all_positions[RESIDUALS_1][:, -1])


def test_a_recording_sees_the_edits_made_before_it_and_not_those_made_after(tiny_model):
    model = tiny_model("llama")
    to_one = {RESIDUALS_1: torch.ones_like}
    with record(model, [RESIDUALS_1]) as outside, edit(model, to_one), record(model, [RESIDUALS_1]) as inside:
        forward(model)
    assert (inside[RESIDUALS_1] == 1).all()
    assert not (outside[RESIDUALS_1] == 1).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_projecting_a_direction_out_of_every_write_leaves_none_of_it_in_the_stream(tiny_model, family):
    model = tiny_model(family)
    direction = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0)

    def project_out(acts):
        return acts - (acts @ direction)[..., None] * direction

    edits = {site: project_out for site in model.sites()}
    plain = forward(model)
    last = Site(SiteKind.RESIDUALS, model.n_layers - 1)
    with edit(model, edits), record(model, [last], last_only=False) as acts:
        assert not torch.equal(forward(model), plain)
    assert float((acts[last] @ direction).abs().max()) < 1e-5
    assert torch.equal(forward(model), plain)

"""What is captured is the hidden state at the last prompt token, whatever the batch, and the greedy answer."""

from __future__ import annotations

import pytest
import torch
from tiny_models import PROMPTS

from refusal.capture import capture, check_finite
from refusal.errors import InputError
from refusal.sites import Site, SiteKind

FAMILIES = ("llama", "mistral", "qwen2", "gemma", "gpt_neox", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_residuals_are_the_hidden_states_of_the_readout_position(tiny_model, family):
    model = tiny_model(family)
    token_ids = model.tokenize(PROMPTS)
    found = capture(model, token_ids, model.sites(), max_new_tokens=4)
    for row, ids in enumerate(token_ids):
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        for layer in range(model.n_layers - 1):  # the last entry of hidden_states is after the final norm
            acts = found.readout[Site(SiteKind.RESIDUALS, layer)][row]
            torch.testing.assert_close(acts, hidden[layer + 1][0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_alone_gives_the_same_as_in_a_batch(tiny_model, family):
    model = tiny_model(family)
    token_ids = model.tokenize(PROMPTS)
    together = capture(model, token_ids, model.sites(), max_new_tokens=6)
    for row, ids in enumerate(token_ids):
        alone = capture(model, [ids], model.sites(), max_new_tokens=6)
        assert alone.answers[0] == together.answers[row]
        assert alone.ended[0] == together.ended[row]
        torch.testing.assert_close(alone.first_token.logits[0], together.first_token.logits[row], atol=1e-5, rtol=1e-5)
        for site in model.sites():
            torch.testing.assert_close(alone.readout[site][0], together.readout[site][row], atol=1e-5, rtol=1e-5)


def test_answers_are_those_of_greedy_generation(tiny_model):
    model = tiny_model("llama")
    token_ids = model.tokenize(PROMPTS)
    found = capture(model, token_ids, [], max_new_tokens=8)
    for row, ids in enumerate(token_ids):
        prompt = torch.tensor([ids])
        wanted = model.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False, pad_token_id=1
        )[0, len(ids) :].tolist()
        if 3 in wanted:
            assert found.ended[row]
            wanted = wanted[: wanted.index(3)]
        assert found.answers[row] == wanted


def test_a_prompt_does_not_feel_that_its_batch_mates_answers_end_early(tiny_model, monkeypatch):
    model = tiny_model("gpt2")
    token_ids = model.tokenize(PROMPTS)
    plain = capture(model, token_ids, model.sites(), max_new_tokens=6)
    second = [answer[1] for answer in plain.answers]
    monkeypatch.setitem(model.__dict__, "eos_token_ids", frozenset({second[0], plain.answers[3][3]}))
    together = capture(model, token_ids, model.sites(), max_new_tokens=6)
    assert len({len(answer) for answer in together.answers}) > 1
    for row, ids in enumerate(token_ids):
        alone = capture(model, [ids], model.sites(), max_new_tokens=6)
        assert alone.answers[0] == together.answers[row]
        for site in model.sites():
            assert torch.equal(together.readout[site], plain.readout[site])
            torch.testing.assert_close(alone.readout[site][0], together.readout[site][row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bloom"])
def test_answers_that_have_ended_leave_the_batch_and_the_others_stay_as_they_are(tiny_model, monkeypatch, family):
    model = tiny_model(family)
    token_ids = model.tokenize(PROMPTS)
    monkeypatch.setitem(model.__dict__, "eos_token_ids", frozenset())
    endless = capture(model, token_ids, [], max_new_tokens=12)
    # the answers of prompts 0, 1 and 3 end with the first token, the third, the third
    stops = {endless.answers[0][0], endless.answers[1][2], endless.answers[3][2]}
    monkeypatch.setitem(model.__dict__, "eos_token_ids", frozenset(stops))
    widths = []
    forward = model.model.forward

    def watched(*args, **kwargs):
        widths.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", watched)
    found = capture(model, token_ids, [], max_new_tokens=12)
    for answer, full, ended in zip(found.answers, endless.answers, found.ended, strict=True):
        first = next((place for place, token in enumerate(full) if token in stops), len(full))
        assert answer == full[:first]
        assert ended == (first < len(full))
    assert widths[0] == len(PROMPTS)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] <= len(PROMPTS) / 2 or len(widths) < 12


def test_capture_when_an_answer_ends_at_once_is_empty_and_ended(tiny_model, monkeypatch):
    model = tiny_model("llama")
    token_ids = model.tokenize(PROMPTS)
    first = capture(model, token_ids, [], max_new_tokens=1).first_token.ids[:, 0].tolist()
    monkeypatch.setitem(model.__dict__, "eos_token_ids", frozenset(first[:1]))
    found = capture(model, token_ids, [], max_new_tokens=5)
    for row, token in enumerate(first):
        assert (found.answers[row] == []) == (token == first[0])
    assert found.ended[0]


def test_activations_that_are_not_finite_name_the_site_and_the_prompt(tiny_model):
    model = tiny_model("llama")
    found = capture(model, model.tokenize(PROMPTS), model.sites(), max_new_tokens=1)
    found.readout[Site.parse("mlp_1")][2, 0] = float("nan")
    with pytest.raises(InputError, match=r"1 prompts at mlp_1 are not finite \(e.g. p2\) in float32"):
        check_finite(found, ["p0", "p1", "p2", "p3", "p4"], model)


def test_logits_that_are_not_finite_are_told_when_no_site_shows_it(tiny_model):
    model = tiny_model("llama")
    found = capture(model, model.tokenize(PROMPTS), [], max_new_tokens=1)
    found.first_token.logsumexp[4] = float("inf")
    with pytest.raises(InputError, match=r"1 prompts at the logits are not finite \(e.g. p4\).*dtype: float32"):
        check_finite(found, ["p0", "p1", "p2", "p3", "p4"], model)

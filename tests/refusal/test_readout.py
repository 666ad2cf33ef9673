"""The cached one-token run equals the full forward pass, under edits too, on every family."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, PROMPTS

from refusal.interventions import edit, record
from refusal.readout import Edit, ReadoutRunner
from refusal.sites import Site


def full_pass(model, token_ids, edits=None):
    tokens = model.pad(token_ids)
    with torch.no_grad(), edit(model, edits or {}), record(model, model.sites()) as acts:
        logits = model.model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, position_ids=tokens.position_ids
        ).logits[:, -1]
    return logits, {site: value[:, -1] for site, value in acts.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_run_equals_the_full_forward_pass(tiny_model, family):
    model = tiny_model(family)
    token_ids = model.tokenize(PROMPTS)
    runner = ReadoutRunner(model, token_ids, batch_size=3)
    for batch in runner.batches(range(len(PROMPTS))):
        logits, acts = full_pass(model, [token_ids[int(prompt)] for prompt in batch.prompts])
        for n_variants in (1, 3):
            with torch.no_grad():
                readout = batch.run(n_variants, record=model.sites())
            for variant in range(n_variants):
                torch.testing.assert_close(readout.logits[variant], logits, atol=1e-5, rtol=1e-5)
                for site in model.sites():
                    torch.testing.assert_close(readout.acts[site][variant], acts[site], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_an_edit_equals_the_same_edit_in_the_full_pass(tiny_model, family):
    model = tiny_model(family)
    token_ids = model.tokenize(PROMPTS)
    site = Site.parse("mlp_1")

    def at_the_last_position(acts):
        changed = acts.clone()
        changed[:, -1] += 0.5
        return changed

    (batch,) = ReadoutRunner(model, token_ids).batches(range(len(PROMPTS)))
    wanted, _ = full_pass(model, [token_ids[int(p)] for p in batch.prompts], {site: at_the_last_position})
    add = torch.tensor([0.0, 0.5])[:, None, None]
    with torch.no_grad():
        readout = batch.run(2, [Edit(site, lambda acts: acts + add)], record=[site])
        plain = batch.run(1).logits[0]
    torch.testing.assert_close(readout.logits[1], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(readout.logits[0], plain, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(readout.acts[site][1] - readout.acts[site][0], torch.full((5, 32), 0.5))


def test_runs_leave_the_cache_and_the_model_as_they_were(tiny_model):
    model = tiny_model("llama")
    (batch,) = ReadoutRunner(model, model.tokenize(PROMPTS)).batches(range(len(PROMPTS)))
    with torch.no_grad():
        before = batch.run(1).logits
        batch.run(4, [Edit(Site.parse("residuals_0"), lambda acts: acts * 3)])
        with pytest.raises(ZeroDivisionError):
            batch.run(2, [Edit(Site.parse("residuals_0"), lambda acts: acts / (1 // 0))])
        after = batch.run(1).logits
    assert torch.equal(before, after)


def test_a_prompt_does_not_feel_its_batch_mates(tiny_model):
    model = tiny_model("llama")
    token_ids = model.tokenize(PROMPTS)
    with torch.no_grad():
        (together,) = ReadoutRunner(model, token_ids).batches(range(len(PROMPTS)))
        all_logits = together.run(1).logits[0]
        for row, prompt in enumerate(together.prompts.tolist()):
            (alone,) = ReadoutRunner(model, token_ids).batches([prompt])
            torch.testing.assert_close(alone.run(1).logits[0, 0], all_logits[row], atol=1e-5, rtol=1e-5)


def test_a_prompt_of_one_token_runs(tiny_model):
    model = tiny_model("llama")
    (batch,) = ReadoutRunner(model, [[5]]).batches([0])
    logits, _ = full_pass(model, [[5]])
    with torch.no_grad():
        torch.testing.assert_close(batch.run(2).logits[1], logits, atol=1e-5, rtol=1e-5)


def test_gradients_flow_through_edits(tiny_model):
    model = tiny_model("llama")
    (batch,) = ReadoutRunner(model, model.tokenize(PROMPTS)).batches(range(len(PROMPTS)))
    shift = torch.zeros(32, requires_grad=True)
    logits = batch.run(1, [Edit(Site.parse("residuals_1"), lambda acts: acts + shift)]).logits
    (gradient,) = torch.autograd.grad(logits[..., 7].sum(), shift)
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        up, down = (
            batch.run(1, [Edit(Site.parse("residuals_1"), lambda acts, s=sign: acts + s * step)]).logits[..., 7].sum()
            for sign in (1, -1)
        )
    assert float(up - down) / 2 == pytest.approx(float(gradient @ step), rel=0.02)

"""The cached one-token run equals the full forward pass, under edits too, on every family."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, PROMPTS, make_model

from refusal.interventions import edit, record
from refusal.readout import Edit, ReadoutRunner, _Rows, _SideBySide
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


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_equals_the_same_edit_in_the_full_pass(tiny_model, family):
    model = tiny_model(family)
    token_ids = model.tokenize(PROMPTS)
    site = Site.parse("mlp_1")
    shift = torch.linspace(-0.5, 0.5, 32)  # not a constant: layer norms take those away

    def at_the_last_position(acts):
        changed = acts.clone()
        changed[:, -1] += shift
        return changed

    (batch,) = ReadoutRunner(model, token_ids).batches(range(len(PROMPTS)))
    wanted, _ = full_pass(model, [token_ids[int(p)] for p in batch.prompts], {site: at_the_last_position})
    add = torch.stack([torch.zeros(32), shift])[:, None]
    with torch.no_grad():
        readout = batch.run(2, [Edit(site, lambda acts: acts + add)], record=[site])
        plain = batch.run(1).logits[0]
    assert not torch.allclose(wanted, plain, atol=1e-3)
    torch.testing.assert_close(readout.logits[1], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(readout.logits[0], plain, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(readout.acts[site][1] - readout.acts[site][0], shift.expand(5, 32))


def both_layouts(model, token_ids):
    """Return the same prompts with variants side by side and as rows."""
    runner = ReadoutRunner(model, token_ids)
    (side_by_side,) = runner.batches(range(len(token_ids)))
    (rows,) = runner.batches(range(len(token_ids)))
    assert isinstance(side_by_side._layout, _SideBySide)
    rows._layout = _Rows(side_by_side._layout._tokens, side_by_side._layout._prefix)
    return side_by_side, rows


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bloom"])
def test_both_layouts_give_the_same_values_and_gradients_under_several_edits(tiny_model, family):
    model = tiny_model(family)
    token_ids = [ids[:6] for ids in model.tokenize(PROMPTS)]  # no longer than the sliding windows
    found = []
    for batch in both_layouts(model, token_ids):
        leaf = torch.linspace(-1, 1, 3 * 5 * 32).reshape(3, 5, 32).requires_grad_()
        edits = [
            Edit(Site.parse("residuals_2"), lambda acts: acts * 1.5),
            Edit(Site.parse("mlp_1"), lambda acts, leaf=leaf: acts + leaf),
            Edit(Site.parse("mlp_1"), lambda acts: acts.flip(-1)),
        ]
        readout = batch.run(3, edits, record=model.sites())
        (gradient,) = torch.autograd.grad(readout.logits[..., 7].sum(), leaf)
        found.append([readout.logits, gradient, *(readout.acts[site] for site in model.sites())])
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_layout_is_rows_where_a_sliding_window_is_shorter_than_the_prompts(tiny_model):
    model = tiny_model("mistral")  # sees 6 tokens
    for length, layout in ((6, _SideBySide), (7, _Rows)):
        (batch,) = ReadoutRunner(model, [list(range(5, 5 + length))]).batches([0])
        assert isinstance(batch._layout, layout)


def test_layout_is_rows_where_attention_takes_no_mask_per_query(tiny_model):
    (batch,) = ReadoutRunner(tiny_model("bloom"), [[5, 6]]).batches([0])
    assert isinstance(batch._layout, _Rows)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom"])
def test_a_variant_does_not_feel_the_others(tiny_model, family):
    model = tiny_model(family)
    (batch,) = ReadoutRunner(model, model.tokenize(PROMPTS)).batches(range(len(PROMPTS)))
    site = Site.parse("residuals_0")
    found = []
    for size in (1.0, 100.0, -1000.0):
        scales = torch.tensor([1.0, size, 1.0])[:, None, None]
        with torch.no_grad():
            found.append(batch.run(3, [Edit(site, lambda acts, scales=scales: acts * scales)]).logits)
    for other in found[1:]:
        torch.testing.assert_close(other[[0, 2]], found[0][[0, 2]], atol=1e-6, rtol=1e-6)
        assert not torch.allclose(other[1], found[0][1], atol=1e-4)


def test_edits_apply_in_order_of_depth_and_recordings_see_them(tiny_model):
    model = tiny_model("llama")
    (batch,) = ReadoutRunner(model, model.tokenize(PROMPTS)).batches(range(len(PROMPTS)))
    early, late = Site.parse("attention_1"), Site.parse("residuals_1")
    edits = [Edit(late, lambda acts: acts * 0 + 7), Edit(early, lambda acts: acts * 0 + 3)]
    with torch.no_grad():
        acts = batch.run(2, edits, record=[early, late]).acts
    assert (acts[early] == 3).all()
    assert (acts[late] == 7).all()


def test_an_edit_that_changes_nothing_changes_nothing_bit_for_bit(tiny_model):
    model = tiny_model("llama")
    (batch,) = ReadoutRunner(model, model.tokenize(PROMPTS)).batches(range(len(PROMPTS)))
    with torch.no_grad():
        plain = batch.run(2)
        same = batch.run(2, [Edit(site, lambda acts: acts) for site in model.sites()])
    assert torch.equal(plain.logits, same.logits)


def test_batches_hold_every_prompt_once_and_respect_the_row_budget(tiny_model):
    model = tiny_model("llama")
    runner = ReadoutRunner(model, model.tokenize(PROMPTS), batch_size=2, row_budget=6)
    batches = list(runner.batches([4, 0, 2]))
    assert sorted(prompt for batch in batches for prompt in batch.prompts.tolist()) == [0, 2, 4]
    assert [batch.variants_that_fit for batch in batches] == [3, 6]


def test_bfloat16_gives_the_same_within_its_precision(tiny_model):
    model = make_model("llama")
    exact = tiny_model("llama")
    model.model.to(torch.bfloat16)
    token_ids = model.tokenize(PROMPTS)
    (half,), (full,) = (list(ReadoutRunner(each, token_ids).batches(range(5))) for each in (model, exact))
    edits = [Edit(Site.parse("residuals_0"), lambda acts: acts + torch.tensor([0.0, 0.1])[:, None, None])]
    with torch.no_grad():
        torch.testing.assert_close(half.run(2, edits).logits.float(), full.run(2, edits).logits, atol=0.02, rtol=0.05)


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


@pytest.mark.parametrize("token_ids", [[[5]], [[5], [5, 6, 7]]])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_one_token_runs_alone_and_beside_longer_ones(tiny_model, family, token_ids):
    model = tiny_model(family)
    (batch,) = ReadoutRunner(model, token_ids).batches(range(len(token_ids)))
    alone, _ = full_pass(model, [[5]])
    with torch.no_grad():
        torch.testing.assert_close(batch.run(2).logits[1, :1], alone, atol=1e-5, rtol=1e-5)


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

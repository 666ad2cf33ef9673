"""Where heads look: shares that sum to one, groups that tell, and a model that is as before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from patching_runs import PAIRS, planted_runs, runs_of
from tiny_models import make_model

from refusal.patching.attention import GROUPS, attention_patterns, eager_attention, token_groups
from refusal.patching.tokens import READOUT
from refusal.patching.units import Side, head_units

TOKENS = torch.tensor([[2, 4, 10, 11, 12, 5]])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "bloom", "gpt_neox", "gemma3_vision"])
def test_shares_sum_to_one_and_the_model_is_as_before(family):
    model = make_model(family)
    with torch.no_grad():
        before = model.model(input_ids=TOKENS).logits
        found = attention_patterns(runs_of(model), head_units(model, [READOUT])[:6])
        after = model.model(input_ids=TOKENS).logits
    assert torch.equal(before, after)
    assert len(found) == 12
    for pattern in found:
        np.testing.assert_allclose(pattern.weights.sum(1), 1, atol=1e-4)
        assert (pattern.weights >= 0).all()


def test_the_implementation_is_put_back_after_an_error():
    model = make_model("llama")
    seen = []

    def fail():
        seen.append(model.model.config._attn_implementation)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), eager_attention(model):
        fail()
    assert seen == ["eager"]
    assert model.model.config._attn_implementation == "sdpa"


def test_every_token_is_of_one_group():
    runs = runs_of(make_model("llama"), PAIRS[:3])
    (batch,) = runs.batches()
    for side in Side:
        groups = token_groups(batch, runs, side)
        assert torch.equal(groups.sum(0), batch.tokens[side].attention_mask.float())
    clean = dict(
        zip(GROUPS, token_groups(batch, runs, Side.CLEAN).sum(-1)[:, batch.rows.index(0)].tolist(), strict=True)
    )
    assert clean == {"before": 2, "same words": 5, "other words": 1, "after": 0, "readout": 1}


def test_the_heads_that_carry_refusal_in_planted_models_look_at_the_words_that_differ():
    runs = planted_runs("modular")
    found = attention_patterns(runs, [unit for unit in head_units(runs.model, [READOUT]) if unit.site.layer == 0])
    other = GROUPS.index("other words")
    # one word in about eight differs; a head that looks anywhere gives it a mean weight of one
    assert max(np.nanmean(pattern.enrichment[:, other]) for pattern in found) > 4

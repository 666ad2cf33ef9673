"""Exact patching: identities on random models of every family, and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from patching_runs import METRIC, PAIRS, runs_of
from tiny_models import FAMILIES, make_model

from refusal.interventions import edit
from refusal.patching.exact import _everywhere, patch_units
from refusal.patching.tokens import CONTENT, EVERYWHERE, READOUT
from refusal.patching.units import Ablation, Mode, Patch, Side, Unit, head_units, layer_units
from refusal.patching.values import PatchValues
from refusal.sites import Site, SiteKind

DENOISE, NOISE = Patch(Mode.DENOISE), Patch(Mode.NOISE)
SOME_FAMILIES = ("llama", "qwen3", "gemma2", "gpt2", "mixtral", "glm4")
"""Grouped-query attention (llama, qwen3, gemma2, glm4), head width other than d_model / heads (qwen3, glm4), post-norms
(gemma2, glm4), fused projections (gpt2), experts (mixtral)."""


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_everything_gives_one_and_nothing_gives_zero(tiny_model, family):
    runs = runs_of(tiny_model(family))
    last = Site(SiteKind.RESIDUALS, 2)
    units = [Unit(last, None, READOUT), Unit(Site.parse("residuals_0"), None, EVERYWHERE), Unit(last, None, CONTENT)]
    for patch, (full, none) in ((DENOISE, (1, 0)), (NOISE, (0, 1))):
        score = patch_units(runs, units, patch).score
        np.testing.assert_allclose(score[0], full, atol=2e-3)
        equal = [0, 1, 3]
        np.testing.assert_allclose(score[1, equal], full, atol=2e-3)
        # the last block's output at earlier positions reaches nothing
        np.testing.assert_allclose(score[2, equal], none, atol=2e-3)
        assert np.isnan(score[1:, 2]).all(), "the pair of unequal length is not patched where nothing corresponds"


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_all_heads_of_a_layer_together_are_what_attention_writes(tiny_model, family):
    model = tiny_model(family)
    runs = runs_of(model)
    places = [READOUT, EVERYWHERE]
    for patch in (DENOISE, NOISE):
        heads = patch_units(runs, layer_units(model, SiteKind.HEADS, places), patch)
        attention = patch_units(runs, layer_units(model, SiteKind.ATTENTION, places), patch)
        np.testing.assert_allclose(heads.patched, attention.patched, atol=1e-5)


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_a_head_is_its_own_slice_and_no_other(tiny_model, family):
    model = tiny_model(family)
    runs = runs_of(model, PAIRS[:1])
    site = Site.parse("heads_1")
    pair = runs.pairs[0]
    (batch,) = runs.batches()
    source = runs.everywhere(batch, Side.CLEAN, [site])[site]
    d_head = source.shape[-1] // 4

    def put(acts):
        changed = acts.clone()
        changed[:, -1, 2 * d_head : 3 * d_head] = source[:, -1, 2 * d_head : 3 * d_head]
        return changed

    with torch.no_grad(), edit(model, {site: put}):
        wanted = METRIC(model.model(input_ids=torch.tensor([pair.corrupted])).logits[:, -1])
    found = patch_units(runs, [Unit(site, 2, READOUT)], DENOISE).patched
    np.testing.assert_allclose(found[0], wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "bloom"])
def test_the_cached_prefix_gives_what_the_whole_prompt_gives(tiny_model, family):
    model = tiny_model(family)
    runs = runs_of(model)
    units = [*layer_units(model, SiteKind.MLP, [READOUT]), *head_units(model, [READOUT])]
    for patch in (DENOISE, Patch(Mode.NOISE, Ablation.MEAN), Patch(Mode.NOISE, Ablation.ZERO)):
        cached = patch_units(runs, units, patch).patched
        whole = _everywhere(runs, units, patch, lambda done: None)
        np.testing.assert_allclose(cached, whole, atol=2e-5)


def test_batches_do_not_matter(tiny_model, monkeypatch):
    model = tiny_model("llama")
    units = [*layer_units(model, SiteKind.RESIDUALS, [READOUT, CONTENT, EVERYWHERE]), *head_units(model, [EVERYWHERE])]
    together = patch_units(runs_of(model), units, NOISE).patched
    monkeypatch.setattr("refusal.patching.runs.TOKEN_BUDGET", 1)
    one_by_one = patch_units(runs_of(model, batch_size=1), units, NOISE).patched
    np.testing.assert_allclose(one_by_one, together, atol=1e-5)


def test_the_mean_is_of_other_pairs_of_the_category_and_zero_is_zero(tiny_model):
    runs = runs_of(tiny_model("llama"))
    site = Site.parse("mlp_1")
    corrupted = runs.readout(Side.CORRUPTED, [site])[site]
    mean = PatchValues(runs, Patch(Mode.NOISE, Ablation.MEAN), [site]).at_readout()[site]
    torch.testing.assert_close(mean, corrupted[[1, 0, 3, 2]], msg="each category has two pairs")
    zero = PatchValues(runs, Patch(Mode.NOISE, Ablation.ZERO), [site])
    assert not zero.at_readout()[site].any()
    (batch,) = runs.batches()
    assert not zero.everywhere(batch)[site].any()
    everywhere = PatchValues(runs, Patch(Mode.NOISE, Ablation.MEAN), [site]).everywhere(batch)[site]
    torch.testing.assert_close(everywhere[:, -1], mean[list(batch.rows)], atol=1e-5, rtol=1e-5)


def test_a_patch_leaves_the_model_as_it_was():
    model = make_model("llama", seed=5)
    tokens = torch.tensor([[2, 4, 10, 11, 5]])
    with torch.no_grad():
        before = model.model(input_ids=tokens).logits
        patch_units(runs_of(model), head_units(model, [READOUT, EVERYWHERE]), DENOISE)
        assert torch.equal(model.model(input_ids=tokens).logits, before)


def test_scores_are_zero_as_corrupted_and_one_as_clean_both_ways():
    from refusal.patching.units import PatchedMetric

    patched = np.array([[-1.0, 0.0, 3.0, 5.0]])
    clean, corrupted = np.full(4, 3.0), np.full(4, -1.0)
    unit = (Unit(Site.parse("mlp_0"), None, READOUT),)
    denoise, noise = (PatchedMetric(patch, unit, patched, clean, corrupted) for patch in (DENOISE, NOISE))
    assert denoise.score.tolist() == noise.score.tolist() == [[0, 0.25, 1, 1.5]], "never clipped"
    assert denoise.effect.tolist() == [[0, 0.25, 1, 1.5]]
    assert noise.effect.tolist() == [[1, 0.75, 0, -0.5]]

"""Clamping latents: by hand on an SAE of two latents, and while a model runs."""

from __future__ import annotations

import pytest
import torch
from tiny_models import PROMPTS

from refusal.sae.base import Provenance
from refusal.sae.topk import TopKSae
from refusal.sites import Site
from refusal.steering import LatentClamp, Region, steered

SITE = Site.parse("residuals_1")


def two_latents(d_model: int) -> TopKSae:
    """Return an SAE whose two latents read and write the first two coordinates."""
    rows = torch.eye(d_model)[:2]
    tensors = {"W_enc": rows.T.contiguous(), "b_enc": torch.zeros(2), "W_dec": rows, "b_dec": torch.zeros(d_model)}
    return TopKSae.build(tensors, {"k": 2}, Provenance())


def test_a_latent_takes_its_value_and_what_is_not_reconstructed_stays():
    clamp = LatentClamp(SITE, two_latents(3), torch.tensor([1]), torch.tensor([5.0]))
    acts = torch.tensor([[[2.0, 3.0, 7.0]], [[1.0, -4.0, 0.0]]])
    # the second latent is off on the second row, so all 5 are added there
    assert clamp.change(acts).tolist() == [[[2.0, 5.0, 7.0]], [[1.0, 1.0, 0.0]]]


@pytest.mark.parametrize("region", Region)
def test_each_row_has_its_own_value_in_the_region_and_the_model_is_as_before(tiny_model, region):
    model = tiny_model("llama")
    tokens, seen = model.pad(model.tokenize(PROMPTS[:2])), []
    values = torch.tensor([10.0, 20.0])[:, None, None]
    clamp = LatentClamp(SITE, two_latents(model.d_model), torch.tensor([0]), values, region)

    def watch(acts):
        seen.append(acts.clone())

    before = model.forward(tokens).logits
    with torch.no_grad(), model.on_site(SITE, watch):
        model.forward(tokens)
    with torch.no_grad(), steered(model, clamp), model.on_site(SITE, watch):
        model.forward(tokens)
    plain, held = seen
    assert held[:, -1, 0].tolist() == pytest.approx((values[:, 0, 0] + plain[:, -1, 0].clamp_max(0)).tolist())
    assert torch.equal(held[..., 1:], plain[..., 1:])
    assert torch.equal(held[:, :-1], plain[:, :-1]) == (region is not Region.ALL)
    assert torch.equal(model.forward(tokens).logits, before)

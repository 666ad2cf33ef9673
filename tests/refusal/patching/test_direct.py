"""What heads and MLPs write: it adds up to the residual stream, through norms too, on every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from patching_runs import LINEAR_METRIC, PAIRS, linear_model, planted_runs, runs_of
from tiny_models import FAMILIES

from refusal.patching.direct import (
    direct_effects,
    direction_attribution,
    frozen_norm,
    last_site,
    linear_attribution,
    mean_difference,
    write_differences,
    writers,
)
from refusal.patching.exact import patch_units
from refusal.patching.units import Mode, Patch, Side
from refusal.sites import Site, SiteKind
from refusal.steering.directional import random_units

LEARNED_POSITIONS = ("gpt2", "opt")
"""Families whose embedding of the readout position differs with the length of the prompt."""


@pytest.mark.parametrize("family", FAMILIES)
def test_writes_add_up_to_the_residual_stream_and_heads_to_attention(tiny_model, family):
    model = tiny_model(family)
    runs = runs_of(model, PAIRS[:2])
    last = last_site(model)
    whole = runs.readout(Side.CLEAN, [last])[last] - runs.readout(Side.CORRUPTED, [last])[last]
    parts = write_differences(runs, writers(model, heads=False))
    torch.testing.assert_close(parts.sum(0), whole, atol=1e-4, rtol=1e-4)
    heads = write_differences(runs, writers(model, heads=True)).unflatten(0, (3, 4)).sum(1)
    attention = write_differences(runs, [u for u in writers(model, heads=False) if u.site.kind is SiteKind.ATTENTION])
    torch.testing.assert_close(heads, attention, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_frozen_norm_is_linear_and_gives_the_norm_of_the_whole(tiny_model, family):
    model = tiny_model(family)
    norm = model.final_norm
    generator = torch.Generator().manual_seed(0)
    total = torch.randn(2, 32, generator=generator)
    with torch.no_grad():
        output = norm(total)
        at_zero = (norm(torch.ones(2, 32)) + norm(-torch.ones(2, 32))) / 2 if hasattr(norm, "bias") else 0.0
    part = torch.randn(2, 32, generator=generator)
    stacked = torch.stack([total, part, total - part], 1)
    frozen = frozen_norm(norm, output, stacked, total, model)
    torch.testing.assert_close(frozen[:, 0], output - at_zero, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(frozen[:, 1] + frozen[:, 2], frozen[:, 0], atol=1e-4, rtol=1e-4)


def test_on_a_linear_net_direct_effect_attribution_and_last_layer_patch_agree():
    model = linear_model()
    # the frozen norm of no norm is the identity
    runs = runs_of(model, metric=LINEAR_METRIC)
    units = [u for u in writers(model, heads=True) if u.site.layer == 2]
    for mode in Mode:
        direct = direct_effects(runs, units, Patch(mode))
        total = patch_units(runs, units, Patch(mode))
        np.testing.assert_allclose(direct.patched, total.patched, atol=2e-5)
    np.testing.assert_allclose(linear_attribution(runs, units), direct.change, atol=2e-5)


def test_linear_attributions_add_up_to_what_the_last_state_contributes():
    runs = planted_runs("monolithic")
    model = runs.model
    last = last_site(model)
    parts = linear_attribution(runs, writers(model, heads=False)).sum(0)
    clean, corrupted = (runs.readout(side, [last])[last] for side in (Side.CLEAN, Side.CORRUPTED))
    scale = model.final_norm(clean) / clean
    head = model.model.get_output_embeddings().weight
    logits = (scale * clean) @ head.T
    probabilities = [
        torch.zeros_like(logits).index_copy(1, torch.tensor(ids), logits[:, list(ids)].softmax(-1))
        for ids in (runs.metric.refusal_openers, runs.metric.compliance_openers)
    ]
    weight = (probabilities[0] - probabilities[1]) @ head
    wanted = (weight * scale * (clean - corrupted)).sum(-1)
    np.testing.assert_allclose(parts, wanted.numpy(), rtol=1e-3)


@pytest.mark.parametrize("other", [False, True])
def test_writes_along_a_direction_sum_to_one_up_to_its_layer(other):
    runs = planted_runs("modular")
    site = Site.parse("residuals_2")
    direction = mean_difference(runs, site)
    if other:
        direction = 3 * direction + random_units(1, len(direction), 0)[0] * direction.norm()
    units = writers(runs.model, heads=False)
    shares = direction_attribution(runs, units, site, direction)
    until = [row for row, unit in enumerate(units) if unit.site.layer <= 2]
    assert shares[until].sum(0).mean() == pytest.approx(1, abs=1e-5)


def test_along_a_direction_in_which_the_pairs_do_not_differ_there_are_no_shares():
    runs = planted_runs("modular")
    site = Site.parse("residuals_2")
    difference, other = mean_difference(runs, site), random_units(1, runs.model.d_model, 0)[0]
    other = other - (other @ difference) / difference.square().sum() * difference
    assert np.isnan(direction_attribution(runs, writers(runs.model, heads=False), site, other)).all()

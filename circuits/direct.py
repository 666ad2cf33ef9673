"""Direct effects: how much of the decision a residual site carries when nothing after it may add to it.

m with `resid_post` of a site taken from the refused prompt and every later write (`attn_out`, `mlp_out`) held at its
counterfactual value: x_last = x_site + (x_last_cf - x_site_cf), because later writes are what lies between a site and
the last one. The share is (m_direct - m_cf) / (m - m_cf), m_cf being that of the counterfactual's own last residual.

Patching a site with later layers free is no test of commitment: it succeeds as soon as the evidence is there at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.attribution import replace_variants
from circuits.evidence import Evidence
from circuits.verdict import writing_blocks
from refusal.readout import Edit
from refusal.sites import Site, SiteKind, all_sites


@dataclass(frozen=True)
class DirectEffects:
    """What each residual site carries directly, and the metric on both sides; logits."""

    metric: Float[np.ndarray, " prompt"]
    """m of every contrast prompt."""
    lead: Float[np.ndarray, " prompt"]
    """By how much refusal openers lead over all other tokens, every contrast prompt."""
    sites: tuple[Site, ...]
    """Every residual site of the model, in order of depth."""
    share: Float[np.ndarray, "site category"]
    """(m_direct - m_cf) / (m - m_cf), ratio of means over the category's refused prompts; the last site gives 1."""

    def mean_shares(self) -> list[tuple[Site, float]]:
        """Return each site with its mean share over the categories."""
        return list(zip(self.sites, (float(share) for share in self.share.mean(1)), strict=True))


def studied_sites(evidence: Evidence, direct: DirectEffects) -> list[Site]:
    """Return the sites that are studied, in order of depth: those with SAEs, and the neurons of blocks that decide.

    A decision that forms and commits in one block is seen in no residual stream: before the block it is not made, after
    it only its output is left. The neurons of the block's MLP show whether one set of them or several made it.
    """
    writing = writing_blocks(direct.mean_shares())
    neurons = [site for site in evidence.model.neuron_sites() if site.layer in writing]
    return sorted([*evidence.sites, *neurons])


@torch.no_grad()
def direct_effects(evidence: Evidence) -> DirectEffects:
    """Return the metric of all contrast prompts and the direct share of every residual site."""
    sites = all_sites(evidence.model.n_layers, (SiteKind.RESIDUALS,))
    metric, lead, acts = _record(evidence, sites)
    counterfactual = {site: evidence.complied_mean(acts[site]) for site in sites}
    refused = evidence.refused_rows()
    place = {row: index for index, row in enumerate(refused)}
    direct = torch.zeros(len(sites) + 1, len(refused))
    last = sites[-1]
    for batch in evidence.runner.batches(refused):
        rows = batch.prompts.cpu()
        category = evidence.category[rows]
        later = counterfactual[last][category]
        values = [acts[site][rows] + later - counterfactual[site][category] for site in sites]
        stacked = torch.stack([*values, later])
        edit = Edit(last, replace_variants(0, stacked))
        scores = evidence.metric(batch.run(len(stacked), [edit]).logits).float().cpu()
        direct[:, [place[int(row)] for row in rows]] = scores
    of_row = evidence.category[refused].numpy()
    above = (direct[:-1] - direct[-1]).numpy()
    total = metric[refused].numpy() - direct[-1].numpy()
    n = len(evidence.contrasts.categories)
    share = np.stack([above[:, of_row == c].mean(1) / total[of_row == c].mean() for c in range(n)], axis=1)
    return DirectEffects(metric.numpy(), lead.numpy(), tuple(sites), share)


def _record(evidence: Evidence, sites: list[Site]) -> tuple[Tensor, Tensor, dict[Site, Tensor]]:
    """Return the metric, the lead of refusal openers and the residual activations of every contrast prompt."""
    n = len(evidence.contrasts.prompt_ids)
    metric, lead = torch.zeros(n), torch.zeros(n)
    acts: dict[Site, Tensor] = {site: torch.zeros(n, evidence.model.d_model) for site in sites}
    for batch in evidence.runner.batches(range(n)):
        rows = batch.prompts.cpu()
        readout = batch.run(1, record=sites)
        metric[rows] = evidence.metric(readout.logits)[0].float().cpu()
        lead[rows] = evidence.metric.lead(readout.logits)[0].float().cpu()
        for site in sites:
            acts[site][rows] = readout.acts[site][0].float().cpu()
    return metric, lead, acts

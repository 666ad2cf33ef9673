"""Find each category's circuit: which latents carry its refusals, how many are enough, and how they are connected.

Steps of the circuits stage (`discover_circuits`), for one model:
1. mean gradients of the metric for every refused prompt and site (`circuits.attribution`);
2. attributions of every latent, per prompt and SAE seed, kept on disk sparse;
3. curves: effect of removing, and of keeping only, the best k latents, on prompts that did not choose them;
4. the size of each category's circuit at each site: where the curve crosses seven tenths of what any size does; the
   last latent counts in part, so that all circuits have the same dose. A number common to all would fill up the
   circuits of categories that need fewer latents with some that are not theirs;
5. nodes with interval and stability, edges between consecutive sites, one file per category.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.ablation import EffectJob, LatentBank, Removal, measure_effects
from circuits.attribution import NodeAttributions, PathGradients, mean_gradients, node_attributions, pearson
from circuits.evidence import Evidence, SiteCode
from refusal.sites import Site

ENOUGH = 0.7
"""Share of the best effect that a circuit of the chosen size has. The last tenths are carried by units that matter
more to other categories; a circuit that holds them measures those. On planted models .9 joins categories that are
apart, .5 to .7 does not."""
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Circuit sizes tried at each site, in latents."""


class CircuitDiscoverer:
    """Ranks the latents of a site by their correlation with the behaviour (`method: correlation`).

    The score of a latent for a category is its correlation with "refused" over the category's prompts, both sides.
    """

    method = "correlation"

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence

    def scores(
        self, code: SiteCode, attributions: NodeAttributions, fold: int | None = None
    ) -> Float[Tensor, "category d_sae"]:
        """Return each latent's score for each category; circuits take the highest.

        Args:
            code: The contrast prompts at the site.
            attributions: Rows follow the refused prompts.
            fold: Prompts to use: 0, 1, or None for both.
        """
        contrasts = self.evidence.contrasts
        rows = []
        for index in range(len(contrasts.categories)):
            both = np.concatenate([contrasts.rows(index, refused=side, fold=fold) for side in (True, False)])
            behaviour = torch.from_numpy(contrasts.is_refused[both]).float()
            rows.append(pearson(code.latents[torch.from_numpy(both)], behaviour))
        return torch.stack(rows)


class SAECircuitDiscoverer(CircuitDiscoverer):
    """Ranks the latents of a site by their mean signed attribution to the metric (`method: attribution`)."""

    method = "attribution"

    def scores(
        self, code: SiteCode, attributions: NodeAttributions, fold: int | None = None
    ) -> Float[Tensor, "category d_sae"]:
        """Return each latent's mean attribution over each category's refused prompts, in logits."""
        contrasts = self.evidence.contrasts
        position = {row: place for place, row in enumerate(self.evidence.refused_rows())}
        rows = []
        for index in range(len(contrasts.categories)):
            chosen = [position[int(row)] for row in contrasts.rows(index, refused=True, fold=fold)]
            rows.append(attributions.latents[chosen].mean(0))
        return torch.stack(rows)


def discoverer(method: str, evidence: Evidence) -> CircuitDiscoverer:
    """Return the discoverer of a configured method."""
    return {"attribution": SAECircuitDiscoverer, "correlation": CircuitDiscoverer}[method](evidence)


def dosed_latents(scores: Float[Tensor, "category d_sae"], sizes: Sequence[float]) -> Float[Tensor, "category d_sae"]:
    """Return circuits of given sizes as weights: each row's highest-scoring latents, the last in part.

    >>> dosed_latents(torch.tensor([[3.0, 1.0, 2.0, -1.0]]), [1.25])
    tensor([[1.0000, 0.0000, 0.2500, 0.0000]])
    """
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (torch.tensor(sizes)[:, None] - rank).clamp(0, 1).to(scores) * (scores > 0)


def top_latents(scores: Float[Tensor, "category d_sae"], sizes: Sequence[int]) -> Bool[Tensor, "category d_sae"]:
    """Return circuits of given sizes: each row's highest-scoring latents, those with a positive score only."""
    return dosed_latents(scores, sizes) > 0


def path_gradients(evidence: Evidence, sites: Sequence[Site], n_steps: int) -> PathGradients:
    """Return the mean gradients of the refused prompts, each from its category's complied mean."""
    refused = evidence.refused_rows()
    starts = {site: evidence.complied_mean(evidence.acts(site))[evidence.category[refused]] for site in sites}
    return mean_gradients(evidence.runner, evidence.metric, refused, starts, n_steps=n_steps)


def attribute(evidence: Evidence, code: SiteCode, gradients: PathGradients) -> NodeAttributions:
    """Return the attributions of one site and SAE; rows follow the refused prompts."""
    refused = evidence.refused_rows()
    category = evidence.category[refused]
    return node_attributions(
        code.dictionary,
        code.acts[refused],
        code.counterfactual_acts[category],
        code.counterfactual_latents[category],
        gradients.gradient[code.site],
    )


@dataclass(frozen=True)
class Curves:
    """Effects of circuits by size at one site, for one category; rows of refused prompts of that category."""

    sizes: tuple[int, ...]
    removed: Float[np.ndarray, "2 size prompt"]
    """Effect of removing the circuit that fold 0, fold 1 chose; logits."""
    kept: Float[np.ndarray, "2 size prompt"]
    """m with only the circuit kept, less m_cf; logits."""
    change: Float[np.ndarray, " prompt"]
    """m - m_cf at the site; logits."""


def choose_size(sizes: Sequence[int], share_removed: Sequence[float]) -> float:
    """Return the size at which the curve first does `ENOUGH` of what the best does, where more than all counts as all.

    Args:
        sizes: Circuit sizes, ascending.
        share_removed: Mean share of m - m_cf that removing the circuit takes away, by size; above 1 is overshoot.

    Returns:
        The size, interpolated between those tried; 0 latents remove nothing.

    >>> choose_size([1, 2, 4, 8], [0.2, 0.7, 0.8, 1.3])
    2.0
    """
    wanted = ENOUGH * min(max(share_removed), 1.0)
    if wanted <= 0:
        return float(sizes[0])
    last_size, last_share = 0.0, 0.0
    for size, share in zip(sizes, share_removed, strict=True):
        if share >= wanted:
            return last_size + (size - last_size) * (wanted - last_share) / (share - last_share)
        last_size, last_share = size, share
    return float(sizes[-1])


def measure_curves(
    evidence: Evidence,
    category: int,
    codes: Sequence[SiteCode],
    rankings: Sequence[Sequence[Float[Tensor, " _"]]],
    gradients: PathGradients,
    sizes: tuple[int, ...],
) -> list[Curves]:
    """Return the size curves of one category at every site.

    Args:
        evidence: The contrasts and the model.
        category: Index of the category.
        codes: One per site.
        rankings: `rankings[site][fold]`: the category's scores from that fold.
        gradients: For m_cf of each prompt.
        sizes: Circuit sizes.
    """
    rows = evidence.contrasts.rows(category, refused=True)
    jobs: list[EffectJob] = []
    for code, folds in zip(codes, rankings, strict=True):
        sets = torch.cat([top_latents(scores.expand(len(sizes), -1), sizes) for scores in folds])
        jobs += _removal_and_keeping(code, sets, rows, category)
    effects = measure_effects(evidence.runner, evidence.metric, [int(row) for row in rows], jobs)
    place = np.searchsorted(np.array(evidence.refused_rows()), rows)
    curves = []
    for index, code in enumerate(codes):
        shape = (2, len(sizes), len(rows))
        start = gradients.metric_cf[code.site][place]
        kept = effects.metric - effects.effect[2 * index + 1] - start
        removed = effects.effect[2 * index].reshape(shape).numpy()
        curves.append(Curves(sizes, removed, kept.reshape(shape).numpy(), (effects.metric - start).numpy()))
    return curves


def minimality(
    evidence: Evidence, category: int, codes: Sequence[SiteCode], circuits: Sequence[Int[Tensor, " _"]]
) -> list[Float[np.ndarray, "node prompt"]]:
    """Return, per site, what each node of a circuit adds to m when only the circuit is kept; logits, by refused prompt.

    m with the whole circuit kept less m with the circuit but this node kept. A circuit is minimal when no node adds
    nothing. Source: Wang et al. 2211.00593, section 4 (minimality), with the rest of the circuit as the context.
    """
    rows = evidence.contrasts.rows(category, refused=True)
    jobs = []
    for code, latents in zip(codes, circuits, strict=True):
        whole = torch.zeros(code.latents.shape[1], dtype=torch.bool)
        whole[latents] = True
        without = whole.repeat(len(latents), 1)
        without[torch.arange(len(latents)), latents] = False
        jobs.append(_removal_and_keeping(code, torch.cat([whole[None], without]), rows, category)[1])
    effects = measure_effects(evidence.runner, evidence.metric, rows.tolist(), jobs).effect
    return [(found[1:] - found[:1]).numpy() for found in effects]


def _removal_and_keeping(
    code: SiteCode, sets: Bool[Tensor, "variant d_sae"], rows: np.ndarray, category: int
) -> list[EffectJob]:
    used = sets.any(0)
    change = code.latents[rows][:, used] - code.counterfactual_latents[category, used]
    bank = LatentBank(code.site, change, code.dictionary.rows(used))
    to_counterfactual = code.counterfactual_acts[category] - code.acts[rows]
    return [Removal(bank, sets[:, used]), Removal(bank, sets[:, used], to_counterfactual)]

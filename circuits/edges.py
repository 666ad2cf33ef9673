"""Edges of a circuit: how much of a latent's attribution reaches it from each node of the previous site.

weight(u -> v) = mean over refused prompts of (f_u - f_u_cf) <W_dec[u], d f_v / d x> <mean gradient, W_dec[v]>:
the change of u, through the model to v, through the metric. The gradient of v is a vector-Jacobian product with the
SAE's choice of active latents frozen, not a correlation of activations. What no edge explains (paths through other
positions, the curvature between the sites) is reported as the remainder.

Source: Marks et al. 2403.19647, section 3 and appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.attribution import EdgeTarget, latent_gradients
from circuits.evidence import Evidence, SiteCode
from refusal.schemas import CircuitEdge, NodeRef


@dataclass(frozen=True)
class EdgeEnds:
    """Two consecutive sites with the circuit's latents at each."""

    source: SiteCode
    target: SiteCode
    source_latents: Int[Tensor, " node"]
    target_latents: Int[Tensor, " _"]


@dataclass(frozen=True)
class FoundEdges:
    """Edges between two sites."""

    edges: tuple[CircuitEdge, ...]
    """Strongest first; the last source node is the error node (`latent` null)."""
    remainder: float | None
    """Share of the target latents' attribution that nothing at the source explains; None without targets."""


def edges_between(
    evidence: Evidence,
    ends: EdgeEnds,
    prompts: list[int],
    gradient: Float[Tensor, "prompt width"],
    attribution: Float[Tensor, "prompt d_sae"],
) -> FoundEdges:
    """Return the edges from the source's circuit latents and its error node to the target's circuit latents.

    Args:
        evidence: The contrasts and the model.
        ends: The two sites.
        prompts: Contrast rows of one category's refused prompts.
        gradient: Mean gradient of the metric at the target site, rows as `prompts`.
        attribution: Attributions of the target's latents, rows as `prompts`.
    """
    source, target = ends.source, ends.target
    if not len(ends.target_latents):
        return FoundEdges((), None)
    category = int(evidence.category[prompts[0]])
    slope = gradient @ target.dictionary.rows(ends.target_latents).T
    change = source.latents[prompts] - source.counterfactual_latents[category]
    acts_change = source.acts[prompts] - source.counterfactual_acts[category]
    error_change = acts_change - source.dictionary.decode(change)
    decoder = source.dictionary.rows(ends.source_latents)
    weights = torch.zeros(len(ends.target_latents), len(ends.source_latents) + 1)
    reached = torch.zeros(len(ends.target_latents))
    place = {prompt: row for row, prompt in enumerate(prompts)}
    for batch in evidence.runner.batches(prompts):
        rows = torch.tensor([place[int(prompt)] for prompt in batch.prompts])
        scaled = latent_gradients(batch, source.site, EdgeTarget(target.site, target.dictionary, ends.target_latents))
        scaled = scaled * slope[rows].T[:, :, None]
        decoded = torch.einsum("vbd,nd->vbn", scaled, decoder)
        weights[:, :-1] += torch.einsum("vbn,bn->vn", decoded, change[rows][:, ends.source_latents])
        weights[:, -1] += torch.einsum("vbd,bd->v", scaled, error_change[rows])
        reached += torch.einsum("vbd,bd->v", scaled, acts_change[rows])
    own = attribution[:, ends.target_latents].sum(0)
    remainder = float((own - reached).abs().sum() / own.abs().sum().clamp_min(1e-12))
    return FoundEdges(_as_edges(ends, weights / len(prompts)), remainder)


def _as_edges(ends: EdgeEnds, weights: Float[Tensor, "node source_node"]) -> tuple[CircuitEdge, ...]:
    names = [*(int(latent) for latent in ends.source_latents), None]
    edges = [
        CircuitEdge(
            source=NodeRef(site=str(ends.source.site), latent=name),
            target=NodeRef(site=str(ends.target.site), latent=int(latent)),
            weight=float(weights[row, column]),
        )
        for row, latent in enumerate(ends.target_latents)
        for column, name in enumerate(names)
    ]
    return tuple(sorted((edge for edge in edges if edge.weight != 0), key=lambda edge: -abs(edge.weight)))

"""Nodes of a circuit as published: attribution with interval, stability under resampling, and when they are active."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from circuits.attribution import NodeAttributions
from circuits.contrast import Contrasts
from circuits.evidence import SiteCode
from refusal.schemas import CircuitNode, Interval
from refusal.sites import SiteKind

DRAWS = 200
"""Bootstrap draws for the interval and the stability of nodes and curves."""
TOP_PROMPTS = 5
"""Prompts named for each latent."""


@dataclass(frozen=True)
class NodeSelection:
    """The latents of one category's circuit at one site."""

    category: int
    added: Mapping[int, Float[np.ndarray, " prompt"]]
    """By latent: what it adds to m when only the circuit is kept, logits per prompt."""
    size: int
    """Latents per circuit at the site; a draw keeps this many."""
    rows: tuple[int, ...]
    """Rows of the attributions that belong to the category."""


def circuit_nodes(
    selection: NodeSelection,
    code: SiteCode,
    attributions: NodeAttributions,
    contrasts: Contrasts,
    generator: np.random.Generator,
) -> list[CircuitNode]:
    """Return the nodes of a circuit at a site, largest attribution first, the error node of an SAE last.

    Interval: percentile bootstrap over the category's refused prompts. Stability: share of draws that choose the node.
    """
    rows = list(selection.rows)
    values = attributions.latents[rows].double().numpy()
    weights = bootstrap_means(len(rows), generator)
    draws = weights @ values
    picked = np.argsort(-draws, axis=1)[:, : selection.size]
    sides = [torch.from_numpy(contrasts.rows(selection.category, refused=side)) for side in (True, False)]
    frequency = [(code.latents[side] > 0).float().mean(0) for side in sides]
    nodes = [
        CircuitNode(
            site=str(code.site),
            latent=latent,
            attribution=float(values[:, latent].mean()),
            interval=percentile_interval(draws[:, latent]),
            minimality=float(selection.added[latent].mean()),
            minimality_ci=percentile_interval(weights @ selection.added[latent]),
            stability=float((picked == latent).any(1).mean()),
            frequency_refused=float(frequency[0][latent]),
            frequency_complied=float(frequency[1][latent]),
            top_prompts=_top_prompts(code, latent, contrasts),
        )
        for latent in sorted(selection.added, key=lambda latent: -float(values[:, latent].mean()))
    ]
    if code.site.kind is SiteKind.NEURONS:
        return nodes  # neurons leave nothing over
    error = attributions.error[rows].double().numpy()
    nodes.append(
        CircuitNode(
            site=str(code.site),
            latent=None,
            attribution=float(error.mean()),
            interval=percentile_interval(weights @ error),
            minimality=None,
            minimality_ci=(None, None),
            stability=1.0,
            frequency_refused=1.0,
            frequency_complied=1.0,
            top_prompts=(),
        )
    )
    return nodes


def _top_prompts(code: SiteCode, latent: int, contrasts: Contrasts) -> tuple[str, ...]:
    values = code.latents[:, latent]
    best = values.topk(min(TOP_PROMPTS, len(values))).indices
    return tuple(contrasts.prompt_ids[int(row)] for row in best if values[row] > 0)


def bootstrap_means(n: int, generator: np.random.Generator) -> Float[np.ndarray, "draw prompt"]:
    """Return weights of `DRAWS` bootstrap means of n prompts; each row sums to 1."""
    return np.asarray(generator.multinomial(n, np.full(n, 1 / n), DRAWS) / n)


def percentile_interval(draws: Float[np.ndarray, " draw"]) -> Interval:
    """Return the 95 % percentile interval of bootstrap draws; unmeasured draws (nan) are left out."""
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return None, None
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)

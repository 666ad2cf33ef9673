"""The maps for the latents of circuits: the same patches, one latent at a time, and what each latent stands for.

At the readout position of a site with an SAE, one latent f of the run that is patched takes its value of the other run,
x' = x + (f' - f) W_dec[f]; everything else stays, what the SAE does not reconstruct included. Latents are those
that any category's circuit has. Each is shown with the prompts on which it is most active, so that a reader can see
what a node of a circuit stands for. SAEs and circuits come from earlier stages; where there are none, there is no map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal import sae as saes
from refusal.artefacts import ResultPaths
from refusal.patching.runs import PairRuns
from refusal.patching.tokens import READOUT
from refusal.patching.units import Patch, PatchedMetric, Side, Unit
from refusal.readout import Edit
from refusal.sae.base import SparseAutoencoder
from refusal.schemas import CircuitFile
from refusal.sites import Site, SiteKind
from refusal.store import ActivationStore


@dataclass(frozen=True)
class CircuitLatents:
    """The latents of all circuits of a model at one site."""

    site: Site
    sae: SparseAutoencoder
    latents: tuple[int, ...]
    circuits: Mapping[int, tuple[str, ...]]
    """Categories whose circuit a latent is in."""
    attribution: Mapping[int, float]
    """Mean attribution of a latent over these circuits, logits."""


def circuit_latents(paths: ResultPaths, model: str, categories: Sequence[str]) -> list[CircuitLatents]:
    """Return the latents of a model's circuits by site; empty where the circuits stage has not run.

    Raises:
        ArtefactError: A circuit is damaged, or its SAE is missing.
    """
    found: dict[Site, dict[int, list[tuple[str, float]]]] = {}
    for category in categories:
        path = paths.circuit(model, category)
        if not path.exists():
            continue
        for node in CircuitFile.load(path).nodes:
            site = Site.parse(node.site)
            if node.latent is not None and site.kind is not SiteKind.NEURONS:
                found.setdefault(site, {}).setdefault(node.latent, []).append((category, node.attribution))
    return [
        CircuitLatents(
            site,
            saes.load(paths.sae(model, site)),
            tuple(sorted(nodes)),
            {latent: tuple(name for name, _ in held) for latent, held in nodes.items()},
            {latent: float(np.mean([value for _, value in held])) for latent, held in nodes.items()},
        )
        for site, nodes in sorted(found.items())
    ]


def latent_units(held: Sequence[CircuitLatents]) -> list[Unit]:
    """Return the units of all latents, site by site."""
    return [Unit(each.site, None, READOUT, latent) for each in held for latent in each.latents]


@torch.no_grad()
def patch_latents(runs: PairRuns, held: CircuitLatents, patch: Patch) -> PatchedMetric:
    """Return m with one latent at a time patched, for every pair.

    Args:
        runs: The pairs.
        held: A site, its SAE and the latents.
        patch: Which way; values are those of the other prompt of the pair.
    """
    chosen = torch.tensor(held.latents)
    decoder = held.sae.W_dec[chosen].detach().float()
    latents = {side: _encode(held.sae, runs, side, held.site)[:, chosen] for side in Side}
    change = latents[patch.mode.source] - latents[patch.mode.base]
    patched = np.zeros((len(chosen), len(runs)))
    for batch in runs.runner[patch.mode.base].batches(range(len(runs))):
        rows = batch.prompts.cpu()
        for first in range(0, len(chosen), batch.variants_that_fit):
            part = slice(first, min(len(chosen), first + batch.variants_that_fit))
            add = torch.einsum("bn,nd->nbd", change[rows][:, part], decoder[part]).to(runs.model.device)
            logits = batch.run(len(add), [Edit(held.site, lambda acts, add=add: acts + add.to(acts))]).logits  # type: ignore[misc]
            patched[part, rows.numpy()] = runs.metric(logits.float()).cpu().double().numpy()
    return PatchedMetric(patch, tuple(latent_units([held])), patched, runs.m(Side.CLEAN), runs.m(Side.CORRUPTED))


@torch.no_grad()
def _encode(sae: SparseAutoencoder, runs: PairRuns, side: Side, site: Site) -> Float[Tensor, "pair d_sae"]:
    return sae.encode(runs.readout(side, [site])[site]).float().detach()


@dataclass(frozen=True)
class TopPrompt:
    """A prompt on which a latent is active."""

    id: str
    activation: float


@torch.no_grad()
def top_prompts(held: CircuitLatents, store: ActivationStore, n: int) -> dict[int, tuple[TopPrompt, ...]]:
    """Return for each latent the prompts of the run on which it is most active, most active first; active ones only."""
    ids = list(store.prompt_ids)
    acts = held.sae.encode(store.readout(held.site, ids))[:, torch.tensor(held.latents)].float()
    order: Int[Tensor, "prompt node"] = acts.argsort(dim=0, descending=True, stable=True)[:n]
    return {
        latent: tuple(
            TopPrompt(ids[int(row)], float(acts[int(row), column]))
            for row in order[:, column]
            if float(acts[int(row), column]) > 0
        )
        for column, latent in enumerate(held.latents)
    }

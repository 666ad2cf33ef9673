"""Measure necessity transfer: what removing each category's circuit does to each category's refusals.

Circuits found on one fold are removed on the prompts of the other, so every refused prompt is judged by circuits that
did not see it. Random sets, matched on size and activation frequency, are removed in the same run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from circuits.ablation import EffectJob, LatentBank, matched_random_sets, measure_effects
from circuits.attribution_file import AttributionFile
from circuits.discovery import CircuitDiscoverer, top_latents
from circuits.evidence import Evidence, SiteCode
from circuits.verdict import SiteEffects
from refusal.artefacts import atomic_write
from refusal.sites import Site

MIN_RANDOM_SETS = 8


@dataclass(frozen=True)
class _Removal:
    """One job: all categories' circuits of one fold, and the random sets, at one site with one SAE."""

    site: Site
    seed: int
    job: EffectJob


def measure_transfer(evidence: Evidence, method: CircuitDiscoverer, file: AttributionFile) -> list[SiteEffects]:
    """Return the effects of every category's circuit on every refused prompt, site by site in order of depth."""
    n_categories, n_seeds = len(evidence.contrasts.categories), len(evidence.seeds)
    refused = np.array(evidence.refused_rows())
    fold = evidence.contrasts.fold[refused]
    effect = {site: np.zeros((n_seeds, n_categories, len(refused))) for site in evidence.sites}
    random = {site: np.zeros((n_seeds, len(refused))) for site in evidence.sites}
    with tqdm(total=len(refused), desc="compare: effects", unit="prompt", disable=None) as bar:
        for half in (0, 1):
            judged = np.flatnonzero(fold != half)
            rows = refused[judged]
            removals = [
                _removal(evidence, method, file, (site, seed, half), rows)
                for site in evidence.sites
                for seed in evidence.seeds
            ]
            jobs = [removal.job for removal in removals]
            prompts = [int(row) for row in rows]
            effects = measure_effects(evidence.runner, evidence.metric, prompts, jobs, bar.update)
            for removal, measured in zip(removals, effects.effect, strict=True):
                seed = evidence.seeds.index(removal.seed)
                effect[removal.site][seed][:, judged] = measured[:n_categories].numpy()
                random[removal.site][seed][judged] = measured[n_categories:].mean(0).numpy()
    return [SiteEffects(site, effect[site], random[site]) for site in evidence.sites]


def _removal(
    evidence: Evidence,
    method: CircuitDiscoverer,
    file: AttributionFile,
    key: tuple[Site, int, int],
    rows: np.ndarray,
) -> _Removal:
    site, seed, half = key
    code = evidence.code(site, seed)
    sets = fold_circuits(method, code, file, seed, half)
    n_draws = -(-MIN_RANDOM_SETS // len(sets))
    frequency = (code.latents[torch.from_numpy(evidence.contrasts.refused)] > 0).float().mean(0).numpy()
    generator = np.random.default_rng([seed, half, site.layer, len(site.kind)])
    matched = matched_random_sets(sets.numpy(), frequency, n_draws, generator)
    everything = torch.cat([sets, torch.from_numpy(matched).flatten(0, 1)])
    return _Removal(site, seed, EffectJob(*_bank(code, everything, rows, evidence.category)))


def fold_circuits(
    method: CircuitDiscoverer, code: SiteCode, file: AttributionFile, seed: int, half: int
) -> Bool[Tensor, "category d_sae"]:
    """Return each category's circuit at a site as found on one fold."""
    scores = method.scores(code, file.nodes[code.site, seed], half)
    return top_latents(scores, file.sizes[code.site])


def _bank(
    code: SiteCode, sets: Bool[Tensor, "variant d_sae"], rows: np.ndarray, category: Tensor
) -> tuple[LatentBank, Bool[Tensor, "variant node"]]:
    used = sets.any(0)
    change = code.latents[rows][:, used] - code.counterfactual_latents[category[rows]][:, used]
    return LatentBank(code.site, change, code.sae.W_dec[used].detach()), sets[:, used]


def save_effects(site_effects: list[SiteEffects], metric: Float[np.ndarray, " prompt"], path: Path) -> None:
    """Write the per-prompt effects so that every bootstrap and regrouping can be redone without the model."""
    tensors = {"metric": torch.from_numpy(np.asarray(metric, np.float32))}
    for effects in site_effects:
        tensors[f"effect/{effects.site}"] = torch.from_numpy(effects.effect.astype(np.float32))
        tensors[f"random/{effects.site}"] = torch.from_numpy(effects.random.astype(np.float32))
    with atomic_write(path) as beside:
        save_file(tensors, beside, metadata={"meta": '{"schema": "refusal-circuits/effects/1"}'})

"""Measure what circuits do to other categories: necessity transfer and sufficiency.

Circuits found on one fold are removed from the refused prompts of the other, and induced in its complied prompts, so
every prompt is judged by circuits that did not see it. Random sets, matched on size and activation frequency, are
removed in the same run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from circuits.ablation import Induction, LatentBank, Removal, matched_random_sets, measure_effects
from circuits.attribution_file import AttributionFile
from circuits.discovery import CircuitDiscoverer, dosed_latents
from circuits.evidence import Evidence, SiteCode
from circuits.site_effects import SiteEffects
from refusal.artefacts import atomic_write
from refusal.sites import Site

MIN_RANDOM_SETS = 8


@dataclass(frozen=True)
class _FoldCircuits:
    """All categories' circuits of one fold, at one site with one SAE."""

    code: SiteCode
    seed: int
    half: int
    sets: Float[Tensor, "category d_sae"]
    """Weights in [0, 1]."""


def measure_transfer(evidence: Evidence, method: CircuitDiscoverer, file: AttributionFile) -> list[SiteEffects]:
    """Return the effects of every category's circuit on every prompt, site by site in order of depth."""
    contrasts, sites = evidence.contrasts, sorted(file.sizes)
    refused, complied = np.flatnonzero(contrasts.is_refused), np.flatnonzero(~contrasts.is_refused)
    n_categories = len(contrasts.categories)
    effects = {
        site: SiteEffects(
            site,
            np.zeros((len(evidence.seeds_of(site)), n_categories, len(refused))),
            np.zeros((len(evidence.seeds_of(site)), len(refused))),
            np.zeros((n_categories, len(complied))),
        )
        for site in sites
    }
    with tqdm(total=len(contrasts.prompt_ids), desc="compare: effects", unit="prompt", disable=None) as bar:
        for half in (0, 1):
            circuits = [
                _fold_circuits(evidence, method, file, (site, seed, half))
                for site in sites
                for seed in evidence.seeds_of(site)
            ]
            judged = np.flatnonzero(contrasts.fold[refused] != half)
            rows = refused[judged]
            removals = [_removal(evidence, each, rows) for each in circuits]
            measured = measure_effects(evidence.runner, evidence.metric, rows.tolist(), removals, bar.update).effect
            for each, found in zip(circuits, measured, strict=True):
                seed, target = evidence.seeds.index(each.seed), effects[each.code.site]
                target.effect[seed][:, judged] = found[:n_categories].numpy()
                target.random[seed][judged] = found[n_categories:].mean(0).numpy()
            judged = np.flatnonzero(contrasts.fold[complied] != half)
            rows = complied[judged]
            first = [each for each in circuits if each.seed == evidence.seeds[0]]
            inductions = [_induction(evidence, each, rows) for each in first]
            measured = measure_effects(evidence.runner, evidence.metric, rows.tolist(), inductions, bar.update).effect
            for each, found in zip(first, measured, strict=True):
                effects[each.code.site].induced[:, judged] = -found.numpy()
    return list(effects.values())


def _fold_circuits(
    evidence: Evidence, method: CircuitDiscoverer, file: AttributionFile, key: tuple[Site, int, int]
) -> _FoldCircuits:
    site, seed, half = key
    code = evidence.code(site, seed)
    scores = method.scores(code, file.nodes[site, seed], half)
    return _FoldCircuits(code, seed, half, dosed_latents(scores, file.sizes[site]))


def _removal(evidence: Evidence, circuits: _FoldCircuits, rows: Int[np.ndarray, " prompt"]) -> Removal:
    """Return the removal of the circuits and of random sets, these at full weight."""
    code, sets = circuits.code, circuits.sets
    n_draws = -(-MIN_RANDOM_SETS // len(sets))
    frequency = (code.latents[torch.from_numpy(evidence.contrasts.is_refused)] > 0).float().mean(0).numpy()
    generator = np.random.default_rng([circuits.seed, circuits.half, code.site.layer, len(code.site.kind)])
    matched = matched_random_sets(sets.numpy() > 0, frequency, n_draws, generator)
    everything = torch.cat([sets, torch.from_numpy(matched).flatten(0, 1).to(sets)])
    used = everything.any(0)
    change = code.latents[rows][:, used] - code.counterfactual_latents[evidence.category[rows]][:, used]
    return Removal(LatentBank(code.site, change, code.dictionary.rows(used)), everything[:, used])


def _induction(evidence: Evidence, circuits: _FoldCircuits, rows: Int[np.ndarray, " prompt"]) -> Induction:
    """Return the induction of each category's circuit with its mean values on refused prompts of the same fold."""
    code, contrasts = circuits.code, evidence.contrasts
    used = circuits.sets.any(0)
    values = torch.stack(
        [
            code.latents[torch.from_numpy(contrasts.rows(index, refused=True, fold=circuits.half))][:, used].mean(0)
            for index in range(len(contrasts.categories))
        ]
    )
    return Induction(code.site, circuits.sets[:, used], values, code.latents[rows][:, used], code.dictionary.rows(used))


def save_effects(site_effects: Sequence[SiteEffects], metric: Float[np.ndarray, " prompt"], path: Path) -> None:
    """Write the per-prompt effects so that every bootstrap and regrouping can be redone without the model."""
    tensors = {"metric": torch.from_numpy(np.asarray(metric, np.float32))}
    for effects in site_effects:
        for name in ("effect", "random", "induced"):
            tensors[f"{name}/{effects.site}"] = torch.from_numpy(getattr(effects, name).astype(np.float32))
    with atomic_write(path) as beside:
        save_file(tensors, beside, metadata={"meta": '{"schema": "refusal-circuits/effects/2"}'})

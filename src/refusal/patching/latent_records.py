"""The latents of circuits as records: their effects both ways, and the prompts on which they are most active."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from refusal.patching.findings import SEED, criteria_of, unit_record
from refusal.patching.latents import CircuitLatents, TopPrompt, patch_latents, top_prompts
from refusal.patching.localise import locate
from refusal.patching.material import Material
from refusal.patching.records import LatentRecord, TopPromptRecord, UnitRecord
from refusal.patching.units import Mode, Patch
from refusal.schemas import PromptLabel
from refusal.store import ActivationStore

N_TOP = 10
"""Prompts shown for each latent."""


def latent_records(material: Material, held: list[CircuitLatents]) -> list[LatentRecord]:
    """Return every latent of every circuit, site by site, largest attribution first.

    Raises:
        ArtefactError: The activations of a site are missing.
    """
    store = ActivationStore(material.paths.activations(material.name))
    labels = {label.id: label for label in material.labels.prompts}
    records = []
    for each in held:
        few = _largest(each, material.config.patching.max_latents)
        prompts = top_prompts(few, store, N_TOP)
        effects: dict[str, dict[int, UnitRecord]] = {
            mode: _effects(material, few, Mode(mode)) for mode in material.config.patching.modes
        }
        order = sorted(few.latents, key=lambda latent: (-abs(few.attribution[latent]), latent))
        records += [_record(few, latent, prompts[latent], effects, labels) for latent in order]
    return records


def _largest(held: CircuitLatents, most: int) -> CircuitLatents:
    """Return a site with its latents of largest attribution only."""
    order = sorted(held.latents, key=lambda latent: (-abs(held.attribution[latent]), latent))
    return CircuitLatents(held.site, held.sae, tuple(sorted(order[:most])), held.circuits, held.attribution)


def _effects(material: Material, held: CircuitLatents, mode: Mode) -> dict[int, UnitRecord]:
    runs, config = material.pairs.maps, material.config
    criteria = criteria_of(config.patching, config.analysis.bootstrap)
    found = patch_latents(runs, held, Patch(mode))
    located = locate(found, runs.categories, np.random.default_rng([config.seed, SEED]), criteria)
    return {latent: unit_record(each, mode) for latent, each in zip(held.latents, located, strict=True)}


def _record(
    held: CircuitLatents,
    latent: int,
    prompts: tuple[TopPrompt, ...],
    effects: Mapping[str, Mapping[int, UnitRecord]],
    labels: Mapping[str, PromptLabel],
) -> LatentRecord:
    known = [(prompt, labels[prompt.id]) for prompt in prompts if prompt.id in labels]
    return LatentRecord(
        site=str(held.site),
        latent=latent,
        circuits=held.circuits[latent],
        attribution=held.attribution[latent],
        denoise=effects.get("denoise", {}).get(latent),
        noise=effects.get("noise", {}).get(latent),
        categories=dict(Counter(label.category for _, label in known).most_common()),
        n_refused=sum(label.behaviour == "refused" for _, label in known),
        top_prompts=tuple(
            TopPromptRecord(
                id=prompt.id, category=label.category, behaviour=label.behaviour, activation=prompt.activation
            )
            for prompt, label in known
        ),
    )

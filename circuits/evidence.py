"""What the circuits and compare stages both start from: contrasts, metric and the model at the readout position.

Everything comes from the artefacts of earlier stages; the model is loaded only when an intervention is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.contrast import Contrasts, build_contrasts
from circuits.dictionary import Dictionary, NeuronUnits, SAEUnits
from refusal import sae as saes
from refusal.artefacts import ResultPaths
from refusal.config import Config, how_to_load
from refusal.errors import ArtefactError
from refusal.metric import RefusalMetric
from refusal.models import ChatModel
from refusal.readout import ReadoutRunner
from refusal.sae.jobs import saved_seeds
from refusal.schemas import ModelOutputs, RefusalLabels
from refusal.sites import Site, SiteKind
from refusal.store import ActivationStore

DEFAULT_BATCH = 64
"""Prompts whose prefix is cached together when `batch_size` is auto."""


@dataclass(frozen=True)
class SiteCode:
    """The contrast prompts at one site, seen through one SAE or as neurons."""

    site: Site
    dictionary: Dictionary
    acts: Float[Tensor, "prompt width"]
    latents: Float[Tensor, "prompt d_sae"]
    counterfactual_acts: Float[Tensor, "category width"]
    counterfactual_latents: Float[Tensor, "category d_sae"]


class Evidence:
    """One model's prompts, activations and SAEs, loaded as they are needed."""

    def __init__(self, config: Config, model_name: str, paths: ResultPaths) -> None:
        self._config = config
        self._model_name = model_name
        self._paths = paths
        self.labels = RefusalLabels.load(paths.refusal_labels(model_name))
        asked = config.categories if config.categories != "all" else _categories_of(self.labels)
        self.categories: tuple[str, ...] = tuple(asked)
        self.contrasts: Contrasts = build_contrasts(self.labels, self.categories, config.seed)
        self.seeds: tuple[int, ...] = saved_seeds(config)

    @property
    def missing(self) -> str | None:
        """Why nothing can be measured, in words; None when it can."""
        if self.labels.openers.reason is not None:
            return self.labels.openers.reason
        if not self.contrasts.categories:
            counts = self.contrasts.counts.items()
            reasons = "; ".join(f"{name}: {count.reason_left_out}" for name, count in counts)
            return f"no category has enough refused and complied prompts ({reasons})"
        return None

    @cached_property
    def metric(self) -> RefusalMetric:
        """The refusal metric with the openers that the inference stage learned."""
        openers = self.labels.openers
        return RefusalMetric(openers.refusal, openers.compliance)

    @cached_property
    def model(self) -> ChatModel:
        """The chat model."""
        return ChatModel.load(self._model_name, **how_to_load(self._config))

    @cached_property
    def texts(self) -> list[str]:
        """The contrast prompts."""
        outputs = ModelOutputs.load(self._paths.model_outputs(self._model_name))
        text_of = {output.id: output.prompt for output in outputs.outputs}
        return [text_of[prompt_id] for prompt_id in self.contrasts.prompt_ids]

    @cached_property
    def runner(self) -> ReadoutRunner:
        """The model at the readout position of the contrast prompts, in the order of `contrasts.prompt_ids`."""
        batch_size = self._config.batch_size
        prefix = self.labels.openers.answer_prefix
        token_ids = [[*ids, *prefix] for ids in self.model.tokenize(self.texts, self._config.system_prompt)]
        size = DEFAULT_BATCH if batch_size == "auto" else batch_size
        return ReadoutRunner(self.model, token_ids, batch_size=size)

    @cached_property
    def store(self) -> ActivationStore:
        """The activations of the inference stage."""
        return ActivationStore(self._paths.activations(self._model_name))

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Sites with SAEs in order of depth: those asked for, as the store holds them."""
        asked = self._config.activation_layers
        if asked == "all":
            return tuple(site for site in sorted(self.store.sites) if not site.kind.is_writer)
        return tuple(sorted(Site.parse(name) for name in asked))

    def seeds_of(self, site: Site) -> tuple[int, ...]:
        """Return the seeds of a site's SAEs; neurons have no seed and go by the first."""
        return self.seeds[:1] if site.kind is SiteKind.NEURONS else self.seeds

    @cached_property
    def _recorded(self) -> dict[Site, Float[Tensor, "prompt _"]]:
        return {}

    def acts(self, site: Site) -> Float[Tensor, "prompt width"]:
        """Return the contrast prompts' activations at the readout position; neurons are recorded when first asked for.

        Raises:
            ArtefactError: The store does not hold the site.
        """
        if site.kind is not SiteKind.NEURONS:
            return self.store.readout(site, list(self.contrasts.prompt_ids))
        if site not in self._recorded:
            self._recorded[site] = record_readout(self.runner, self.contrasts.prompt_ids, [site])[site]
        return self._recorded[site]

    def code(self, site: Site, seed: int) -> SiteCode:
        """Return the contrast prompts' activations and latents at one site with one SAE.

        Raises:
            ArtefactError: The SAE or the activations of the site are missing.
        """
        acts = self.acts(site)
        dictionary = NeuronUnits(acts.shape[1]) if site.kind is SiteKind.NEURONS else self._sae_units(site, seed)
        latents = dictionary.encode(acts)
        return SiteCode(site, dictionary, acts, latents, self.complied_mean(acts), self.complied_mean(latents))

    def _sae_units(self, site: Site, seed: int) -> SAEUnits:
        first = seed == self.seeds[0]
        folder = self._paths.sae(self._model_name, site, None if first else seed)
        if not (folder / "cfg.json").exists():
            raise ArtefactError(
                f"{folder}: no SAE for {site} with seed {seed}; "
                "make it with: python run_circuit_analysis.py --config FILE --train-saes"
            )
        return SAEUnits(saes.load(folder))

    def complied_mean(self, values: Float[Tensor, "prompt node"]) -> Float[Tensor, "category node"]:
        """Return the mean over each category's complied prompts: the counterfactual."""
        contrasts = self.contrasts
        rows = [contrasts.rows(index, refused=False) for index in range(len(contrasts.categories))]
        return torch.stack([values[torch.from_numpy(chosen)].mean(0) for chosen in rows])

    @cached_property
    def category(self) -> Int[Tensor, " prompt"]:
        """Index of each contrast prompt's category, as a tensor."""
        return torch.from_numpy(self.contrasts.category)

    def refused_rows(self) -> list[int]:
        """Return the contrast rows of refused prompts."""
        return [int(row) for row in np.flatnonzero(self.contrasts.is_refused)]


@torch.no_grad()
def record_readout(
    runner: ReadoutRunner, prompt_ids: Sequence[str], sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "prompt _"]]:
    """Return the sites' values at the readout position of every prompt of the runner; float32 on the CPU."""
    rows: dict[Site, list[Tensor]] = {site: [torch.zeros(0)] * len(prompt_ids) for site in sites}
    for batch in runner.batches(range(len(prompt_ids))):
        found = batch.run(1, record=sites).acts
        for site in sites:
            for index, row in zip(batch.prompts.tolist(), found[site][0].float().cpu(), strict=True):
                rows[site][index] = row
    return {site: torch.stack(values) for site, values in rows.items()}


def _categories_of(labels: RefusalLabels) -> Sequence[str]:
    return sorted({label.category for label in labels.prompts})

"""The SAEs of one model before they are trained: which there are, on which rows, what trains with what.

Rows are the readout position of every prompt that has a label, in the order of prompt ids, so that neither shuffling
nor batching changes a result. A tenth of the prompts of each category and behaviour is held out. With
`sae.positions: all` the other positions of the training prompts follow (`all_positions`); every figure stays one of
readout rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from refusal.artefacts import ResultPaths, sha256_file
from refusal.config import Config
from refusal.positions import PositionIndex
from refusal.sae.all_positions import PromptRows, split_positions
from refusal.sae.assessment import Prompts
from refusal.sae.auto import Resolved, resolve
from refusal.sae.base import Provenance, SparseAutoencoder
from refusal.sae.formats import CONFIG_FILE, WEIGHTS_FILE, hook_name
from refusal.sae.metrics import quality
from refusal.sae.recipe import Recipe
from refusal.sae.records import METRICS_FILE, SaeMetrics, SplitQuality
from refusal.sae.rows import RowSource, RowSplit, TensorRows, split_rows, thin_prompts
from refusal.schemas import RefusalLabels
from refusal.sites import Site
from refusal.store import ActivationStore

STACK_VALUES = 2**19
"""Pre-activations of one step of a stack, at most (2 MiB, what caches hold); an SAE with more trains alone."""


def saved_seeds(config: Config) -> tuple[int, ...]:
    """Return the seeds of which there are SAEs: those configured; with pretrained SAEs only the first."""
    return config.sae.seeds if config.sae.pretrained is None else config.sae.seeds[:1]


@dataclass(frozen=True)
class Job:
    """One SAE to make."""

    site: Site
    seed: int
    folder: Path


def plan_stacks(jobs: Sequence[Job], recipe: Recipe) -> list[tuple[Job, ...]]:
    """Return the jobs in stacks of nearly equal size that train as one each.

    The plan depends on the shape of the SAEs alone, not on what is done already or on the number of processes that
    share it: a stack that is trained again gives the same bytes, which it would not in other company.
    """
    fitting = max(1, STACK_VALUES // (recipe.batch_size * recipe.d_sae))
    n_stacks = -(-len(jobs) // fitting)
    bounds = [len(jobs) * index // n_stacks for index in range(n_stacks + 1)]
    return [tuple(jobs[first:last]) for first, last in pairwise(bounds)]


class ModelSaes:
    """What all SAEs of one model share: prompts, rows, split."""

    def __init__(self, config: Config, model_name: str, paths: ResultPaths) -> None:
        self.config = config
        self.model_name = model_name
        self.folder = paths.saes(model_name)
        self.store = ActivationStore(paths.activations(model_name))
        sites = [site for site in self.store.sites if not site.kind.is_writer]
        if config.activation_layers != "all":
            sites = sorted(Site.parse(name) for name in config.activation_layers)
        self.jobs = [
            Job(site, seed, paths.sae(model_name, site, None if number == 0 else seed))
            for site in sites
            for number, seed in enumerate(saved_seeds(config))
        ]
        self._choose_prompts(RefusalLabels.load(paths.refusal_labels(model_name)))
        self.others: PositionIndex | None = None
        self.drawn = self.split
        """What training draws from; its first rows are those of `split`."""
        if config.sae.uses_all_positions:
            self._add_positions()

    def _choose_prompts(self, labels: RefusalLabels) -> None:
        by_id = {prompt.id: prompt for prompt in labels.prompts}
        ids = sorted(set(self.store.prompt_ids) & set(by_id))
        strata = {each: f"{by_id[each].category}/{by_id[each].behaviour}" for each in ids}
        if self.config.sae.max_samples is not None:
            ids = thin_prompts(ids, [strata[each] for each in ids], self.config.sae.max_samples, self.config.seed)
        self.prompt_ids = ids
        self.categories = [by_id[each].category for each in ids]
        self.split: RowSplit = split_rows(ids, [strata[each] for each in ids], self.categories, self.config.seed)

    @property
    def prompts(self) -> Prompts:
        """Which prompts train the SAEs, and which are held out."""
        train, heldout = (
            frozenset(self.prompt_ids[row] for row in rows.tolist()) for rows in (self.split.train, self.split.heldout)
        )
        return Prompts(train, heldout, dict(zip(self.prompt_ids, self.categories, strict=True)))

    def _add_positions(self) -> None:
        """Let the other positions of the prompts that train, train."""
        places = self.split.train
        others = self.store.position_index([self.prompt_ids[place] for place in places.tolist()])
        self.others = others
        n_prompts, d_model = len(self.prompt_ids), self.store.d_model
        self.drawn = split_positions(self.split, n_prompts, places[others.prompt], d_model)

    def resolve(self) -> Resolved:
        """Return the recipe for what is trained on."""
        n_prompts = None if self.others is None else len(self.split.train)
        return resolve(self.config.sae, len(self.drawn.train), self.store.d_model, n_prompts)

    def rows_in_words(self) -> str:
        """Return what SAEs are trained on, in words that differ when the activations do."""
        n_rows, n_prompts = len(self.drawn.train), len(self.prompt_ids)
        return f"{n_rows} rows of {n_prompts} prompts (checksum {self.store.checksum[:12]})"

    def rows(self, site: Site) -> TensorRows:
        """Return the readout rows of a site, in the order of `prompt_ids`."""
        return TensorRows(self.store.readout(site, self.prompt_ids))

    def training_rows(self, site: Site, readout: TensorRows) -> RowSource:
        """Return the rows that `drawn` numbers."""
        if self.others is None:
            return readout
        others = self.store.positions(site, self.others)
        if self.drawn.is_streamed:
            return PromptRows(readout, others)
        return PromptRows(readout, TensorRows(others.take(torch.arange(len(others)))))

    def provenance(self, job: Job) -> Provenance:
        """Return what goes into an SAE's `cfg.json` about where it belongs."""
        source = self.store.source
        return Provenance(
            model_name=self.model_name,
            hook_name=hook_name(job.site),
            hf_hook_name=None if source is None else source.modules[job.site.name],
            context_size=None if source is None else source.longest_prompt,
            dataset_path=self.config.dataset_dir,
            extra={"site": job.site.name, "position": self.config.sae.trains_on, "seed": job.seed},
        )

    def measure(self, sae: SparseAutoencoder, rows: TensorRows) -> dict[str, SplitQuality | None]:
        """Return the quality on training and on held-out rows."""
        found: dict[str, SplitQuality | None] = {}
        for name, numbers in (("train", self.split.train), ("heldout", self.split.heldout)):
            categories = [self.categories[row] for row in numbers.tolist()]
            found[name] = SplitQuality.of(quality(sae, rows, numbers, categories)) if len(numbers) else None
        return found

    def save_metrics(self, job: Job, sae: SparseAutoencoder, fingerprint: str, fields: Mapping[str, Any]) -> None:
        """Write `metrics.json`, which says that an SAE is complete."""
        metrics = SaeMetrics.build(
            model=self.model_name,
            site=job.site.name,
            architecture=sae.architecture,
            d_model=sae.d_in,
            d_sae=sae.d_sae,
            weights_sha256=sha256_file(job.folder / WEIGHTS_FILE),
            config_sha256=sha256_file(job.folder / CONFIG_FILE),
            fingerprint=fingerprint,
            **fields,
        )
        metrics.save(job.folder / METRICS_FILE)

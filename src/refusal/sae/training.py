"""The saes stage for one model: every site and seed, from the activation store to `saes/MODEL/SITE/`.

Rows are the readout position of every prompt; a tenth of the prompts, spread over categories and behaviours, is held
out. Each category and behaviour weighs the same in training, whatever its size.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from refusal.artefacts import ResultPaths, write_json
from refusal.config import Config
from refusal.errors import InputError
from refusal.sae.auto import Resolved, resolve
from refusal.sae.base import SparseAutoencoder
from refusal.sae.formats import load, save
from refusal.sae.metrics import fvu, seed_stability, sparsity
from refusal.sae.trainer import TrainedSae, TrainingData, train_topk
from refusal.schemas import RefusalLabels
from refusal.sites import Site, SiteKind
from refusal.store import ActivationStore

log = logging.getLogger(__name__)

HELD_OUT_EVERY = 10
STACK_LATENTS = 4096
"""Latents of all SAEs of one stacked job, at most; wider SAEs train one after the other."""


def train_model_saes(config: Config, model_name: str, paths: ResultPaths) -> None:
    """Train (or, with `sae.pretrained`, check and copy) the SAEs of one model and write them with their metrics.

    Raises:
        ArtefactError: The activations or labels are missing or damaged.
        InputError: The activations or settings do not allow a training.
    """
    store = ActivationStore(paths.activations(model_name))
    labels = RefusalLabels.load(paths.refusal_labels(model_name))
    sites = _sites(config, store)
    if config.sae.pretrained is not None:
        for site in sites:
            _adopt(config, site, store, paths.sae(model_name, site))
        return
    study = _Training(config, model_name, store, labels, paths)
    study.run(sites)


def _sites(config: Config, store: ActivationStore) -> list[Site]:
    if config.activation_layers == "all":
        return [site for site in store.sites if not site.kind.is_writer]
    return sorted(Site.parse(name) for name in config.activation_layers)


def _adopt(config: Config, site: Site, store: ActivationStore, folder: Path) -> None:
    assert config.sae.pretrained is not None
    source = Path(config.sae.pretrained.replace("{site}", str(site)))
    sae = load(source)
    if sae.d_in != store.d_model:
        raise InputError(
            f"sae.pretrained: {source} has d_in {sae.d_in}; the model's d_model is {store.d_model}: it belongs to "
            "another model"
        )
    save(sae, folder)
    acts = store.readout(site)
    output = sae(acts)
    write_json(folder / "metrics.json", {"source": str(source), "fvu": fvu(acts, output.reconstruction)})


class _Training:
    """Trains one model's SAEs."""

    def __init__(
        self, config: Config, model_name: str, store: ActivationStore, labels: RefusalLabels, paths: ResultPaths
    ) -> None:
        self.config = config
        self.model_name = model_name
        self.store = store
        self.paths = paths
        by_id = {prompt.id: prompt for prompt in labels.prompts}
        ids = [prompt_id for prompt_id in store.prompt_ids if prompt_id in by_id]
        generator = np.random.default_rng([config.seed, 6])
        if config.sae.max_samples is not None and len(ids) > config.sae.max_samples:
            ids = sorted(ids[int(row)] for row in generator.permutation(len(ids))[: config.sae.max_samples])
        self.ids = sorted(ids)
        strata = [f"{by_id[prompt_id].category} {by_id[prompt_id].behaviour}" for prompt_id in self.ids]
        self.categories = [by_id[prompt_id].category for prompt_id in self.ids]
        self.is_held_out = held_out(strata, generator)
        self.weight = balanced(strata)

    def run(self, sites: list[Site]) -> None:
        """Train all sites and seeds, in stacks that fit."""
        n_train = int((~self.is_held_out).sum())
        resolved = resolve(self.config.sae, n_train, self.store.d_model)
        for name, reason in resolved.reasons.items():
            log.info("sae.%s = %s (%s)", name, getattr(resolved.settings, name), reason)
        seeds = self.config.sae.seeds
        per_stack = max(1, STACK_LATENTS // (resolved.settings.d_sae * len(seeds)))
        total = resolved.settings.steps * -(-len(sites) // per_stack)
        with tqdm(total=total, desc=f"saes: {self.model_name}", unit="step", disable=None) as bar:
            for first in range(0, len(sites), per_stack):
                chosen = sites[first : first + per_stack]
                data = [self._data(site) for site in chosen]
                trained = train_topk(data, seeds, resolved.settings, bar.update)
                for site, site_data, saes in zip(chosen, data, trained, strict=True):
                    self._write(site, site_data, saes, resolved)

    def _data(self, site: Site) -> TrainingData:
        return TrainingData(self.store.readout(site, self.ids), self.is_held_out, self.weight)

    def _write(self, site: Site, data: TrainingData, saes: list[TrainedSae], resolved: Resolved) -> None:
        for index, (seed, trained) in enumerate(zip(self.config.sae.seeds, saes, strict=True)):
            folder = self.paths.sae(self.model_name, site, None if index == 0 else seed)
            trained.sae.metadata = self._metadata(site, seed)
            save(trained.sae, folder)
            history = {"site": str(site), "seed": seed, "best_step": trained.best_step, "history": trained.history}
            write_json(folder / f"{site}_training_history.json", history)
            others = [other.sae for other in saes if other is not trained]
            write_json(folder / "metrics.json", self._metrics(data, trained, others, resolved))

    def _metadata(self, site: Site, seed: int) -> dict[str, object]:
        hooks = {SiteKind.RESIDUALS: "hook_resid_post", SiteKind.MLP: "hook_mlp_out", SiteKind.ATTENTION: "hook_attn_out"}
        return {
            "model_name": self.model_name,
            "hook_name": f"blocks.{site.layer}.{hooks[site.kind]}",
            "hook_head_index": None,
            "prepend_bos": False,
            "context_size": 1,
            "dataset_path": self.config.dataset_dir,
            "exclude_special_tokens": False,
            "site": str(site),
            "position": "readout",
            "seed": seed,
        }

    def _metrics(
        self, data: TrainingData, trained: TrainedSae, others: list[SparseAutoencoder], resolved: Resolved
    ) -> dict[str, object]:
        held = data.acts[data.is_held_out]
        output = trained.sae(held)
        names = [name for name, out in zip(self.categories, self.is_held_out.tolist(), strict=True) if out]
        by_category = {}
        for name in sorted(set(names)):
            rows = [row for row, other in enumerate(names) if other == name]
            # against the variance of all held-out prompts: a category's own may be tiny
            share = len(rows) / len(names)
            error = output.error[rows].double().square().sum()
            by_category[name] = float(error / share / (held.double() - held.double().mean(0)).square().sum())
        train = data.acts[~data.is_held_out]
        stability = [seed_stability(trained.sae, other) for other in others]
        return {
            "n_train": len(train),
            "n_held_out": len(held),
            "fvu": fvu(held, output.reconstruction),
            "fvu_train": fvu(train, trained.sae(train).reconstruction),
            "fvu_by_category": by_category,
            **sparsity(trained.sae.encode(data.acts)),
            "seed_stability": stability,
            "settings": vars(resolved.settings),
            "reasons": resolved.reasons,
        }


def held_out(strata: list[str], generator: np.random.Generator) -> Bool[Tensor, " row"]:
    """Return a tenth of the rows, spread over the strata: every tenth of a seeded order that keeps strata together."""
    shuffled = generator.permutation(len(strata))
    order = sorted(range(len(strata)), key=lambda row: (strata[row], int(shuffled[row])))
    chosen = torch.zeros(len(strata), dtype=torch.bool)
    chosen[order[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]] = True
    return chosen


def balanced(strata: list[str]) -> Float[Tensor, " row"]:
    """Return weights under which every stratum is drawn equally often.

    >>> balanced(["a", "a", "b"])
    tensor([0.5000, 0.5000, 1.0000])
    """
    counts = Counter(strata)
    return torch.tensor([1 / counts[stratum] for stratum in strata])

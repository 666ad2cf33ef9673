"""How good a model's SAEs are for circuits of refusal: measured with the model, noted in `metrics.json`.

1. Held-out prompts, at most `MAX_PROMPTS`, as evenly from all categories as they allow.
2. Per site the mean of the training prompts, per SAE the reconstruction of the held-out ones.
3. One pass of the model over the prompts with all of these in place of the activation (`refusal.sae.fidelity`).
4. Intervals from one set of bootstrap draws of prompts within categories.

All SAEs of a model are assessed together or not at all, so that what is written does not depend on interruptions. What
has been assessed stays as long as SAEs, prompts and openers are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refusal.artefacts import ResultPaths
from refusal.config import Config, how_to_load
from refusal.kept import plan_of
from refusal.metric import RefusalMetric
from refusal.models import ChatModel
from refusal.readout import ReadoutRunner
from refusal.sae.fidelity import (
    Damage,
    Damages,
    Replacement,
    at_stake_of,
    fvu_estimate,
    loss_recovered,
    measure_damage,
    signal_recovered,
)
from refusal.sae.formats import load
from refusal.sae.metrics import duplicate_share, reconstruction_bias
from refusal.sae.records import METRICS_FILE, Fidelity, SaeMetrics
from refusal.sae.rows import thin_prompts
from refusal.schemas import Measure, ModelOutputs, RefusalLabels
from refusal.sites import Site
from refusal.stats import Estimate, Weights, bootstrap_weights
from refusal.store import ActivationStore

log = logging.getLogger(__name__)

ASSESSMENT_VERSION = 1
"""Raised when the same inputs give other numbers than before."""
MAX_PROMPTS = 256
"""Held-out prompts that the model is run on, at most."""
N_DRAWS = 1000
"""Bootstrap draws."""
BATCH = 64
"""Prompts whose prefix is cached together when `batch_size` is auto."""

Folders = Mapping[tuple[Site, int], Path]
"""Site and seed -> folder of the SAE."""


@dataclass(frozen=True)
class Prompts:
    """Ids of prompts by what the SAEs did with them."""

    train: frozenset[str]
    heldout: frozenset[str]
    category: Mapping[str, str]
    """By id."""


def assess(config: Config, model_name: str, paths: ResultPaths, folders: Folders, prompts: Prompts) -> None:
    """Write into each SAE's `metrics.json` what it keeps of the model.

    Args:
        config: What is run.
        model_name: The model, as configured.
        paths: Where its activations and labels lie.
        folders: Its SAEs.
        prompts: Which prompts trained them and which were held out.

    Raises:
        ArtefactError: An artefact of an earlier stage is missing or damaged.
    """
    assessment = _Assessment(config, model_name, paths, prompts)
    if not assessment.ids:
        log.warning("%s: too few prompts to hold any out; its SAEs are not assessed on the model", model_name)
        return
    metrics = {key: SaeMetrics.load(folder / METRICS_FILE) for key, folder in folders.items()}
    fingerprint = assessment.fingerprint([each.weights_sha256 for each in metrics.values()])
    if all(each.fidelity is not None and each.fidelity.fingerprint == fingerprint for each in metrics.values()):
        return
    for key, found in assessment.measure(folders, fingerprint).items():
        metrics[key].model_copy(update=found).save(folders[key] / METRICS_FILE)


class _Assessment:
    """The held-out prompts of one model, and what is measured on them."""

    def __init__(self, config: Config, model_name: str, paths: ResultPaths, prompts: Prompts) -> None:
        self.config = config
        self.model_name = model_name
        self.paths = paths
        self.store = ActivationStore(paths.activations(model_name))
        self.labels = RefusalLabels.load(paths.refusal_labels(model_name))
        heldout = sorted(prompts.heldout)
        self.train = sorted(prompts.train)
        self.ids = thin_prompts(heldout, [prompts.category[each] for each in heldout], MAX_PROMPTS, config.seed)
        self.categories = [prompts.category[each] for each in self.ids]

    def fingerprint(self, weights: Sequence[str]) -> str:
        """Return a hash of all that decides the numbers, the checksums of the SAEs' weights among it."""
        decisive = {
            "version": ASSESSMENT_VERSION,
            "openers": self.labels.openers.model_dump(mode="json"),
            "system_prompt": self.config.system_prompt,
            "seed": self.config.seed,
            "train": self.train,
            "heldout": self.ids,
            "weights": list(weights),
        }
        return plan_of(decisive)

    def measure(self, folders: Folders, fingerprint: str) -> dict[tuple[Site, int], dict[str, Any]]:
        """Return the fields of `metrics.json` for each SAE; one SAE is in memory at a time."""
        generator = np.random.default_rng([self.config.seed, 7])
        draws = bootstrap_weights(len(self.ids), N_DRAWS, generator, strata=self.categories)
        sites = list(dict.fromkeys(site for site, _ in folders))
        acts = {site: self.store.readout(site, self.ids) for site in sites}
        rebuilt: dict[tuple[Site, int], Tensor] = {}
        fields: dict[tuple[Site, int], dict[str, Any]] = {}
        for key, folder in folders.items():
            sae = load(folder)
            rebuilt[key] = sae.forward(acts[key[0]]).reconstruction.float()
            fields[key] = {"duplicate_share": duplicate_share(sae.W_dec)}
        damages = self._damages([(site, self._mean(site)) for site in sites], rebuilt)
        of_mean = dict(zip(sites, damages.of, strict=False))
        for (key, x_hat), damage in zip(rebuilt.items(), damages.of[len(sites) :], strict=True):
            x, mean = acts[key[0]], of_mean[key[0]]
            fields[key]["fidelity"] = Fidelity(
                fingerprint=fingerprint,
                n_prompts=len(self.ids),
                fvu=Measure.of(fvu_estimate(x, x_hat, draws)),
                signal_recovered=Measure.of(self._signal(damage, mean, damages.metric, draws)),
                signal_at_stake=at_stake_of(mean),
                loss_recovered=Measure.of(loss_recovered(damage, mean, draws)),
                loss_at_stake=float(mean.divergence.mean()),
                reconstruction_bias=reconstruction_bias(x, x_hat),
            )
        return fields

    def _mean(self, site: Site) -> Float[Tensor, " d_model"]:
        """Return the mean activation of the training prompts."""
        return self.store.readout(site, self.train).mean(0, dtype=torch.float64).float()

    def _damages(
        self, means: Sequence[tuple[Site, Float[Tensor, " d_model"]]], rebuilt: Mapping[tuple[Site, int], Tensor]
    ) -> Damages:
        """Return what putting in the means, then the reconstructions, does to the prompts."""
        model = ChatModel.load(self.model_name, **how_to_load(self.config))
        outputs = ModelOutputs.load(self.paths.model_outputs(self.model_name)).outputs
        text_of = {output.id: output.prompt for output in outputs}
        openers = self.labels.openers
        token_ids = [
            [*ids, *openers.answer_prefix]
            for ids in model.tokenize([text_of[each] for each in self.ids], self.config.system_prompt)
        ]
        batch_size = BATCH if self.config.batch_size == "auto" else self.config.batch_size
        runner = ReadoutRunner(model, token_ids, batch_size=batch_size)
        metric = RefusalMetric(openers.refusal, openers.compliance) if openers.reason is None else None
        replacements = [Replacement(site, mean.expand(len(self.ids), -1)) for site, mean in means]
        replacements += [Replacement(site, values) for (site, _), values in rebuilt.items()]
        return measure_damage(runner, metric, len(self.ids), replacements)

    def _signal(self, sae: Damage, mean: Damage, base: Float[np.ndarray, " prompt"] | None, draws: Weights) -> Estimate:
        if base is None:
            reason = self.labels.openers.reason
            return Estimate(None, None, None, len(self.ids), method="bootstrap", reason=reason)
        return signal_recovered(sae, mean, base, draws)

"""The `saes` stage for one model: from the activation store to `saes/MODEL/SITE/`.

1. Which SAEs there are and on which rows they train is settled (`jobs`).
2. `auto` settings are resolved for that number of rows and logged with their reasons.
3. Sites and seeds are packed into stacks that train as one job (`jobs.plan_stacks`).
4. Each SAE is written as it is done: weights, `cfg.json`, history, and last `metrics.json`, which holds the checksum of
   the weights and the fingerprint of all inputs. An SAE whose `metrics.json` fits is not trained again. A card for
   readers (`README.md`) is made from these.
5. When all seeds of a site are there, their agreement is added to the first seed's `metrics.json`, and that of SAEs
   trained on halves of the prompts.
6. What each SAE keeps of the model's behaviour is measured on held-out prompts (`assess_model_saes`).

What is written depends on the inputs alone: an interrupted run that is started again ends with the same bytes. With
`sae.pretrained` nothing is trained: the SAEs given are checked and copied.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from refusal.artefacts import ResultPaths, sha256_file
from refusal.config import Config
from refusal.errors import InputError
from refusal.kept import plan_of
from refusal.loading import resolve_device
from refusal.processes import WHOLE, Part, this_part
from refusal.sae.all_positions import READOUT_SHARE
from refusal.sae.assessment import assess
from refusal.sae.auto import Resolved
from refusal.sae.card import write_card
from refusal.sae.checkpoint import Checkpoint
from refusal.sae.foreign import find_format, load_any
from refusal.sae.formats import load, save
from refusal.sae.halves import is_large_enough, note_halves, split_halves
from refusal.sae.jobs import Job, ModelSaes, plan_stacks, saved_seeds
from refusal.sae.metrics import quality, stability
from refusal.sae.pretrained import check_fits, locate
from refusal.sae.recipe import check_recipe
from refusal.sae.records import (
    METRICS_FILE,
    HistoryPoint,
    SaeMetrics,
    SeedStability,
    TrainingHistory,
    is_complete,
)
from refusal.sae.rows import TensorRows, digest
from refusal.sae.trainer import Task, Trained, train_stack

log = logging.getLogger(__name__)

TRAINER_VERSION = 2
"""Raised when the same inputs give other weights than before, so that old SAEs are trained again."""
TINY_PRODUCT = 2**25
"""Multiplications of a stack's encoders per step up to which one thread is faster than several."""


def train_model_saes(config: Config, model_name: str, paths: ResultPaths) -> None:
    """Make the SAEs of one model: every site with every seed; those that are up to date stay.

    Raises:
        ArtefactError, InputError: As `train_part`.
    """
    train_part(config, model_name, paths, WHOLE)
    halves_part(config, model_name, paths, WHOLE)
    finish(config, model_name, paths)


def train_part(config: Config, model_name: str, paths: ResultPaths, part: Part) -> None:
    """Make one process's share of the SAEs of one model; they are the same however many processes there are.

    Raises:
        ArtefactError: Activations or labels are missing or damaged.
        InputError: The settings do not fit the data, activations are not finite or all the same, or pretrained SAEs
            belong to another model.
    """
    stage = ModelSaes(config, model_name, paths)
    if config.sae.pretrained is None:
        _Training(stage).run(part)
    else:
        for job in stage.jobs[part.rank :: part.size]:
            _adopt(stage, job, locate(config.sae.pretrained, job.site, len(stage.jobs)))


def halves_part(config: Config, model_name: str, paths: ResultPaths, part: Part) -> None:
    """Note one process's share of how well SAEs of two halves of the prompts agree, once all SAEs are there."""
    if config.sae.pretrained is None and config.sae.stability_halves:
        _Training(ModelSaes(config, model_name, paths)).note_halves(part)


def finish(config: Config, model_name: str, paths: ResultPaths) -> None:
    """Note how well the seeds agree, once all SAEs of a model are there, and describe each."""
    stage = ModelSaes(config, model_name, paths)
    if config.sae.pretrained is None:
        _Training(stage).note_stability()
    _write_cards(stage)


def assess_model_saes(config: Config, model_name: str, paths: ResultPaths) -> None:
    """Measure with the model what its SAEs keep of it, and note it beside them; what is up to date stays.

    Raises:
        ArtefactError: Activations, labels or SAEs are missing or damaged.
        InputError: The model cannot be loaded.
    """
    stage = ModelSaes(config, model_name, paths)
    folders = {(job.site, job.seed): job.folder for job in stage.jobs if (job.folder / METRICS_FILE).exists()}
    assess(config, model_name, paths, folders, stage.prompts)
    _write_cards(stage)


def _write_cards(stage: ModelSaes) -> None:
    for job in stage.jobs:
        if (job.folder / METRICS_FILE).exists():
            write_card(job.folder)


# Training ------------------------------------------------------------------------------------------------------------


class _Training:
    """Trains a stage's jobs, stack by stack."""

    def __init__(self, stage: ModelSaes) -> None:
        self.stage = stage
        self.resolved: Resolved = stage.resolve()
        self.device = training_device(stage.config.device)

    def run(self, part: Part) -> None:
        """Train what is not up to date of a process's stacks."""
        recipe = self.resolved.recipe
        for name, reason in self.resolved.reasons.items():
            log.info("%s: sae.%s = %s (%s)", self.stage.model_name, name, getattr(recipe, name), reason)
        check_recipe(recipe, len(self.stage.drawn.train))
        stacks = plan_stacks(self.stage.jobs, recipe)[part.rank :: part.size]
        total, hidden = len(stacks) * recipe.steps, None if this_part().is_leader else True
        with tqdm(total=total, desc=f"saes: {self.stage.model_name}", unit="step", disable=hidden) as bar:
            for stack in stacks:
                self._train_stack(stack, bar)

    def _train_stack(self, stack: tuple[Job, ...], bar: Any) -> None:
        by_site = {site: self.stage.rows(site) for site in dict.fromkeys(job.site for job in stack)}
        sources = {site: self.stage.training_rows(site, rows) for site, rows in by_site.items()}
        digests = {site: digest(source) for site, source in sources.items()}
        prints = {job: self._fingerprint(job, digests[job.site]) for job in stack}
        if all(is_complete(job.folder, prints[job]) for job in stack):
            bar.update(self.resolved.recipe.steps)
            return
        tasks = [Task(job.site.name, job.seed, sources[job.site]) for job in stack]
        together = hashlib.sha256("".join(prints[job] for job in stack).encode()).hexdigest()
        asked = self.stage.config.sae.model_dump_json()
        checkpoint = Checkpoint(self.stage.folder, together, training=asked, rows=self.stage.rows_in_words())
        with _torch_threads(1) if self._is_tiny(stack) else nullcontext():
            results = train_stack(tasks, self.stage.drawn, self.resolved.recipe, bar.update, checkpoint, self.device)
        bar.update(self.resolved.recipe.steps - max(trained.history[-1].step for trained in results))
        for job, trained in zip(stack, results, strict=True):
            self._write(job, trained, by_site[job.site], prints[job])
        checkpoint.remove()

    def _is_tiny(self, stack: tuple[Job, ...]) -> bool:
        """Return whether sharing out each step of a stack among threads would cost more than it gains."""
        recipe = self.resolved.recipe
        return len(stack) * recipe.batch_size * recipe.d_sae * self.stage.store.d_model <= TINY_PRODUCT

    def _fingerprint(self, job: Job, acts: str) -> str:
        """Return a hash of all that decides the weights of an SAE.

        Args:
            job: The SAE.
            acts: Checksum of its rows.
        """
        decisive = {
            "version": TRAINER_VERSION,
            "recipe": asdict(self.resolved.recipe),
            "model": self.stage.model_name,
            "site": job.site.name,
            "seed": job.seed,
            "prompts": self.stage.prompt_ids,
            "categories": self.stage.categories,
            "heldout": self.stage.split.heldout.tolist(),
            "acts": acts,
        }
        if self.stage.others is not None:
            decisive["positions"] = {"of_prompt": self.stage.others.prompt.bincount().tolist(), "share": READOUT_SHARE}
        return plan_of(decisive)

    def _write(self, job: Job, trained: Trained, rows: TensorRows, fingerprint: str) -> None:
        """Write one SAE; `metrics.json`, which says that it is complete, goes first and comes last."""
        (job.folder / METRICS_FILE).unlink(missing_ok=True)
        trained.sae.provenance = self.stage.provenance(job)
        save(trained.sae, job.folder)
        points = tuple(HistoryPoint(**point._asdict()) for point in trained.history)
        history = TrainingHistory.build(model=self.stage.model_name, site=job.site.name, seed=job.seed, points=points)
        history.save(job.folder / f"{job.site.name}_training_history.json")
        fields = {
            "seed": job.seed,
            "source": "trained",
            "settings": {**asdict(self.resolved.recipe), "positions": self.stage.config.sae.trains_on},
            "reasons": self.resolved.reasons,
            "best_step": trained.best_step,
            "stop_reason": trained.stop_reason,
            "heldout_prompt_ids": [self.stage.prompt_ids[row] for row in self.stage.split.heldout.tolist()],
            **self.stage.measure(trained.sae, rows),
        }
        self.stage.save_metrics(job, trained.sae, fingerprint, fields)

    def note_stability(self) -> None:
        """Write into each site's first file how well every pair of seeds agrees."""
        for site in dict.fromkeys(job.site for job in self.stage.jobs):
            jobs = [job for job in self.stage.jobs if job.site == site]
            if len(jobs) < 2:
                continue
            rows, train = self.stage.rows(site), self.stage.split.train
            saes = [load(job.folder) for job in jobs]
            categories = [self.stage.categories[row] for row in train.tolist()]
            frequency = [quality(sae, rows, train, categories).frequency for sae in saes]
            pairs = tuple(
                SeedStability.of(
                    (jobs[first].seed, jobs[second].seed),
                    stability(saes[first].W_dec, saes[second].W_dec, frequency[first]),
                )
                for first, second in combinations(range(len(jobs)), 2)
            )
            path = jobs[0].folder / METRICS_FILE
            metrics = SaeMetrics.load(path)
            if metrics.seed_stability != pairs:
                metrics.model_copy(update={"seed_stability": pairs}).save(path)

    def note_halves(self, part: Part) -> None:
        """Write into each site's first file, how well SAEs of two halves of the prompts agree."""
        stage, recipe = self.stage, self.resolved.recipe
        if stage.others is not None:
            log.info("%s: agreement between halves of the prompts is not measured on all positions", stage.model_name)
            return
        halves = split_halves(stage.split, stage.prompt_ids, stage.categories, stage.config.seed)
        if not is_large_enough(halves, recipe):
            log.warning("%s: too few prompts to train SAEs on halves of them", stage.model_name)
            return
        log.info("%s: agreement between halves of the prompts, %d rows each", stage.model_name, len(halves))
        first = [job for job in stage.jobs if job.seed == saved_seeds(stage.config)[0]]
        for stack in plan_stacks(first, recipe)[part.rank :: part.size]:
            folders, tasks = [job.folder for job in stack], partial(self._tasks, stack)
            with _torch_threads(1) if self._is_tiny(stack) else nullcontext():
                note_halves(folders, tasks, halves, recipe, stage.folder, self.device)

    def _tasks(self, stack: Sequence[Job]) -> list[Task]:
        return [Task(job.site.name, job.seed, self.stage.rows(job.site)) for job in stack]


def training_device(configured: str) -> torch.device:
    """Return where SAEs train: on CUDA where models run on CUDA, else on the CPU (MPS lacks float64)."""
    device = resolve_device(configured)
    return device if device.type == "cuda" else torch.device("cpu")


@contextmanager
def _torch_threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Pretrained ----------------------------------------------------------------------------------------------------------


def _adopt(stage: ModelSaes, job: Job, source: Path) -> None:
    """Check a pretrained SAE against the model, copy it and write how it does on these activations."""
    found = find_format(source)
    sae = load_any(source)
    try:
        check_fits(sae, stage.store.d_model, job.site)
    except InputError as error:
        raise InputError(f"sae.pretrained: {source}: {error}") from error
    fingerprint = hashlib.sha256("".join(map(sha256_file, found.files)).encode()).hexdigest()
    if is_complete(job.folder, fingerprint) or found.weights.parent.resolve() == job.folder.resolve():
        return
    (job.folder / METRICS_FILE).unlink(missing_ok=True)
    save(sae, job.folder)
    fields = {"seed": None, "source": str(source), **stage.measure(sae, stage.rows(job.site))}
    stage.save_metrics(job, sae, fingerprint, fields)

"""The `saes` stage for one model: from the activation store to `saes/MODEL/SITE/`.

1. Rows: the readout position of every prompt that has a label, in the order of prompt ids, so that neither shuffling
   nor batching changes a result. A tenth of the prompts of each category and behaviour is held out. With
   `sae.positions: all` the other positions of the training prompts follow (`all_positions`); every figure stays one of
   readout rows.
2. `auto` settings are resolved for that number of rows and logged with their reasons.
3. Sites and seeds are packed into stacks that train as one job (`plan_stacks`).
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
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from refusal.artefacts import ResultPaths, sha256_file
from refusal.config import Config
from refusal.errors import InputError
from refusal.loading import resolve_device
from refusal.positions import PositionIndex
from refusal.processes import WHOLE, Part
from refusal.sae.all_positions import READOUT_SHARE, PromptRows, split_positions
from refusal.sae.assessment import Prompts, assess
from refusal.sae.auto import Resolved, resolve
from refusal.sae.base import Provenance, SparseAutoencoder
from refusal.sae.card import write_card
from refusal.sae.checkpoint import Checkpoint
from refusal.sae.foreign import find_format, load_any
from refusal.sae.formats import WEIGHTS_FILE, hook_name, load, save
from refusal.sae.halves import is_large_enough, note_halves, split_halves
from refusal.sae.metrics import quality, stability
from refusal.sae.pretrained import check_fits, locate
from refusal.sae.records import (
    METRICS_FILE,
    HistoryPoint,
    SaeMetrics,
    SeedStability,
    SplitQuality,
    TrainingHistory,
    is_complete,
)
from refusal.sae.rows import RowSource, RowSplit, TensorRows, digest, split_rows, thin_prompts
from refusal.sae.trainer import Recipe, Task, Trained, check_recipe, train_stack
from refusal.schemas import RefusalLabels
from refusal.sites import Site
from refusal.store import ActivationStore

log = logging.getLogger(__name__)

TRAINER_VERSION = 1
"""Raised when the same inputs give other weights than before, so that old SAEs are trained again."""
STACK_VALUES = 2**19
"""Pre-activations of one step of a stack, at most (2 MiB, what caches hold); an SAE with more trains alone."""
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
    stage = _Stage(config, model_name, paths)
    if config.sae.pretrained is None:
        _Training(stage).run(part)
    else:
        for job in stage.jobs[part.rank :: part.size]:
            _adopt(stage, job, locate(config.sae.pretrained, job.site, len(stage.jobs)))


def halves_part(config: Config, model_name: str, paths: ResultPaths, part: Part) -> None:
    """Note one process's share of how well SAEs of two halves of the prompts agree, once all SAEs are there."""
    if config.sae.pretrained is None and config.sae.stability_halves:
        _Training(_Stage(config, model_name, paths)).note_halves(part)


def finish(config: Config, model_name: str, paths: ResultPaths) -> None:
    """Note how well the seeds agree, once all SAEs of a model are there, and describe each."""
    stage = _Stage(config, model_name, paths)
    if config.sae.pretrained is None:
        _Training(stage).note_stability()
    _write_cards(stage)


def assess_model_saes(config: Config, model_name: str, paths: ResultPaths) -> None:
    """Measure with the model what its SAEs keep of it, and note it beside them; what is up to date stays.

    Raises:
        ArtefactError: Activations, labels or SAEs are missing or damaged.
        InputError: The model cannot be loaded.
    """
    stage = _Stage(config, model_name, paths)
    folders = {(job.site, job.seed): job.folder for job in stage.jobs if (job.folder / METRICS_FILE).exists()}
    assess(config, model_name, paths, folders, stage.prompts)
    _write_cards(stage)


def _write_cards(stage: _Stage) -> None:
    for job in stage.jobs:
        if (job.folder / METRICS_FILE).exists():
            write_card(job.folder)


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


class _Stage:
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
        return Provenance(
            model_name=self.model_name,
            hook_name=hook_name(job.site),
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
            fingerprint=fingerprint,
            **fields,
        )
        metrics.save(job.folder / METRICS_FILE)


# Training ------------------------------------------------------------------------------------------------------------


class _Training:
    """Trains a stage's jobs, stack by stack."""

    def __init__(self, stage: _Stage) -> None:
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
        total, hidden = len(stacks) * recipe.steps, None if part.is_leader else True
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
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

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


def _adopt(stage: _Stage, job: Job, source: Path) -> None:
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

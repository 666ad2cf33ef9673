"""The directions stage of one model: from labels and prompts to a selected direction and what it does.

1. one pass over the prompts: sums by category and side, activations of each prompt, differences in means of the
   training prompts, pooled and per category (`means`);
2. every candidate scored on validation prompts, one selected, and where to act with it (`choosing`);
3. answers and losses on test prompts under each intervention (`trials`), and dose-response curves (`doses`);
4. categories' directions compared, other contrasts, projections (`comparing`);
5. probes and separation by layer (`layers`);
6. everything written, also in the published layout (`formats`), `directions.json` last.

What takes long is kept as it is done; the same inputs make the same files. Where no direction can be formed (a model
that never refuses), the reason is the result. Knows no figures and no report.
"""

from __future__ import annotations

import logging
from pathlib import Path

from refusal.artefacts import ResultPaths, sha256_file
from refusal.config import Config
from refusal.directions.acting import Acting
from refusal.directions.choosing import references, select
from refusal.directions.comparing import (
    Comparing,
    check_contrasts,
    compare_categories,
    compare_contrasts,
    write_projections,
)
from refusal.directions.doses import CURVES, dose_curve
from refusal.directions.formats import write_published
from refusal.directions.found import stage_files
from refusal.directions.inputs import outside_files
from refusal.directions.judging import MaterialAnswerer
from refusal.directions.layers import probe_layers, separations
from refusal.directions.material import Material
from refusal.directions.means import Means, collect_means
from refusal.directions.schemas import CategoryDirections, Chosen, ContrastDirections, Directions, DoseFile, Selection
from refusal.directions.splits import Part
from refusal.directions.trials import Trials
from refusal.directions.writing import write_selection_csv, write_splits, write_tensors
from refusal.kept import found, kept, plan_of
from refusal.steering.directional import random_units
from refusal.steering.frame import Region
from refusal.store import ActivationStore

log = logging.getLogger(__name__)

VERSION = 1
"""Raised when the stage makes other results of the same inputs; what was kept is then made anew."""


def find_directions(config: Config, model_name: str, paths: ResultPaths) -> None:
    """Run the stage for one model and write `directions/MODEL/`.

    Raises:
        ArtefactError: The inference stage has not been run, or its files are damaged.
        InputError: The configuration does not fit the prompts or the model.
    """
    material = Material(config, model_name, paths)
    folder = paths.directions(model_name)
    if material.problem is None:
        written = _Stage(material, folder, _plan(config, model_name, paths)).run()
    else:
        log.warning("%s: no refusal direction: %s", model_name, material.problem)
        written = [folder / "directions.json"]
        _describe(material).save(written[0])
    for stale in stage_files(paths, model_name):
        if stale not in written:
            stale.unlink()


def _plan(config: Config, model_name: str, paths: ResultPaths) -> str:
    """Return a hash of all that decides what the stage measures."""
    decisive = {
        "version": VERSION,
        "activations": ActivationStore(paths.activations(model_name)).checksum,
        "labels": sha256_file(paths.refusal_labels(model_name)),
        "directions": config.directions.model_dump(mode="json"),
        "draws": [config.analysis.bootstrap, config.analysis.permutations],
        "seed": config.seed,
        "dtype": config.dtype,
        "max_new_tokens": config.max_new_tokens,
        "who judges": config.labels.model_dump(mode="json"),
        "files": [sha256_file(path) for path in outside_files(config)],
    }
    return plan_of(decisive)


class _Stage:
    """The steps of the stage.

    Args:
        material: The prompts of the model, of which a direction can be made.
        folder: Where files go.
        plan: Hash of all that they depend on.
    """

    def __init__(self, material: Material, folder: Path, plan: str) -> None:
        self.material = material
        self.folder = folder
        self.plan = plan
        self.answerer = MaterialAnswerer(material, folder / "judged.jsonl")

    def run(self) -> list[Path]:
        """Do every step that is not kept, and return the files of the stage, `directions.json` written last."""
        material, seed = self.material, self.material.config.seed
        check_contrasts(material)
        means = collect_means(material)
        acting, selection = self._select(means)
        log.info("%s: selected the direction at %s", material.name, acting.direction.read_at)
        trials = Trials(self.answerer, acting, self.folder / "responses", self.plan)
        files = [self._selection_path, *(trials.path(condition.name) for condition in trials.run())]
        files.append(self._doses(acting))
        files += self._compare(means)
        probes, weights = probe_layers(means.acts, means.is_refused, means.places(Part.TRAIN), seed)
        files += write_tensors(self.folder, means, weights)
        files += write_selection_csv(self.folder, selection)
        if acting.direction.layer + 1 < means.pooled.n_layers:
            files += write_published(self.folder, means.pooled, acting.direction.position, acting.direction.layer)
        files += write_splits(self.folder / "splits", material)
        separation = separations(means.acts, means.is_refused, means.places(Part.TRAIN), means.places(Part.TEST))
        described = _describe(material).model_copy(
            update={
                "positions": material.positions,
                "norms": tuple(tuple(row) for row in means.pooled.values.norm(dim=-1).tolist()),
                "chosen": _chosen(selection),
                "separation": separation,
                "probes": probes,
                "notices": _notices(material, means, selection),
            }
        )
        described.save(self.folder / "directions.json")
        return [*files, self.folder / "directions.json", self.folder / "judged.jsonl"]

    @property
    def _selection_path(self) -> Path:
        return self.folder / "selection.json"

    def _select(self, means: Means) -> tuple[Acting, Selection]:
        """Return the selected direction, ready to act."""
        left = references(self.material)
        selection = kept(
            self._selection_path, Selection, self.plan, lambda: select(self.answerer, means.pooled, left, self.plan)
        )
        chosen = selection.candidates[selection.chosen]
        direction = means.pooled.direction(chosen.position, chosen.layer)
        acting = Acting(direction, chosen.ablate_to, left, Region(selection.steer_at), selection.coefficient)
        return acting, selection

    def _doses(self, acting: Acting) -> Path:
        """Make the curves that are not kept, and keep each when it is done."""
        path = self.folder / "doses.json"
        there = found(path, DoseFile, self.plan)
        curves = {} if there is None else {curve.intervention: curve for curve in there.curves}
        direction, settings, seed = acting.direction, self.material.settings, self.material.config.seed
        random = random_units(settings.controls, len(direction.raw), seed) * direction.norm
        for name in CURVES:
            if name not in curves:
                curves[name] = dose_curve(name, self.answerer, acting, random)
                DoseFile.build(plan=self.plan, curves=tuple(curves.values())).save(path)
        return path

    def _compare(self, means: Means) -> list[Path]:
        """Compare the categories' directions, and the refusal direction with other contrasts."""
        comparing, name = Comparing(self.material, means), self.material.name
        paths = [self.folder / "categories.json", self.folder / "contrasts.json"]
        kept(paths[0], CategoryDirections, self.plan, lambda: compare_categories(comparing, self.plan))
        kept(
            paths[1],
            ContrastDirections,
            self.plan,
            lambda: ContrastDirections.build(
                plan=self.plan, model=name, contrasts=compare_contrasts(self.material, means)
            ),
        )
        return [*paths, *write_projections(self.folder, comparing)]


def _describe(material: Material) -> Directions:
    """Return what is known before anything is measured."""
    sides = {"refused": True, "complied": False}
    return Directions.build(
        model=material.name,
        reason=material.problem,
        contrast=material.contrast.value,
        n={part.value: {name: len(material.rows(part, refused=side)) for name, side in sides.items()} for part in Part},
        n_by_category={
            category: {
                name: len(material.rows(Part.TRAIN, refused=side, category=category)) for name, side in sides.items()
            }
            for category in material.categories
        },
        positions=(),
        norms=(),
        chosen=None,
        separation=(),
        probes=(),
        notices=(),
    )


def _chosen(selection: Selection) -> Chosen:
    candidate = selection.candidates[selection.chosen]
    return Chosen(
        position=candidate.position,
        layer=candidate.layer,
        site=f"residuals_{candidate.layer}",
        norm=candidate.norm,
        ablate_to=candidate.ablate_to,
        steer_at=selection.steer_at,
        fallback=selection.fallback,
    )


def _notices(material: Material, means: Means, selection: Selection) -> tuple[str, ...]:
    """Return what a reader should know of how the directions were made."""
    notices: list[str] = [] if selection.fallback is None else [selection.fallback]
    without = [category for category in material.categories if category not in means.by_category]
    if without:
        notices.append(f"no direction of their own, for too few training prompts of a side: {', '.join(without)}")
    if len(means.acts.positions) < len(material.positions):
        notices.append("probes and projections are of the readout position alone: other positions take too much memory")
    if selection.candidates[selection.chosen].published_layer >= selection.n_layers:
        notices.append("the direction is of the last block's output, which the published layout cannot hold")
    return (*notices, *material.model.notices)

"""The main job: which units there are, what each depends on, and the order of stages. Nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from circuits.tracking import track
from refusal.artefacts import ResultPaths
from refusal.config import Config, Stage
from refusal.config.patching import SOURCES
from refusal.directions.inputs import outside_files
from refusal.models import resolve
from refusal.processes import WHOLE, Part, Team
from refusal.prompts import local_files
from refusal.shards import note
from refusal.stages import Pipeline, Unit
from refusal.stages.run_lock import result_folder

if TYPE_CHECKING:
    from refusal.inference.stage import Inference
from circuits.units import (
    BESIDE,
    CIRCUIT_KEYS,
    COMPARE_KEYS,
    COMPARE_VERSION,
    DIRECTION_KEYS,
    INFERENCE_KEYS,
    PATCHING_COMPARISON_KEYS,
    PATCHING_KEYS,
    SAE_KEYS,
    SAES_VERSION,
    circuit_files,
    direction_files,
    existing,
    inference_files,
    is_of_positions,
    lacks_circuits,
    lacks_positions,
    model_files,
    patching_comparison_files,
    patching_files,
    pretrained_files,
    sae_files,
    taken_direction,
)

HALVES = "halves of the prompts"
"""Name of the work that trains SAEs on halves."""


class RefusalCircuitAnalyzer:
    """Runs a configuration.

    Args:
        config: What to run.
        forced: Stages to redo even when they are up to date.
        part: Which of several processes this is.
        shard: Which part of the work all these processes do; other commands do the others.
        is_merge: Inference puts shards together and runs no prompt.
    """

    def __init__(
        self,
        config: Config,
        forced: Iterable[Stage] = (),
        part: Part = WHOLE,
        shard: Part = WHOLE,
        *,
        is_merge: bool = False,
    ) -> None:
        self.config = config
        self.forced = frozenset(forced)
        self.shard = shard
        self.is_merge = is_merge
        works = {Stage.INFERENCE: self._capture_part, Stage.SAES: self._train_part, HALVES: self._halves_part}
        self.team = Team(part, works)
        self._captured: Inference | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages asked for, without SAE training when `train_saes` is off."""
        asked = [stage for stage in Stage if stage in self.config.stages]
        return tuple(stage for stage in asked if stage is not Stage.SAES or self.config.train_saes)

    def pipeline(self, paths: ResultPaths) -> Pipeline:
        """Return the units of the configuration, ready to run or to be looked at."""
        units = [unit for model in self.config.models for unit in self._units(model, paths)]
        units += self._patching_comparison(units, paths)
        units.append(self._report(paths, tuple(unit for unit in units if self._is_reported(unit, units, paths))))
        return Pipeline(self.config, paths, units, self.forced)

    def _is_reported(self, unit: Unit, units: list[Unit], paths: ResultPaths) -> bool:
        """Return whether the report shows a unit; what is not asked for only while it is up to date."""
        if unit.stage in BESIDE and unit.stage not in self.config.stages:
            return Pipeline(self.config, paths, units, self.forced).state(unit).is_up_to_date
        return unit.stage in (Stage.COMPARE, *BESIDE)

    def run(self) -> ResultPaths:
        """Run every stage that is asked for and not up to date; return where the results lie.

        Raises:
            InputError: The configuration names something that does not exist or does not fit.
            ArtefactError: A stage needs another that is not there.
        """
        try:
            with result_folder(self.config.result_dir) as paths:
                self.pipeline(paths).run(self.stages)
                track(self.config, paths)
        finally:
            self.team.dismiss()
        return paths

    def run_shard(self, stage: Stage) -> ResultPaths:
        """Do this shard of a stage, for all models; return where the results lie.

        Raises:
            InputError: The configuration names something that does not exist or does not fit.
            ArtefactError: The stage needs another that is not there.
        """

        def work(model: str) -> None:
            """Do this shard for a model, shared out among the processes."""
            if stage is Stage.INFERENCE:
                note(paths.activations(model), self.shard)
            self.team.share(stage, model)
            self._captured = None

        try:
            with result_folder(self.config.result_dir, shard=self.shard) as paths:
                self.pipeline(paths).run_part(stage, work)
        finally:
            self.team.dismiss()
        return paths

    def _infer(self, config: Config, model: str, paths: ResultPaths) -> None:
        from refusal.inference.stage import merge_shards

        if self.is_merge:
            merge_shards(config, model, paths)
            return
        self.team.share(Stage.INFERENCE, model)
        captured, self._captured = self._captured, None
        assert captured is not None  # the leader's part of what was shared
        captured.finish()

    def _capture_part(self, model: str, part: Part) -> None:
        from refusal.inference.stage import Inference

        inference = Inference(self.config, model, ResultPaths(self.config.result_dir))
        inference.capture(part.within(self.shard))
        self._captured = inference if part.is_leader else None

    def _train_part(self, model: str, part: Part) -> None:
        from refusal.sae.training import train_part

        train_part(self.config, model, ResultPaths(self.config.result_dir), part.within(self.shard))

    def _halves_part(self, model: str, part: Part) -> None:
        from refusal.sae.training import halves_part

        halves_part(self.config, model, ResultPaths(self.config.result_dir), part)

    def _train_saes(self, config: Config, model: str, paths: ResultPaths) -> None:
        from refusal.sae.training import assess_model_saes, finish

        self.team.share(Stage.SAES, model)
        self.team.share(HALVES, model)
        finish(config, model, paths)
        assess_model_saes(config, model, paths)

    def _units(self, model: str, paths: ResultPaths) -> list[Unit]:
        inference = self._inference(model, paths)
        saes = self._unit(
            Stage.SAES, model, SAE_KEYS, (inference,), self._train_saes, partial(sae_files, paths, model), paths
        )
        saes = replace(saes, version=SAES_VERSION, fetched=partial(pretrained_files, self.config.sae.pretrained))
        circuits = self._unit(
            Stage.CIRCUITS,
            model,
            CIRCUIT_KEYS,
            (inference, saes),
            _discover,
            partial(circuit_files, paths, model),
            paths,
        )
        compare = self._unit(
            Stage.COMPARE,
            model,
            COMPARE_KEYS,
            (inference, saes, circuits),
            _compare,
            partial(existing, paths.comparison(model), paths.effects(model)),
            paths,
        )
        compare = replace(compare, version=COMPARE_VERSION)
        beside = (*self._directions(model, paths, inference), *self._patching(inference, paths))
        return [inference, saes, circuits, compare, *beside]

    def _directions(self, model: str, paths: ResultPaths, inference: Unit) -> list[Unit]:
        """Return the directions unit where it is asked for, or was made: the report then shows it."""
        if Stage.DIRECTIONS not in self.config.stages and not paths.stage_record(Stage.DIRECTIONS, model).exists():
            return []
        unit = self._unit(
            Stage.DIRECTIONS,
            model,
            DIRECTION_KEYS,
            (inference,),
            _direct,
            partial(direction_files, paths, model),
            paths,
        )
        return [replace(unit, inputs=outside_files(self.config))]

    def _patching(self, inference: Unit, paths: ResultPaths) -> list[Unit]:
        """Return the unit of a model's patching, where it is asked for, or was made: the report shows it."""
        model, source = inference.model, self.config.patching.pairs
        assert model is not None  # a unit of one model
        if Stage.PATCHING not in self.config.stages and not paths.stage_record(Stage.PATCHING, model).exists():
            return []
        outputs = partial(patching_files, self.config, paths, model)
        unit = self._unit(Stage.PATCHING, model, PATCHING_KEYS, (inference,), _patch, outputs, paths)
        files = () if source in SOURCES else (Path(source),)
        lacks = partial(lacks_circuits, self.config, paths, model)
        return [replace(unit, inputs=files, lacks=lacks, fetched=partial(taken_direction, self.config, model, paths))]

    def _patching_comparison(self, units: list[Unit], paths: ResultPaths) -> list[Unit]:
        """Return the unit that compares models by patching, where that is asked for."""
        if Stage.PATCHING not in self.config.stages or not self.config.patching.compare:
            return []
        compared = {name for pair in self.config.patching.compare for name in pair}
        needs = tuple(unit for unit in units if unit.stage is Stage.INFERENCE and unit.model in compared)
        outputs = partial(patching_comparison_files, paths)
        run = partial(_compare_patched, self.config, paths)
        return [Unit(Stage.PATCHING, None, PATCHING_COMPARISON_KEYS, (), needs, outputs, run)]

    def _inference(self, model: str, paths: ResultPaths) -> Unit:
        files = local_files(self.config.dataset_dir, self.config.safe_subset)
        outputs = partial(inference_files, paths, model)
        # a key of its own only when it is on: results of earlier versions, which did not have it, stay up to date
        keys = (*INFERENCE_KEYS, *(("trust_remote_code",) if self.config.trust_remote_code else ()))
        unit = self._unit(Stage.INFERENCE, model, keys, (), self._infer, outputs, paths)
        lacks = partial(lacks_positions, self.config, paths, model)
        fetched = partial(model_files, *resolve(model))
        return replace(unit, inputs=files, lacks=lacks, fetched=fetched, is_read_checked=is_of_positions)

    def _unit(
        self,
        stage: Stage,
        model: str,
        keys: tuple[str, ...],
        needs: tuple[Unit, ...],
        function: Callable[[Config, str, ResultPaths], None],
        outputs: Callable[[], list[Path]],
        paths: ResultPaths,
    ) -> Unit:
        return Unit(stage, model, keys, (), needs, outputs, partial(function, self.config, model, paths))

    def _report(self, paths: ResultPaths, needs: tuple[Unit, ...]) -> Unit:
        def run() -> None:
            """Write the reports and keep the paths of what was written."""
            from circuits.report import write_reports

            configuration = self.config.model_dump(mode="json")
            patched = [unit.model for unit in needs if unit.stage is Stage.PATCHING and unit.model is not None]
            settings = self.config.report
            written.extend(
                write_reports(
                    paths,
                    self.config.models,
                    settings,
                    configuration,
                    directed={unit.model for unit in needs if unit.stage is Stage.DIRECTIONS and unit.model},
                    patched=patched,
                )
            )

        written: list[Path] = []
        return Unit(Stage.REPORT, None, ("report", "models", "categories"), (), needs, lambda: written, run)


def _discover(config: Config, model: str, paths: ResultPaths) -> None:
    from circuits.circuit_stage import discover_circuits

    discover_circuits(config, model, paths)


def _compare(config: Config, model: str, paths: ResultPaths) -> None:
    from circuits.compare_stage import compare_categories

    compare_categories(config, model, paths)


def _direct(config: Config, model: str, paths: ResultPaths) -> None:
    from circuits.directions.stage import run_directions

    run_directions(config, model, paths)


def _patch(config: Config, model: str, paths: ResultPaths) -> None:
    from circuits.patching.stage import patch_model

    patch_model(config, model, paths)


def _compare_patched(config: Config, paths: ResultPaths) -> None:
    from circuits.patching.stage import compare_models_of

    compare_models_of(config, paths)

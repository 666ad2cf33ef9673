"""Run units in order, skipping what is up to date, and leave a record of each that is done."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from refusal.artefacts import ResultPaths, read_sealed, write_json, write_sealed
from refusal.config import Config, Stage, chosen, plain
from refusal.errors import ArtefactError, InputError
from refusal.labels import VERSION
from refusal.model_files import decisive_files
from refusal.resources import peak_cuda_bytes, peak_memory_bytes, start_measuring_memory
from refusal.stages.changes import comparable, difference
from refusal.stages.signatures import digests, is_intact, seems_intact, signature_of
from refusal.stages.surroundings import collected_warnings, versions
from refusal.stages.units import State, Unit, all_needs, command_of, with_dependents

log = logging.getLogger(__name__)

SCHEMA = "refusal-circuits/stage/1"
MANIFEST_SCHEMA = "refusal-circuits/manifest/1"


class Pipeline:
    """Runs units in order, skipping what is up to date.

    Args:
        config: The configuration.
        paths: The result folder.
        units: All units of the configuration; each after those it needs.
        forced: Stages to redo, and with them every unit that needs one of theirs.
    """

    def __init__(self, config: Config, paths: ResultPaths, units: Sequence[Unit], forced: frozenset[Stage]) -> None:
        self.config = config
        self.paths = paths
        self.units = units
        self.forced = forced
        self._redone = with_dependents(units, forced)
        self._done: set[tuple[Stage, str | None]] = set()

    def state(self, unit: Unit) -> State:
        """Return whether a unit is up to date, and if not, why."""
        if self._is_forced(unit):
            return State(False, "forced")
        for needed in unit.needs:
            if not self.state(needed).is_up_to_date:
                return State(False, f"{needed.name} is not up to date")
        if not self.paths.stage_record(unit.stage, unit.model).exists():
            return State(False, "not done yet")
        record = self._record(unit)
        if record is None:
            return State(False, "its record cannot be read")
        if record["version"] != unit.version:
            return State(False, "made by another version")
        changed = difference(comparable(record, unit), self._fingerprint(unit))
        if changed is not None:
            return State(False, changed)
        outputs = record["outputs"]
        wrong = next((name for name in outputs if not seems_intact(self.paths.root / name, outputs[name])), None)
        lacking = f"{wrong} is missing or changed" if wrong is not None else unit.lacks()
        return State(lacking is None, lacking or "up to date")

    def _is_forced(self, unit: Unit) -> bool:
        return (unit.stage, unit.model) in self._redone - self._done

    def _record(self, unit: Unit) -> dict[str, Any] | None:
        """Return what a unit left when it was done; None if it left nothing that can be read."""
        try:
            record = read_sealed(self.paths.stage_record(unit.stage, unit.model), "")
        except ArtefactError:
            return None
        has_all = isinstance(record, dict) and {"fingerprint", "outputs", "version"} <= set(record)
        if not has_all or record.get("schema") != SCHEMA or record.get("model") != unit.model:
            return None
        stays = all(not PurePosixPath(name).is_absolute() and ".." not in name.split("/") for name in record["outputs"])
        return record if stays else None

    def _fingerprint(self, unit: Unit) -> dict[str, dict[str, Any]]:
        outputs = {}
        for needed in unit.needs:
            record = self._record(needed) or {"outputs": {}}
            checksums = {name: signature["sha256"] for name, signature in record["outputs"].items()}
            outputs[needed.name] = hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()
        fingerprint = {
            "config": chosen(self.config, unit.keys),
            "inputs": digests((*unit.inputs, *(unit.fetched() or ()))),
            "needs": outputs,
        }
        return fingerprint | ({"labels": self._who_judges} if unit.stage is Stage.INFERENCE else {})

    @property
    def _who_judges(self) -> dict[str, Any]:
        """Return what decides the labels: the detector, its version, and the files of a judge."""
        decides = {"version of the labels": VERSION, **chosen(self.config, ["labels"])}
        if self.config.labels.judge is None:
            return decides
        from refusal.loading import resolve

        return decides | digests(decisive_files(*resolve(self.config.labels.judge)))

    def run(self, stages: Sequence[Stage]) -> None:
        """Run the units of the asked stages that are not up to date.

        A model that fails does not keep the others from running; what failed is raised at the end.

        Raises:
            InputError: A unit's input is wrong, or a stage is forced that is not asked for.
            ArtefactError: A unit needs another that is not among the asked stages and not up to date.
        """
        for stage in self.forced.difference(stages):
            asked = ", ".join(stages)
            raise InputError(f"--force {stage}: this run has the stages {asked} only; name {stage} in --stages too")
        failed: dict[str | None, InputError | ArtefactError] = {}
        for unit in self.units:
            if unit.stage not in stages or unit.model in failed or (unit.model is None and failed):
                continue
            try:
                self._run(unit, stages)
            except (InputError, ArtefactError) as error:
                failed[unit.model] = error
                if len(self.config.models) > 1:
                    log.error("%s: failed, see below; going on with the other models", unit.name)
            self.write_manifest()
        if failed:
            raise self._together(list(failed.values()))

    def run_part(self, stage: Stage, work: Callable[[str], None]) -> None:
        """Do a part of a stage for each model of which it is not up to date; no record is written, nor a manifest.

        Args:
            stage: The stage.
            work: Does the part for a model.

        Raises:
            InputError: A unit's input is wrong.
            ArtefactError: A unit needs another that is not up to date.
        """
        failed: list[InputError | ArtefactError] = []
        for unit in self.units:
            if unit.stage is not stage or unit.model is None:
                continue
            state = self.state(unit)
            if state.is_up_to_date:
                log.info("%s: up to date", unit.name)
                continue
            try:
                self._require_needs(unit)
                log.info("%s: running a part (%s)", unit.name, state.reason)
                work(unit.model)
            except (InputError, ArtefactError) as error:
                failed.append(error)
        if failed:
            raise self._together(failed)

    def _together(self, errors: Sequence[InputError | ArtefactError]) -> InputError | ArtefactError:
        if len(self.config.models) == 1:
            return errors[0]
        text = "\n".join(dict.fromkeys(str(error) for error in errors))
        kept = f"{self.paths.root}: {len(errors)} of {len(self.config.models)} models failed; what is done is kept"
        return type(errors[0])(f"{text}\n{kept}, and the report is written when all models are done")

    def _run(self, unit: Unit, stages: Sequence[Stage]) -> None:
        state = self.state(unit)
        if state.is_up_to_date:
            log.info("%s: up to date", unit.name)
            return
        for needed in all_needs(unit):
            if needed.stage in stages and self._remove_damaged(needed):
                self._run(needed, stages)
        self._require_needs(unit)
        log.info("%s: running (%s)", unit.name, state.reason)
        if self._is_forced(unit):
            self._discard(unit)
        self.paths.stage_record(unit.stage, unit.model).unlink(missing_ok=True)
        record = self._execute(unit)
        write_sealed(self.paths.stage_record(unit.stage, unit.model), record)
        self._done.add((unit.stage, unit.model))
        log.info("%s: done in %.1f s", unit.name, record["seconds"])

    def _require_needs(self, unit: Unit) -> None:
        for needed in unit.needs:
            found = self.state(needed)
            if not found.is_up_to_date:
                raise ArtefactError(
                    f"{self.paths.root}: {unit.name} needs {needed.name}, which is not ready ({found.reason}); "
                    f"first run: {command_of(needed.stage)}"
                )

        for needed in all_needs(unit):
            for path in self._damaged(needed):
                raise ArtefactError(
                    f"{path}: damaged (it is not what {needed.name} wrote); delete it and run: "
                    f"{command_of(needed.stage)}"
                )

    def _damaged(self, unit: Unit) -> list[Path]:
        """Return the outputs of a unit that are not what it wrote, whatever their time of change says."""
        signatures = (self._record(unit) or {"outputs": {}})["outputs"]
        found = {self.paths.root / name: signature for name, signature in signatures.items()}
        return [path for path in found if not unit.is_read_checked(path) and not is_intact(path, found[path])]

    def _remove_damaged(self, unit: Unit) -> bool:
        """Remove outputs of a unit that are not what it wrote, so that it makes them anew; return whether any is."""
        damaged = self._damaged(unit)
        for path in damaged:
            log.warning("%s: damaged (it is not what %s wrote); it is made anew", path, unit.name)
            path.unlink(missing_ok=True)
        return bool(damaged)

    def _discard(self, unit: Unit) -> None:
        """Remove what a unit has written, so that nothing of it is taken up again."""
        recorded = (self._record(unit) or {"outputs": {}})["outputs"]
        for path in {*unit.outputs(), *(self.paths.root / name for name in recorded)}:
            path.unlink(missing_ok=True)

    def _execute(self, unit: Unit) -> dict[str, Any]:
        """Run a unit and return its record.

        Raises:
            ArtefactError: A file that it reads was changed meanwhile.
        """
        before = self._fingerprint(unit)
        start_measuring_memory()
        started = time.time()
        with collected_warnings() as warnings:
            unit.run()
        seconds = max(0.0, time.time() - started)
        fingerprint = self._fingerprint(unit)  # with what was downloaded
        self._require_same(unit, before["inputs"], fingerprint["inputs"])
        outputs = {path.relative_to(self.paths.root).as_posix(): signature_of(path) for path in unit.outputs()}
        return {
            "schema": SCHEMA,
            "version": unit.version,
            "stage": str(unit.stage),
            "model": unit.model,
            "fingerprint": fingerprint,
            "fetched": sorted(set(fingerprint["inputs"]) - set(digests(unit.inputs))),
            "outputs": outputs,
            "seconds": round(seconds, 3),
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_cuda_bytes": peak_cuda_bytes(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "warnings": warnings,
            "versions": versions(),
        }

    def _require_same(self, unit: Unit, before: dict[str, str], after: dict[str, str]) -> None:
        for name in before:
            if name in after and before[name] != after[name]:
                raise ArtefactError(
                    f"{self.paths.root}: {name} was changed while {unit.name} was running, so it is not known what its "
                    "results are of; let it be, and run the same command again"
                )

    def write_manifest(self) -> None:
        """Write `run_manifest.json` from the records of all units."""
        records = [record for record in map(self._record, self.units) if record is not None]
        manifest = {
            "schema": MANIFEST_SCHEMA,
            "configuration": plain(self.config),
            "versions": versions(),
            "seeds": {"seed": self.config.seed, "sae": list(self.config.sae.seeds)},
            "stages": [{key: record[key] for key in record if key not in ("schema", "versions")} for record in records],
        }
        write_json(self.paths.manifest, manifest)

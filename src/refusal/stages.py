"""Units of work that resume: what is up to date, why something is not, and the record each unit leaves.

A unit is one stage for one model (or, for the report, for all). Its fingerprint covers the configuration keys it
depends on, its input files and the outputs of the units before it. When a unit is done it writes its record last:
outputs with checksums, time, memory, warnings, versions. A unit whose record fits is skipped; a killed one has no
record and runs again.

Looking at what is done is quick: large files are believed by size and time of change. Before a unit runs, every file
that it may read is compared with the checksum that the unit which wrote it has recorded; what does not fit is made anew
where its stage is asked for, and else told. The largest, positions of all prompts, the store compares as it reads them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from refusal.artefacts import ResultPaths, read_sealed, write_json, write_sealed
from refusal.config import Config, Stage, chosen, plain
from refusal.errors import ArtefactError, InputError
from refusal.labels import VERSION
from refusal.model_files import decisive_files
from refusal.resources import peak_cuda_bytes, peak_memory_bytes, start_measuring_memory
from refusal.run_lock import result_folder
from refusal.signatures import digests, file_digest, is_intact, seems_intact, signature_of

__all__ = ["Pipeline", "State", "Unit", "file_digest", "result_folder", "versions"]

log = logging.getLogger(__name__)

SCHEMA = "refusal-circuits/stage/1"
MANIFEST_SCHEMA = "refusal-circuits/manifest/1"
PACKAGES = ("torch", "transformers", "safetensors", "numpy", "scipy", "scikit-learn", "networkx", "refusal-circuits")


@dataclass(frozen=True)
class Unit:
    """One stage for one model, or for all (`model` None)."""

    stage: Stage
    model: str | None
    keys: tuple[str, ...]
    """Dotted configuration keys its result depends on."""
    inputs: tuple[Path, ...]
    """Files from outside the result folder; more of them by `fetched`."""
    needs: tuple[Unit, ...]
    """Units whose outputs it reads."""
    outputs: Callable[[], Sequence[Path]]
    """Files it has written, asked when it is done."""
    run: Callable[[], None]
    lacks: Callable[[], str | None] = lambda: None
    """Says what its outputs, though as they were written, do not hold that is needed now; None if nothing."""
    version: int = 1
    """Raised when the code makes other results from the same inputs."""
    fetched: Callable[[], Sequence[Path] | None] = lambda: ()
    """More files that it reads, looked for whenever they are compared, as a run may download them, or a unit write them
    that it can do without; None: they are not on this machine, and so cannot have changed."""
    is_read_checked: Callable[[Path], bool] = lambda path: False
    """Whether whoever reads an output compares it with a checksum that another output holds."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.stage) if self.model is None else f"{self.stage} of {self.model}"


@dataclass(frozen=True)
class State:
    """Whether a unit must run."""

    is_up_to_date: bool
    reason: str
    """Why it must run; "up to date" otherwise."""


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
        self._redone = _with_dependents(units, forced)
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
        changed = _difference(_comparable(record, unit), self._fingerprint(unit))
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
        for needed in _all_needs(unit):
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
                    f"first run: {_command(needed.stage)}"
                )

        for needed in _all_needs(unit):
            for path in self._damaged(needed):
                raise ArtefactError(
                    f"{path}: damaged (it is not what {needed.name} wrote); delete it and run: {_command(needed.stage)}"
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


def _with_dependents(units: Sequence[Unit], forced: frozenset[Stage]) -> frozenset[tuple[Stage, str | None]]:
    """Return the units of the forced stages and all that need one of them, directly or by way of others."""
    redone: set[tuple[Stage, str | None]] = set()
    for unit in units:
        if unit.stage in forced or any((needed.stage, needed.model) in redone for needed in unit.needs):
            redone.add((unit.stage, unit.model))
    return frozenset(redone)


class _Collector(logging.Handler):
    """Keeps the text of each warning once."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record's text unless it is there."""
        text = record.getMessage().strip()
        if text not in self.texts:
            self.texts.append(text)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list that gets every warning, logged or raised by `warnings`, until the end of the block."""
    collector = _Collector([])
    root = logging.getLogger()
    root.addHandler(collector)
    logging.captureWarnings(True)
    try:
        yield collector.texts
    finally:
        logging.captureWarnings(False)
        root.removeHandler(collector)


def _all_needs(unit: Unit) -> list[Unit]:
    """Return the units whose outputs a unit, or one it needs, reads; each once, those that come first first."""
    found: list[Unit] = []
    for needed in unit.needs:
        found += [each for each in (*_all_needs(needed), needed) if each not in found]
    return found


def _comparable(record: dict[str, Any], unit: Unit) -> dict[str, Any]:
    """Return the fingerprint in a record, without files that are not on this machine any more."""
    fingerprint: dict[str, Any] = record["fingerprint"]
    if unit.fetched() is not None or "inputs" not in fingerprint:
        return fingerprint
    gone = set(record.get("fetched", ()))
    return fingerprint | {"inputs": {name: it for name, it in fingerprint["inputs"].items() if name not in gone}}


def _difference(before: dict[str, Any], now: dict[str, dict[str, Any]]) -> str | None:
    """Return what changed between two fingerprints, in words; None if nothing did."""
    for part, entries in now.items():
        earlier = before.get(part, {})
        for key in {**earlier, **entries}:
            old, new = earlier.get(key), entries.get(key)
            if old != new:
                return f"{key} changed{_shown_change(old, new)}" if part == "config" else f"{key} changed"
    return None


def _shown_change(old: Any, new: Any) -> str:
    """Return a change of a configuration value in words; of a section only what differs.

    >>> _shown_change(100, 50), _shown_change({"k": 1, "lr": 2}, {"k": 1, "lr": 3})
    (' 100 -> 50', ': lr 2 -> 3')
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return ": " + ", ".join(f"{key} {old.get(key)} -> {new.get(key)}" for key in keys)
    return f" {old} -> {new}"


def _command(stage: Stage) -> str:
    if stage is Stage.INFERENCE:
        return "python src/run_inference.py --config FILE"
    if stage is Stage.PATCHING:
        return "python run_patching.py --config FILE"
    if stage is Stage.SAES:
        return "python run_circuit_analysis.py --config FILE --train-saes"
    if stage is Stage.DIRECTIONS:
        return "python run_directions.py --config FILE"
    return f"python run_circuit_analysis.py --config FILE --stages {stage}"


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found

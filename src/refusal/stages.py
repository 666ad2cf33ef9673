"""Units of work that resume: what is up to date, why something is not, and the record each unit leaves.

A unit is one stage for one model (or, for the report, for all). Its fingerprint covers the configuration keys it
depends on, its input files and the outputs of the units before it. When a unit is done it writes its record last:
outputs with checksums, time, memory, versions. A unit whose record fits is skipped; a killed one has no record and runs
again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from refusal.artefacts import ResultPaths, read_json, sha256_file, write_json
from refusal.config import Config, Stage
from refusal.errors import ArtefactError, InputError

log = logging.getLogger(__name__)

SCHEMA = "refusal-circuits/stage/1"
MANIFEST_SCHEMA = "refusal-circuits/manifest/1"
LARGE_FILE = 1 << 30
"""Files above this many bytes are fingerprinted by size and three samples."""
_SAMPLE = 16 << 20
PACKAGES = ("torch", "transformers", "safetensors", "numpy", "scipy", "scikit-learn", "networkx", "refusal-circuits")


@dataclass(frozen=True)
class Unit:
    """One stage for one model, or for all (`model` None)."""

    stage: Stage
    model: str | None
    keys: tuple[str, ...]
    """Dotted configuration keys its result depends on."""
    inputs: tuple[Path, ...]
    """Files from outside the result folder."""
    needs: tuple[Unit, ...]
    """Units whose outputs it reads."""
    outputs: Callable[[], Sequence[Path]]
    """Files it has written, asked when it is done."""
    run: Callable[[], None]
    version: int = 1
    """Raised when the code makes other results from the same inputs."""

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
    """Runs units in order, skipping what is up to date."""

    def __init__(self, config: Config, paths: ResultPaths, units: Sequence[Unit], forced: frozenset[Stage]) -> None:
        self.config = config
        self.paths = paths
        self.units = units
        self.forced = forced
        self._done: set[tuple[Stage, str | None]] = set()

    def state(self, unit: Unit) -> State:
        """Return whether a unit is up to date, and if not, why."""
        path = self.paths.stage_record(unit.stage, unit.model)
        if unit.stage in self.forced and (unit.stage, unit.model) not in self._done:
            return State(False, "forced")
        for needed in unit.needs:
            if not self.state(needed).is_up_to_date:
                return State(False, f"{needed.name} is not up to date")
        if not path.exists():
            return State(False, "not done yet")
        try:
            record = read_json(path, "")
        except ArtefactError:
            return State(False, "its record cannot be read")
        if record.get("schema") != SCHEMA or record.get("version") != unit.version:
            return State(False, "made by another version")
        changed = self._changed(unit, record)
        if changed is not None:
            return State(False, changed)
        missing = [
            name for name in record["outputs"] if not _is_as_recorded(self.paths.root / name, record["outputs"][name])
        ]
        return State(False, f"{missing[0]} is missing or changed") if missing else State(True, "up to date")

    def _changed(self, unit: Unit, record: dict[str, Any]) -> str | None:
        now = self._fingerprint(unit)
        for part, entries in now.items():
            before = record["fingerprint"].get(part, {})
            for key in {**before, **entries}:
                if before.get(key) != entries.get(key):
                    shown = f" {before.get(key)} -> {entries.get(key)}" if part == "config" else ""
                    return f"{key} changed{shown}"
        return None

    def _fingerprint(self, unit: Unit) -> dict[str, dict[str, Any]]:
        content = self.config.model_dump(mode="json")
        outputs = {}
        for needed in unit.needs:
            path = self.paths.stage_record(needed.stage, needed.model)
            record = read_json(path, "") if path.exists() else {}
            text = json.dumps(record.get("outputs", {}), sort_keys=True)
            outputs[needed.name] = hashlib.sha256(text.encode()).hexdigest()
        return {
            "config": {key: _lookup(content, key) for key in unit.keys},
            "inputs": {str(path): file_digest(path) for path in unit.inputs},
            "needs": outputs,
        }

    def run(self, stages: Sequence[Stage]) -> None:
        """Run the units of the asked stages that are not up to date.

        A model that fails does not keep the others from running; the first failure is raised at the end.

        Raises:
            InputError: A unit's input is wrong.
            ArtefactError: A unit needs another that is not among the asked stages and not up to date.
        """
        failed: dict[str | None, Exception] = {}
        for unit in self.units:
            if unit.stage not in stages:
                continue
            if unit.model in failed or (unit.model is None and failed):
                continue
            try:
                self._run(unit, stages)
            except (InputError, ArtefactError) as error:
                failed[unit.model] = error
                if len(self.config.models) > 1:
                    log.error("%s: %s", unit.name, error)
            self.write_manifest()
        if failed:
            raise next(iter(failed.values()))

    def _run(self, unit: Unit, stages: Sequence[Stage]) -> None:
        state = self.state(unit)
        if state.is_up_to_date:
            log.info("%s: up to date", unit.name)
            return
        for needed in unit.needs:
            found = self.state(needed)
            if not found.is_up_to_date:
                command = _command(needed.stage)
                raise ArtefactError(
                    f"{self.paths.root}: {unit.name} needs {needed.name}, which is not ready ({found.reason}); "
                    f"first run: {command}"
                )
        log.info("%s: running (%s)", unit.name, state.reason)
        self.paths.stage_record(unit.stage, unit.model).unlink(missing_ok=True)
        fingerprint = self._fingerprint(unit)
        started = time.time()
        unit.run()
        seconds = time.time() - started
        record = {
            "schema": SCHEMA,
            "version": unit.version,
            "stage": str(unit.stage),
            "model": unit.model,
            "fingerprint": fingerprint,
            "outputs": {_relative(path, self.paths.root): _signature(path) for path in unit.outputs()},
            "seconds": round(seconds, 3),
            "peak_memory_bytes": _peak_memory(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "versions": versions(),
        }
        write_json(self.paths.stage_record(unit.stage, unit.model), record)
        self._done.add((unit.stage, unit.model))
        log.info("%s: done in %.1f s", unit.name, seconds)

    def write_manifest(self) -> None:
        """Write `run_manifest.json` from the records of all units."""
        records = []
        for unit in self.units:
            path = self.paths.stage_record(unit.stage, unit.model)
            if path.exists():
                record = read_json(path, "")
                records.append({key: value for key, value in record.items() if key not in ("schema", "versions")})
        manifest = {
            "schema": MANIFEST_SCHEMA,
            "configuration": self.config.model_dump(mode="json"),
            "versions": versions(),
            "seeds": {"seed": self.config.seed, "sae": list(self.config.sae.seeds)},
            "stages": records,
        }
        write_json(self.paths.manifest, manifest)


def _command(stage: Stage) -> str:
    if stage is Stage.INFERENCE:
        return "python src/run_inference.py --config FILE"
    if stage is Stage.SAES:
        return "python run_circuit_analysis.py --config FILE --train-saes"
    return f"python run_circuit_analysis.py --config FILE --stages {stage}"


def _lookup(content: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        content = content[part]
    return content


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _signature(path: Path) -> dict[str, Any]:
    return {"sha256": file_digest(path), "size": path.stat().st_size}


def _is_as_recorded(path: Path, signature: dict[str, Any]) -> bool:
    """Return whether a file is there with its recorded size, and for all but large files with its checksum."""
    if not path.exists() or path.stat().st_size != signature["size"]:
        return False
    return path.stat().st_size > LARGE_FILE or file_digest(path) == signature["sha256"]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; of one above 1 GiB, that of its size and its first, middle and last 16 MiB.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return _digest(path, status.st_size, status.st_mtime_ns)


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    if size <= LARGE_FILE:
        return sha256_file(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as handle:
        for offset in (0, size // 2, size - _SAMPLE):
            handle.seek(offset)
            digest.update(handle.read(_SAMPLE))
    return f"sampled:{digest.hexdigest()}"


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


def _peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def result_folder(root: Path) -> Iterator[ResultPaths]:
    """Yield the paths of a result folder that is writable and used by no other run.

    Raises:
        InputError: The folder cannot be written, or another run is using it.
    """
    lock = root / ".lock"
    mine = f"{socket.gethostname()} {os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _clear_stale(lock)
        with lock.open("x", encoding="utf-8") as handle:
            handle.write(mine)
    except FileExistsError as error:
        holder = lock.read_text(encoding="utf-8") if lock.is_file() else "a file of that name"
        raise InputError(
            f"result_dir: {root} is in use by another run ({holder}); wait for it, choose another --result-dir, "
            f"or delete {lock} if that run is gone"
        ) from error
    except OSError as error:
        raise InputError(
            f"result_dir: {root} cannot be written ({error.strerror}); choose another --result-dir"
        ) from error
    try:
        yield ResultPaths(root)
    finally:
        lock.unlink(missing_ok=True)


def _clear_stale(lock: Path) -> None:
    """Remove the lock of a run on this machine that is gone."""
    if not lock.is_file():
        return
    host, _, pid = lock.read_text(encoding="utf-8").partition(" ")
    if host == socket.gethostname() and pid.isdigit() and not _is_alive(int(pid)):
        lock.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

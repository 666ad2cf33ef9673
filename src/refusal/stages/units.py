"""Units of work: one stage for one model, what it reads and writes, which units it needs, and its command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from refusal.config import Stage


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


def with_dependents(units: Sequence[Unit], forced: frozenset[Stage]) -> frozenset[tuple[Stage, str | None]]:
    """Return the units of the forced stages and all that need one of them, directly or by way of others."""
    redone: set[tuple[Stage, str | None]] = set()
    for unit in units:
        if unit.stage in forced or any((needed.stage, needed.model) in redone for needed in unit.needs):
            redone.add((unit.stage, unit.model))
    return frozenset(redone)


def all_needs(unit: Unit) -> list[Unit]:
    """Return the units whose outputs a unit, or one it needs, reads; each once, those that come first first."""
    found: list[Unit] = []
    for needed in unit.needs:
        found += [each for each in (*all_needs(needed), needed) if each not in found]
    return found


def command_of(stage: Stage) -> str:
    """Return the command that runs a stage."""
    if stage is Stage.INFERENCE:
        return "python src/run_inference.py --config FILE"
    if stage is Stage.PATCHING:
        return "python run_patching.py --config FILE"
    if stage is Stage.SAES:
        return "python run_circuit_analysis.py --config FILE --train-saes"
    if stage is Stage.DIRECTIONS:
        return "python run_directions.py --config FILE"
    return f"python run_circuit_analysis.py --config FILE --stages {stage}"

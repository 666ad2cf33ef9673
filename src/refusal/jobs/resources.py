"""What jobs ask of a cluster: every key of a resources file, its default and range, and what one job gets.

The file is YAML and is checked like a configuration: unknown keys and values are errors with line and nearest name.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from refusal.config.messages import Places, describe
from refusal.config.types import Int, Section, Text
from refusal.errors import InputError
from refusal.untrusted.yaml_file import read_yaml

EXAMPLE = "jobs/resources.yaml"
_MEMORY = re.compile(r"(\d+)\s*(m|g|t)i?b?", re.IGNORECASE)
_MIB = {"m": 1, "g": 1024, "t": 1024 * 1024}
_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")
_WORD = re.compile(r"[A-Za-z0-9_.@+:/=-]+")


class JobName(StrEnum):
    """The jobs of a study, in the order in which they run."""

    INFERENCE = "inference"
    """The prompts of all models; an array where there are shards."""
    MERGE = "merge"
    """Index, labels and rates from the shards of inference."""
    SAES = "saes"
    """Sparse autoencoders; an array where there are shards."""
    CIRCUITS = "circuits"
    """What SAE shards leave to finish, circuits and comparison; whatever stages have no job of their own."""
    REPORT = "report"
    """Refusal metrics, figures, reports."""


def _memory(value: Any) -> int:
    """Return mebibytes.

    Raises:
        ValueError: The value is no amount of memory.
    """
    found = _MEMORY.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or not int(found[1]):
        raise ValueError("allowed is a whole number with its unit, e.g. 64GB or 512MB")
    return int(found[1]) * _MIB[found[2].lower()]


def _walltime(value: Any) -> int:
    """Return seconds.

    Raises:
        ValueError: The value is no time.
    """
    found = _WALLTIME.fullmatch(value.strip()) if isinstance(value, str) else None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not total:
        raise ValueError("allowed is hours:minutes:seconds, e.g. 08:00:00 or 2-00:00:00 for two days")
    return total


def _word(value: Any) -> Any:
    """Refuse text that a scheduler's directive could not hold.

    Raises:
        ValueError: It has spaces, quotes or the like.
    """
    if isinstance(value, str) and not _WORD.fullmatch(value):
        raise ValueError("allowed are letters, digits and _ . @ + : / = -")
    return value


def _one_line(value: Any) -> Any:
    """Refuse text of several lines.

    Raises:
        ValueError: It has a line break.
    """
    if isinstance(value, str) and len(value.splitlines()) != 1:
        raise ValueError("allowed is one line; write several as several entries")
    return value


def _option(value: Any) -> Any:
    """Refuse what is no option of one line.

    Raises:
        ValueError: It does not begin with a dash, or has a line break.
    """
    if isinstance(value, str) and not value.startswith("-"):
        raise ValueError("allowed is an option as on the command line, beginning with -")
    return _one_line(value)


Memory = Annotated[int, BeforeValidator(_memory, json_schema_input_type=str)]
"""Mebibytes; written as 64GB."""
Walltime = Annotated[int, BeforeValidator(_walltime, json_schema_input_type=str)]
"""Seconds; written as 08:00:00."""
Word = Annotated[Text, BeforeValidator(_word)]
Count = Annotated[Int, Field(ge=0, le=1024)]
Positive = Annotated[Int, Field(ge=1, le=4096)]


class Amounts(Section):
    """What a job gets; null: what the file says for all jobs."""

    gpus: Count | None = Field(
        default=None,
        description="GPUs of a job; as many processes share inference and SAEs, unless device_map is set.",
    )
    cpus: Positive | None = Field(default=None, description="CPU cores of a job.")
    memory: Memory | None = Field(default=None, description="Memory of a job, e.g. 64GB.")
    walltime: Walltime | None = Field(default=None, description="Longest time of a job, hours:minutes:seconds.")
    queue: Word | None = Field(default=None, description="PBS: queue.")
    partition: Word | None = Field(default=None, description="Slurm: partition.")
    account: Word | None = Field(default=None, description="Account or project that is charged.")
    gpu_type: Word | None = Field(default=None, description="Slurm: kind of GPU, as in --gres=gpu:KIND:1.")
    chunk: Word | None = Field(default=None, description="PBS: more of a node, as in select=1:...:CHUNK.")
    options: tuple[Annotated[Text, BeforeValidator(_option)], ...] | None = Field(
        default=None, description="Further options of sbatch or qsub."
    )


class ShardedAmounts(Amounts):
    """What a job gets that can be an array."""

    shards: Annotated[Int, Field(ge=1, le=1000)] = Field(default=1, description="Tasks that share the work; 1: none.")


class JobAmounts(Section):
    """What differs from job to job."""

    inference: ShardedAmounts = Field(default_factory=ShardedAmounts)
    merge: Amounts = Field(default_factory=Amounts)
    saes: ShardedAmounts = Field(default_factory=ShardedAmounts)
    circuits: Amounts = Field(default_factory=Amounts)
    report: Amounts = Field(default_factory=Amounts)


class Resources(Amounts):
    """A resources file: what all jobs get, and under `jobs` what single ones do."""

    gpus: Count = Field(
        default=1,
        description="GPUs of a job; as many processes share inference and SAEs, unless device_map is set.",
    )
    cpus: Positive = Field(default=8, description="CPU cores of a job.")
    memory: Memory = Field(default=64 * 1024, description="Memory of a job, e.g. 64GB.")
    walltime: Walltime = Field(default=8 * 3600, description="Longest time of a job, hours:minutes:seconds.")
    grace: Annotated[Int, Field(ge=1, le=3600)] = Field(
        default=120, description="Seconds before the walltime at which a job is told to stop."
    )
    requeue: Annotated[Int, Field(ge=0, le=100)] = Field(
        default=0, description="Slurm: how often a job that was stopped by its walltime goes on by itself."
    )
    pbs_dialect: Literal["openpbs", "torque"] = Field(
        default="openpbs", description="Which PBS: openpbs is PBS Pro too."
    )
    python: Text | None = Field(default=None, description="The environment's Python; null: the one that submits.")
    offline: bool = Field(default=True, description="Whether jobs do without network (HF_HUB_OFFLINE).")
    prologue: tuple[Annotated[Text, BeforeValidator(_one_line)], ...] = Field(
        default=(), description="Shell lines that each job begins with, e.g. module load cuda."
    )
    jobs: JobAmounts = Field(default_factory=JobAmounts)

    def of(self, name: JobName) -> Request:
        """Return what one job gets: what is said of it, else what a job of its kind does with, else what all get."""
        of_all = {key: getattr(self, key) for key in Amounts.model_fields}
        said: Amounts = getattr(self.jobs, name)
        own = {key: value for key in Amounts.model_fields if (value := getattr(said, key)) is not None}
        n_shards = said.shards if isinstance(said, ShardedAmounts) else 1
        return Request(**{**of_all, **_USUAL.get(name, {}), **own}, shards=n_shards)


_USUAL: dict[JobName, dict[str, Any]] = {
    JobName.MERGE: {"walltime": 3600},
    JobName.REPORT: {"gpus": 0, "gpu_type": None, "cpus": 2, "memory": 16 * 1024, "walltime": 3600},
}
"""What jobs of a kind do with unless the file says something of them."""


class Request(Section):
    """What one job asks for, with nothing left open."""

    gpus: int
    cpus: int
    memory: int
    """Mebibytes."""
    walltime: int
    """Seconds."""
    queue: str | None
    partition: str | None
    account: str | None
    gpu_type: str | None
    chunk: str | None
    options: tuple[str, ...] | None
    shards: int
    """Tasks of the array; 1: it is none."""


def load(path: Path | None) -> Resources:
    """Return what a resources file says; the defaults without one.

    Raises:
        InputError: Anything in the file is wrong; all findings are in the one message.
    """
    if path is None:
        return Resources()
    file = read_yaml(path, flag="--resources", example=EXAMPLE)
    findings = list(file.findings)
    try:
        resources = Resources.model_validate(file.content)
    except ValidationError as error:
        findings += describe(error, Resources, Places(path, file.lines, {}))
    if findings:
        raise InputError("\n".join(finding.text for finding in sorted(findings, key=lambda finding: finding.line)))
    late = [name for name in JobName if resources.of(name).walltime <= resources.grace]
    if late:
        raise InputError(
            f"{path}: grace: found {resources.grace} s, which is the whole walltime of {', '.join(late)}; allowed is "
            "less than the walltime; give more time, or less grace"
        )
    return resources

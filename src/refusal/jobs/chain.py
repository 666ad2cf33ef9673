"""Which jobs a configuration needs, in which order, and what each runs.

A chain is a line: each job needs the one before it, because each reads what that one wrote. What a job does is a shell
body of the project's folder `jobs/`; here is only what it is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal.config import Config, Stage
from refusal.errors import InputError
from refusal.jobs.resources import JobName, Request, Resources

_JOBS_OF_THEIR_OWN = (Stage.INFERENCE, Stage.SAES, Stage.REPORT)
"""All other stages are one job together."""
PREFIX = "rc-"
"""What the names of our jobs begin with, in the scheduler's lists."""


@dataclass(frozen=True)
class Place:
    """Where things are; all paths are absolute."""

    root: Path
    """The project's folder."""
    workdir: Path
    """The folder that the paths of a configuration are relative to."""
    results: Path
    """The result folder."""
    config: Path
    """The configuration."""
    python: str
    """The environment's Python."""

    @property
    def logs(self) -> Path:
        """Where jobs write what they say."""
        return self.results / "logs"

    def script(self, name: JobName) -> Path:
        """Return where the script of a job is written."""
        return self.results / "jobs" / f"{name}.sh"


@dataclass(frozen=True)
class Job:
    """One job, or one array of jobs."""

    name: JobName
    request: Request
    arguments: tuple[str, ...]
    """What its body passes on to the project's command."""
    needs: JobName | None
    """The job that must have gone well before."""
    processes: int
    """Processes of each task, which share its work: one for each GPU, where it can be shared."""

    @property
    def title(self) -> str:
        """What the scheduler's lists call it."""
        return f"{PREFIX}{self.name}"

    @property
    def is_array(self) -> bool:
        """Whether it has several tasks."""
        return self.request.shards > 1

    @property
    def tasks(self) -> range:
        """The numbers of its tasks, from 1."""
        return range(1, self.request.shards + 1)


def chain(config: Config, resources: Resources, place: Place, flags: tuple[str, ...] = ()) -> list[Job]:
    """Return the jobs of a configuration, in order.

    Args:
        config: The configuration.
        resources: What jobs ask for.
        place: Where things are.
        flags: Options that the configuration was read with, e.g. `--set seed=1`.

    Raises:
        InputError: It names no stage that a job could run.
    """
    general = ("--config", str(place.config), *flags)
    request = {name: resources.of(name) for name in JobName}
    is_shared = {name: request[name].shards > 1 for name in (JobName.INFERENCE, JobName.SAES)}
    trains = Stage.SAES in config.stages and config.train_saes
    later = [stage for stage in Stage if stage in config.stages and stage not in _JOBS_OF_THEIR_OWN]
    finishing = [Stage.SAES] if trains and is_shared[JobName.SAES] else []
    wanted: list[tuple[JobName, tuple[str, ...]]] = []
    if Stage.INFERENCE in config.stages:
        wanted.append((JobName.INFERENCE, ()))
        wanted += [(JobName.MERGE, ("--merge",))] if is_shared[JobName.INFERENCE] else []
    if trains:
        wanted.append((JobName.SAES, ("--stages", Stage.SAES)))
    if finishing or later:
        wanted.append((JobName.CIRCUITS, ("--stages", ",".join((*finishing, *later)))))
    if Stage.REPORT in config.stages:
        wanted.append((JobName.REPORT, ("--stages", Stage.REPORT)))
    if not wanted:
        raise InputError(
            f"{place.config}: stages: found {', '.join(config.stages)} with train_saes: false, which is nothing to do; "
            "name another stage, or set train_saes: true"
        )
    before = (None, *(name for name, _ in wanted))
    return [
        Job(name, request[name], (*general, *own), needs, _processes(config, name, request[name]))
        for (name, own), needs in zip(wanted, before, strict=False)
    ]


def _processes(config: Config, name: JobName, request: Request) -> int:
    """Return as many as GPUs for work that is shared out, unless the model itself is spread over them."""
    is_shared = name in (JobName.INFERENCE, JobName.SAES) and config.device_map is None
    return max(1, request.gpus) if is_shared else 1

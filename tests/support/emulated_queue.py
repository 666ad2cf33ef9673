"""Runs jobs as local processes, in order, with arrays, dependencies, holds, requeueing and walltimes.

What a scheduler's commands accept and what a job sees is said by `emulated_pbs` and `emulated_slurm`; here is only what
both have in common. The commands are small programs that leave records in a folder; nothing runs until a test calls
`finish`, which runs everything that can run, one task after the other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

COMMAND = """\
#!{python}
import sys
sys.path.insert(0, {support!r})
from {module} import {function}
sys.exit({function}({folder!r}, sys.argv[1:]))
"""


class Refused(Exception):
    """A command is refused, with the exit status that the scheduler gives."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Stop:
    """A signal to the processes of a job, as at its walltime."""

    name: str
    """The job's name."""
    signal: str
    """TERM or USR1."""
    when: Callable[[], bool]
    """Asked again and again; the signal goes out once when it holds."""


@dataclass
class Job:
    """A job as its record holds it."""

    number: int
    name: str
    script: str
    """The copy in the spool."""
    workdir: str
    """Where it was handed in."""
    tasks: list[int] | None
    """Of an array."""
    needs: int | None
    """The job that must have gone well."""
    is_held: bool = False
    goes_when_needs_fail: bool = True
    """Whether it is taken out then; else it waits for ever."""
    walltime: int | None = None
    """Seconds."""
    shell: str | None = None
    """What reads the script; None: what its first line names."""
    output: str = ""
    state: str = "PENDING"
    statuses: dict[str, int] = field(default_factory=dict)
    """Exit status by task; "" stands for the only one."""
    restarts: int = 0
    is_requeued: bool = False


class Queue:
    """The records of all jobs, and the processes that run them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.statuses: dict[str, int] = {}
        """Exit status of each job's last task, once it is finished."""
        self._past: set[int] = set()
        self._stop: Stop | None = None

    def install(self, module: str, commands: dict[str, str]) -> None:
        """Make the folders and the commands: name -> function of a module of tests/support."""
        for name in ("jobs", "spool", "bin", "home"):
            (self.folder / name).mkdir(parents=True)
        for name, function in commands.items():
            path = self.folder / "bin" / name
            path.write_text(
                COMMAND.format(
                    python=sys.executable,
                    support=str(Path(__file__).parent),
                    module=module,
                    function=function,
                    folder=str(self.folder),
                )
            )
            path.chmod(0o755)

    # Records ---------------------------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """Return all jobs, in the order in which they were handed in."""
        found = [Job(**json.loads(path.read_text())) for path in (self.folder / "jobs").glob("*.json")]
        return sorted(found, key=lambda job: job.number)

    def job(self, number: int) -> Job | None:
        """Return a job by its number."""
        return next((job for job in self.jobs() if job.number == number), None)

    def save(self, job: Job) -> None:
        """Write a job's record."""
        (self.folder / "jobs" / f"{job.number}.json").write_text(json.dumps(asdict(job)))

    def add(self, script: str, **parts) -> Job:
        """Copy a script into the spool and record its job."""
        number = len(self.jobs()) + 1
        copy = self.folder / "spool" / f"{number}.SC"
        copy.write_text(Path(script).read_text())
        copy.chmod(0o755)
        job = Job(number=number, script=str(copy), workdir=os.getcwd(), **parts)
        self.save(job)
        return job

    # Running ---------------------------------------------------------------------------------------------------------

    def finish(self, stop: Stop | None = None) -> dict[str, list[str]]:
        """Run what can run and return the states of each job's tasks, by its name.

        Jobs that had ended when this was called the last time are left out.
        """
        self._stop = stop
        while (job := self._next()) is not None:
            self._run(job)
        now = [job for job in self.jobs() if job.number not in self._past]
        self._past |= {job.number for job in now if job.state != "PENDING"}
        self.statuses = {job.name: list(job.statuses.values())[-1] for job in now if job.statuses}
        return {job.name: self._states(job) for job in now}

    def _states(self, job: Job) -> list[str]:
        if not job.statuses:
            return [job.state]
        return ["FAILED" if status else "COMPLETED" for status in job.statuses.values()]

    def _next(self) -> Job | None:
        """Return the next job that can run; those that never can are taken out on the way."""
        for job in self.jobs():
            if job.state != "PENDING" or job.is_held:
                continue
            needed = None if job.needs is None else self.job(job.needs)
            if needed is None or self._went_well(needed):
                return job
            if needed.state not in ("PENDING", "RUNNING") and job.goes_when_needs_fail:
                job.state = "CANCELLED"
                self.save(job)
        return None

    def _went_well(self, job: Job) -> bool:
        return job.state == "ENDED" and not any(job.statuses.values())

    def _run(self, job: Job) -> None:
        job.state = "RUNNING"
        self.save(job)
        for task in job.tasks or [None]:
            status = self._process(job, task)
            job = self.job(job.number)
            if job.is_requeued:
                job.is_requeued, job.state = False, "PENDING"
                job.restarts += 1
                self.save(job)
                return
            job.statuses["" if task is None else str(task)] = status
            self.save(job)
        job.state = "ENDED"
        self.save(job)

    def _process(self, job: Job, task: int | None) -> int:
        """Run one task, send what is to be sent, and return its exit status as a shell gives it."""
        output = self.output_path(job, task)
        command = [job.script] if job.shell is None else [job.shell, job.script]
        began = time.monotonic()
        with output.open("ab") as handle:
            process = subprocess.Popen(
                command,
                cwd=self.cwd(job),
                env=self.environment_of(job, task),
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            while process.poll() is None:
                if job.walltime is not None and time.monotonic() - began > job.walltime:
                    self.send(process.pid, "TERM")
                    job.walltime = None
                if self._stop is not None and self._stop.name == job.name and self._stop.when():
                    self.send(process.pid, self._stop.signal)
                    self._stop = None
                time.sleep(0.01)
        return 128 - process.returncode if process.returncode < 0 else process.returncode

    def send(self, pid: int, name: str) -> None:
        """Send a signal to all processes of a job."""
        os.killpg(pid, getattr(signal, f"SIG{name}"))

    def output_path(self, job: Job, task: int | None) -> Path:
        """Return where a task's output goes."""
        raise NotImplementedError

    def cwd(self, job: Job) -> str:
        """Return where a job begins."""
        raise NotImplementedError

    def environment_of(self, job: Job, task: int | None) -> dict[str, str]:
        """Return the variables that a task sees."""
        raise NotImplementedError


def answering(command: Callable[[Path, list[str]], str], folder: str, arguments: list[str]) -> int:
    """Run a command of a scheduler and return its exit status."""
    try:
        sys.stdout.write(command(Path(folder), arguments))
    except Refused as refusal:
        sys.stderr.write(f"{refusal}\n")
        return refusal.status
    return 0

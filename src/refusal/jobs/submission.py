"""Hand a chain of jobs in to a scheduler.

1. the scripts of all jobs are written into the result folder;
2. each is handed in to run after the one before it has gone well; where one is refused, those before it are taken back;
3. the first, which was held until then, is released.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from shlex import join, quote

from refusal.artefacts import atomic_write
from refusal.errors import InputError
from refusal.jobs.chain import Job, Place
from refusal.jobs.dialects import Dialect, Needed
from refusal.jobs.resources import JobName, Resources
from refusal.jobs.script import script

PATIENCE = 120
"""Seconds that a scheduler's command may take."""


@dataclass(frozen=True)
class Submission:
    """A chain, and how it is handed in."""

    jobs: Sequence[Job]
    resources: Resources
    place: Place
    dialect: Dialect

    def described(self) -> str:
        """Return all scripts and commands, for a dry run; nothing is written."""
        lines = []
        for job in self.jobs:
            lines += [f"# ---- {self.place.script(job.name)}", self._script(job)]
        unknown = {job.name: f"ID_OF_{job.name.upper()}" for job in self.jobs}
        commands = [self._command(job, unknown) for job in self.jobs]
        release = self.dialect.release(unknown[self.jobs[0].name])
        lines += [
            "# ---- commands",
            f"mkdir -p {quote(str(self.place.logs))}",
            f"cd {quote(str(self.place.logs))}",
            *map(join, commands),
            *([join(release)] if release is not None else []),
        ]
        return "\n".join(lines)

    def _script(self, job: Job) -> str:
        return script(job, self.resources, self.place, self.dialect)

    def _command(self, job: Job, ids: dict[JobName, str]) -> list[str]:
        before = next((each for each in self.jobs if each.name == job.needs), None)
        needed = None if before is None else Needed(ids[before.name], before.is_array)
        return self.dialect.submit(str(self.place.script(job.name)), job, needed)

    def write_scripts(self) -> None:
        """Write the scripts, and make the folder of the logs.

        Raises:
            InputError: The result folder cannot be written.
        """
        try:
            self.place.logs.mkdir(parents=True, exist_ok=True)
            for job in self.jobs:
                with atomic_write(self.place.script(job.name)) as beside:
                    beside.write_text(self._script(job), encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"result_dir: {self.place.results} cannot be written ({error.strerror}); choose another --result-dir"
            ) from error

    def hand_in(self) -> dict[JobName, str]:
        """Hand all jobs in and return their ids.

        Raises:
            InputError: The scheduler is not there, or refuses a job; none of the chain is left in it.
        """
        if shutil.which(self.dialect.submit_program) is None:
            raise InputError(
                f"--scheduler: {self.dialect.submit_program} is not on this machine; submit from a login node of a "
                f"{self.dialect.name} cluster (load its module first), or run here with --scheduler local"
            )
        self.write_scripts()
        ids: dict[JobName, str] = {}
        try:
            for job in self.jobs:
                ids[job.name] = self._hand_in(job, ids)
            release = self.dialect.release(ids[self.jobs[0].name])
            if release is not None:
                self._run(release)
        except BaseException:
            self._take_back(list(ids.values()))
            raise
        return ids

    def _hand_in(self, job: Job, ids: dict[JobName, str]) -> str:
        command = self._command(job, ids)
        output = self._run(command)
        job_id = self.dialect.job_id(output)
        if not job_id:
            raise InputError(
                f"{join(command)}: found no job id in what it said ({output.strip()!r}); nothing of this study is left "
                "in the queue; see whether something prints in your shell's start-up files"
            )
        return job_id

    def _run(self, command: Sequence[str]) -> str:
        """Run a scheduler's command in the folder of the logs and return what it said."""
        try:
            done = subprocess.run(
                command, cwd=self.place.logs, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"{join(command)}: {error}; see whether the scheduler is up, then submit again") from error
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())
            raise InputError(
                f"{join(command)}: refused with status {done.returncode} ({said}); nothing of this study is left in "
                "the queue; correct the resources file"
            )
        return done.stdout

    def _take_back(self, ids: Sequence[str]) -> None:
        """Cancel jobs, the last first, so that none begins because of another's end."""
        for job_id in reversed(ids):
            with suppress(InputError):
                self._run([self.dialect.cancel_program, job_id])

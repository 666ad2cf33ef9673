"""Run a chain of jobs on this machine, one task after the other, each with a log; the first that fails ends it."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

from refusal.jobs.chain import Job
from refusal.jobs.submission import Submission

log = logging.getLogger(__name__)

TAIL = 5
"""Lines of a log that are shown when its task has failed."""


def run(submission: Submission) -> int:
    """Run all tasks and return the exit status of the last that ran.

    Raises:
        InputError: The result folder cannot be written.
    """
    submission.write_scripts()
    for job in submission.jobs:
        for task in job.tasks:
            status = _run(submission, job, task)
            if status:
                return status
    return 0


def _run(submission: Submission, job: Job, task: int) -> int:
    """Run one task and return its exit status."""
    place = submission.place
    name = f"{job.name} {task} of {len(job.tasks)}" if job.is_array else str(job.name)
    path = place.logs / (f"{job.title}_{task}.out" if job.is_array else f"{job.title}.out")
    log.info("%s: running, log in %s", name, path)
    command = submission.dialect.submit(str(place.script(job.name)), job, None)
    with path.open("ab") as output:
        status = _wait(command, {**os.environ, "REFUSAL_SHARD": str(task)}, output.fileno())
    if status:
        log.error("%s: ended with status %d; the last lines of %s:\n%s", name, status, path, _tail(path))
    else:
        log.info("%s: done", name)
    return status


def _wait(command: list[str], environment: dict[str, str], output: int) -> int:
    """Run a command and return its exit status; told to stop, tell the command so, and wait for it.

    A command that a signal ended gives 128 and the signal's number, as in a shell.
    """
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    )
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    return 128 - status if status < 0 else status


def _tail(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-TAIL:])

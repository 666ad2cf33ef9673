"""`sbatch`, `scancel`, `scontrol release` and `scontrol requeue` as Slurm 22.05 answered, with jobs as local processes.

For machines on which a real Slurm (`mini_slurm`) cannot be started. Long options only, which is how ours are written. A
job inherits the variables of the shell that handed it in and begins in its folder.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from pathlib import Path

from emulated_queue import Job, Queue, Refused, answering

PARTITIONS = ("main",)
OPTIONS = {
    *("job-name", "nodes", "ntasks", "cpus-per-task", "mem", "gres", "time", "array", "output", "open-mode", "requeue"),
    *("signal", "partition", "account", "dependency", "kill-on-invalid-dep", "parsable", "constraint", "hold"),
}


class EmulatedSlurm(Queue):
    """The controller."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}

    def start(self) -> None:
        """Make the commands."""
        self.install("emulated_slurm", {"sbatch": "sbatch", "scancel": "scancel", "scontrol": "scontrol"})

    def stop(self) -> None:
        """Nothing runs on."""

    def send(self, pid: int, name: str) -> None:
        """Send a signal to the batch process alone, as --signal=B: asks."""
        os.kill(pid, signal.Signals[f"SIG{name}"])

    def output_path(self, job: Job, task: int | None) -> Path:
        """Return the file of --output, in which %x is the name, %A and %j the number, %a the task."""
        parts = {"%x": job.name, "%A": str(job.number), "%j": str(job.number), "%a": str(task)}
        return Path(job.workdir) / re.sub("%[xAja]", lambda found: parts[found[0]], job.output)

    def cwd(self, job: Job) -> str:
        """Return the folder that the job was handed in from."""
        return job.workdir

    def environment_of(self, job: Job, task: int | None) -> dict[str, str]:
        """Return the variables of the shell that handed the job in, and what Slurm sets."""
        found = {**os.environ, **self.environment, "SLURM_JOB_ID": str(job.number), "SLURM_SUBMIT_DIR": job.workdir}
        if task is not None:
            found |= {"SLURM_ARRAY_JOB_ID": str(job.number), "SLURM_ARRAY_TASK_ID": str(task)}
        return found | ({"SLURM_RESTART_COUNT": str(job.restarts)} if job.restarts else {})


def sbatch(folder: str, arguments: list[str]) -> int:
    """Hand a job in; say its number."""
    return answering(_sbatch, folder, arguments)


def scancel(folder: str, arguments: list[str]) -> int:
    """Cancel jobs."""
    return answering(_scancel, folder, arguments)


def scontrol(folder: str, arguments: list[str]) -> int:
    """Hand a running job in again, or release a held one."""
    return answering(_scontrol, folder, arguments)


def _sbatch(folder: Path, arguments: list[str]) -> str:
    given, script = _options(arguments)
    if script is None:
        raise Refused(1, "sbatch: error: these tests hand in scripts")
    asked = {**_directives(Path(script)), **given}
    if asked.get("partition", PARTITIONS[0]) not in PARTITIONS:
        raise Refused(1, "sbatch: error: invalid partition specified")
    queue = EmulatedSlurm(folder)
    job = queue.add(
        script,
        name=asked.get("job-name", Path(script).name),
        tasks=_tasks(asked["array"]) if "array" in asked else None,
        needs=_needed(queue, asked["dependency"]) if "dependency" in asked else None,
        is_held="hold" in asked,
        goes_when_needs_fail=asked.get("kill-on-invalid-dep") == "yes",
        output=asked.get("output", "slurm-%A_%a.out" if "array" in asked else "slurm-%j.out"),
    )
    return f"{job.number}\n" if "parsable" in asked else f"Submitted batch job {job.number}\n"


def _options(words: list[str]) -> tuple[dict[str, str], str | None]:
    found = {}
    for at, word in enumerate(words):
        if not word.startswith("--"):
            return found, words[at]
        key, _, value = word[2:].partition("=")
        if key not in OPTIONS:
            raise Refused(255, f"sbatch: unrecognized option '{word}'")
        found[key] = value
    return found, None


def _directives(script: Path) -> dict[str, str]:
    """Return the options in `#SBATCH` lines up to the first command."""
    found = {}
    for line in script.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith("#SBATCH"):
            found |= _options(shlex.split(line[7:]))[0]
    return found


def _tasks(text: str) -> list[int]:
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if found is None:
        raise Refused(1, "sbatch: error: Invalid job array specification")
    return list(range(int(found[1]), int(found[2]) + 1))


def _needed(queue: EmulatedSlurm, text: str) -> int:
    number = text.removeprefix("afterok:")
    if not number.isdecimal() or queue.job(int(number)) is None:
        raise Refused(1, "sbatch: error: Batch job submission failed: Job dependency problem")
    return int(number)


def _scancel(folder: Path, arguments: list[str]) -> str:
    queue = EmulatedSlurm(folder)
    for number in arguments:
        job = queue.job(int(number))
        job.state = "CANCELLED"
        queue.save(job)
    return ""


def _scontrol(folder: Path, arguments: list[str]) -> str:
    queue = EmulatedSlurm(folder)
    command, number = arguments
    if command not in ("requeue", "release"):
        raise Refused(1, f"invalid keyword: {command}")
    job = queue.job(int(number))
    job.is_held, job.is_requeued = False, command == "requeue"
    queue.save(job)
    return ""

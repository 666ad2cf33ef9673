"""What schedulers call things: directives of a script, and the commands that hand in, cancel and release jobs.

Slurm is one dialect; PBS has two, because OpenPBS (and PBS Pro) and Torque disagree about GPUs, arrays and dependencies
on arrays. A dialect knows no paths: jobs are handed in from the folder of the logs, which is where all of them write
what a job says, so that no path with a space or a quote ever stands in a directive.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from refusal.jobs.chain import Job
from refusal.jobs.resources import Request, Resources


class Dialect(Protocol):
    """What differs between schedulers."""

    name: str
    """What messages call it."""
    submit_program: str
    """The command that hands a job in."""
    cancel_program: str
    """The command that takes one back."""
    queue_command: str
    """The command that shows one's jobs."""
    index_variables: tuple[str, ...]
    """Variables that may hold the number of a task."""

    def directives(self, job: Job, resources: Resources) -> list[str]:
        """Return the lines of a script that say what the job asks for."""

    def lines(self, job: Job, resources: Resources) -> list[str]:
        """Return shell lines of a script that only this scheduler needs."""

    def submit(self, script: str, job: Job, needed: Needed | None) -> list[str]:
        """Return the command that hands a script in, to run once the job it needs has gone well."""

    def job_id(self, output: str) -> str:
        """Return the id in what the command said; empty where there is none."""

    def release(self, job_id: str) -> list[str] | None:
        """Return the command that lets the first job begin once all are handed in; None where none waits."""


@dataclass(frozen=True)
class Needed:
    """The job that another one waits for."""

    job_id: str
    is_array: bool


def clock(seconds: int) -> str:
    """Return a time as schedulers write it.

    >>> clock(8 * 3600), clock(100 * 3600 + 61)
    ('08:00:00', '100:01:01')
    """
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class Slurm:
    """Slurm, from 20 on.

    The first job is held until all are handed in: else it may begin, and take a GPU, before a later one is refused.
    """

    name = "Slurm"
    submit_program = "sbatch"
    cancel_program = "scancel"
    queue_command = "squeue --me"
    index_variables: tuple[str, ...] = ("SLURM_ARRAY_TASK_ID",)

    def directives(self, job: Job, resources: Resources) -> list[str]:
        """Return `#SBATCH` lines; the signal before the walltime goes to the batch process, which Python has become."""
        request = job.request
        kind = f"{request.gpu_type}:" if request.gpu_type else ""
        signal = "USR1" if resources.requeue else "TERM"
        asked = [
            f"--job-name={job.title}",
            "--nodes=1",
            "--ntasks=1",
            f"--cpus-per-task={request.cpus}",
            f"--mem={request.memory}M",
            *([f"--gres=gpu:{kind}{request.gpus}"] if request.gpus else []),
            f"--time={clock(request.walltime)}",
            *([f"--array=1-{request.shards}"] if job.is_array else []),
            f"--output={job.title}-{'%A_%a' if job.is_array else '%j'}.out",
            "--open-mode=append",
            "--requeue",
            f"--signal=B:{signal}@{resources.grace}",
            *([f"--partition={request.partition}"] if request.partition else []),
            *([f"--account={request.account}"] if request.account else []),
            *(request.options or ()),
        ]
        return [f"#SBATCH {each}" for each in asked]

    def lines(self, job: Job, resources: Resources) -> list[str]:
        """Return none: Slurm warns, writes and numbers as asked."""
        return []

    def submit(self, script: str, job: Job, needed: Needed | None) -> list[str]:
        """Return the `sbatch` command; a job whose condition can never hold is taken out, not left to wait for ever."""
        chained = [] if needed is None else [f"--dependency=afterok:{needed.job_id}", "--kill-on-invalid-dep=yes"]
        waits = chained or ["--hold"]
        return [self.submit_program, "--parsable", *waits, script]

    def job_id(self, output: str) -> str:
        """Return the number, without the cluster's name that may follow it."""
        last = output.strip().splitlines()[-1:] or [""]
        return last[0].split(";")[0] if re.fullmatch(r"\d+(;\S+)?", last[0]) else ""

    def release(self, job_id: str) -> list[str] | None:
        """Return the command that releases the first job."""
        return ["scontrol", "release", job_id]


class OpenPbs:
    """OpenPBS and PBS Pro.

    The first job is held until all are handed in: a job that has ended is not known any more to those that would need
    it.
    """

    name = "OpenPBS"
    submit_program = "qsub"
    cancel_program = "qdel"
    queue_command = "qstat -u $USER"
    index_variables: tuple[str, ...] = ("PBS_ARRAY_INDEX",)
    array_flag = "-J"
    after_array = "afterok"

    def directives(self, job: Job, resources: Resources) -> list[str]:
        """Return `#PBS` lines; -S, as the login shell, which may be another, would read the script otherwise."""
        request = job.request
        asked = [
            f"-N {job.title}",
            "-S /bin/bash",
            *self._amounts(request),
            f"-l walltime={clock(request.walltime)}",
            *([f"{self.array_flag} 1-{request.shards}"] if job.is_array else []),
            "-j oe",
            *([f"-q {request.queue}"] if request.queue else []),
            *([f"-A {request.account}"] if request.account else []),
            *(request.options or ()),
        ]
        return [f"#PBS {each}" for each in asked]

    def _amounts(self, request: Request) -> list[str]:
        gpus = f":ngpus={request.gpus}" if request.gpus else ""
        chunk = f":{request.chunk}" if request.chunk else ""
        return [f"-l select=1:ncpus={request.cpus}{gpus}:mem={request.memory}mb{chunk}"]

    def lines(self, job: Job, resources: Resources) -> list[str]:
        """Return lines that write the log while the job runs, and stop it before PBS would, which waits 10 s only."""
        index = "".join(f"${{{name}:+_${name}}}" for name in self.index_variables)
        return [
            "job=${PBS_JOBID%%[.[]*}",
            f'exec >>"{job.title}-$job{index}.out" 2>&1',
            f"export REFUSAL_SECONDS={job.request.walltime - resources.grace}",
        ]

    def submit(self, script: str, job: Job, needed: Needed | None) -> list[str]:
        """Return the `qsub` command; PBS itself deletes jobs whose condition can never hold."""
        if needed is None:
            return [self.submit_program, "-h", script]
        kind = self.after_array if needed.is_array else "afterok"
        return [self.submit_program, "-W", f"depend={kind}:{needed.job_id}", script]

    def job_id(self, output: str) -> str:
        """Return the id, e.g. `12.server` or `12[].server`."""
        last = output.strip().splitlines()[-1:] or [""]
        return last[0] if re.fullmatch(r"\d+(\[\])?(\.\S+)?", last[0]) else ""

    def release(self, job_id: str) -> list[str] | None:
        """Return the command that releases the first job."""
        return ["qrls", job_id]


class Torque(OpenPbs):
    """Torque with Moab or Maui. Written from its manual; nobody has run it."""

    name = "Torque"
    index_variables: tuple[str, ...] = ("PBS_ARRAYID",)
    array_flag = "-t"
    after_array = "afterokarray"

    def _amounts(self, request: Request) -> list[str]:
        gpus = f":gpus={request.gpus}" if request.gpus else ""
        chunk = f":{request.chunk}" if request.chunk else ""
        return [f"-l nodes=1:ppn={request.cpus}{gpus}{chunk}", f"-l mem={request.memory}mb"]


class Local:
    """No scheduler: the same scripts, one after the other, on this machine."""

    name = "local"
    submit_program = "bash"
    cancel_program = ""
    queue_command = ""
    index_variables: tuple[str, ...] = ()

    def directives(self, job: Job, resources: Resources) -> list[str]:
        """Return none."""
        return []

    def lines(self, job: Job, resources: Resources) -> list[str]:
        """Return none."""
        return []

    def submit(self, script: str, job: Job, needed: Needed | None) -> list[str]:
        """Return the command that runs a script."""
        return [self.submit_program, script]

    def job_id(self, output: str) -> str:
        """Return nothing: there are no ids."""
        return ""

    def release(self, job_id: str) -> list[str] | None:
        """Return None."""
        return None


def dialect_of(scheduler: str, resources: Resources) -> Dialect:
    """Return the dialect of `slurm`, `pbs` or `local`."""
    if scheduler == "pbs":
        return Torque() if resources.pbs_dialect == "torque" else OpenPbs()
    return Slurm() if scheduler == "slurm" else Local()


def explained(dialect: Dialect, requests: Sequence[Request]) -> list[str]:
    """Return notices about what is asked for and this scheduler has no word for."""
    deaf = {"Slurm": ("queue", "chunk"), "OpenPBS": ("partition", "gpu_type"), "Torque": ("partition", "gpu_type")}
    ignored = [key for key in deaf.get(dialect.name, ()) if any(getattr(request, key) for request in requests)]
    return [f"{key} is not used: {dialect.name} has no such thing" for key in ignored]

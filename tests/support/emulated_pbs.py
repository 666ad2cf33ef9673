"""`qsub`, `qrls` and `qdel` as OpenPBS 23.06 answered when it was asked, with jobs as local processes.

What was seen on a real server: the GPU request of Torque is refused (241), -t is a directive error (1), arrays of one
are illegal (2), unknown resources (187) and queues (170), select beside nodes (6). A job begins in $HOME with hardly
any variables, its script is a copy in a spool, its output comes when it has ended, and a job whose condition cannot
hold any more is deleted. The login shell here is /bin/sh. That a job cannot depend on one that has ended (153) is the
server's documented behaviour without job history.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

from emulated_queue import Job, Queue, Refused, answering

SERVER = "server"
QUEUES = ("workq", "gpu queue", "gpu")
RESOURCES = {"select", "place", "walltime", "ncpus", "mem", "nodes", "ngpus"}
CHUNK = {"ncpus", "ngpus", "mem", "mpiprocs"}
VALUED, BARE = "NSlqJAWvoejrtmMap", "hV"


class EmulatedPbs(Queue):
    """The server."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}

    def start(self) -> None:
        """Make the commands."""
        self.install("emulated_pbs", {"qsub": "qsub", "qrls": "qrls", "qdel": "qdel"})

    def stop(self) -> None:
        """Nothing runs on."""

    def output_path(self, job: Job, task: int | None) -> Path:
        """Return the file in the spool; see `_process`."""
        return self.folder / "spool" / f"{job.number}{'' if task is None else f'[{task}]'}.OU"

    def _process(self, job: Job, task: int | None) -> int:
        status = super()._process(job, task)
        name = f"{job.name}.o{job.number}{'' if task is None else f'.{task}'}"
        shutil.move(self.output_path(job, task), Path(job.workdir) / name)
        return status

    def cwd(self, job: Job) -> str:
        """Return the home folder."""
        return str(self.folder / "home")

    def environment_of(self, job: Job, task: int | None) -> dict[str, str]:
        """Return what PBS sets, and nothing of the shell that handed the job in."""
        index = "" if task is None else f"[{task}]"
        nodes = self.folder / "spool" / "nodes"
        nodes.write_text("node1\n")
        found = {
            "HOME": self.cwd(job),
            "PATH": "/bin:/usr/bin",
            "SHELL": "/bin/sh",
            "NCPUS": "1",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.folder / "spool"),
            "PBS_ENVIRONMENT": "PBS_BATCH",
            "PBS_JOBID": f"{job.number}{index}.{SERVER}",
            "PBS_JOBNAME": job.name,
            "PBS_NODEFILE": str(nodes),
            "PBS_O_WORKDIR": job.workdir,
        }
        return found | (
            {} if task is None else {"PBS_ARRAY_INDEX": str(task), "PBS_ARRAY_ID": f"{job.number}[].{SERVER}"}
        )


def qsub(folder: str, arguments: list[str]) -> int:
    """Hand a job in; say its id."""
    return answering(_qsub, folder, arguments)


def qrls(folder: str, arguments: list[str]) -> int:
    """Release a held job."""
    return answering(_qrls, folder, arguments)


def qdel(folder: str, arguments: list[str]) -> int:
    """Delete jobs."""
    return answering(_qdel, folder, arguments)


def _qsub(folder: Path, arguments: list[str]) -> str:
    given, script = _options(arguments)
    if script is None:
        raise Refused(2, "qsub: these tests hand in scripts")
    given = [*_directives(Path(script)), *given]  # the command line is read last, and counts
    asked = dict(given)
    resources = _resources([value for key, value in given if key == "l"])
    if asked.get("q", QUEUES[0]) not in QUEUES:
        raise Refused(170, "qsub: Unknown queue")
    queue = EmulatedPbs(folder)
    job = queue.add(
        script,
        name=asked.get("N", Path(script).name)[:236],
        tasks=_tasks(asked["J"]) if "J" in asked else None,
        needs=_needed(queue, asked["W"]) if "W" in asked else None,
        is_held="h" in asked,
        walltime=_seconds(resources["walltime"]) if "walltime" in resources else None,
        shell=asked.get("S", "/bin/sh"),
    )
    return _id(job) + "\n"


def _id(job: Job) -> str:
    return f"{job.number}{'' if job.tasks is None else '[]'}.{SERVER}"


def _options(words: list[str], where: str = "usage") -> tuple[list[tuple[str, str]], str | None]:
    """Return options with their values, and the script."""
    found, at = [], 0
    while at < len(words) and words[at].startswith("-"):
        letter, rest = words[at][1:2], words[at][2:]
        if letter == "t" and where == "directive":
            raise Refused(1, f"qsub: directive error: {words[at]}")
        if letter in BARE:
            found.append((letter, ""))
        elif letter in VALUED and letter not in "tM":
            at += 0 if rest else 1
            found.append((letter, rest or words[at]))
        else:
            raise Refused(2, f"qsub: invalid option {words[at]}; usage: qsub [-A account] ...")
        at += 1
    return found, words[at] if at < len(words) else None


def _directives(script: Path) -> list[tuple[str, str]]:
    """Return the options in `#PBS` lines up to the first command."""
    found = []
    for line in script.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith("#PBS"):
            found += _options(shlex.split(line[4:]), "directive")[0]
    return found


def _resources(texts: list[str]) -> dict[str, str]:
    """Return what -l asks for; later ones count."""
    found = {}
    for text in texts:
        for part in text.split(","):
            key, _, value = part.partition("=")
            if key not in RESOURCES:
                raise Refused(187, f"qsub: Unknown resource Resource_List.{key}")
            found[key] = value
    if "nodes" in found and ":gpus=" in found["nodes"]:
        raise Refused(241, "qsub: node(s) specification error")
    if "nodes" in found and "select" in found:
        raise Refused(6, 'qsub: "-lresource=" cannot be used with "select" or "place"')
    for part in found.get("select", "1").split(":")[1:]:
        if part.partition("=")[0] not in CHUNK:
            raise Refused(187, f"qsub: Unknown resource Resource_List.{part.partition('=')[0]}")
    return found


def _tasks(text: str) -> list[int]:
    found = re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?", text)
    if found is None or int(found[2]) <= int(found[1]):
        raise Refused(2, "qsub: illegal -J value")
    return list(range(int(found[1]), int(found[2]) + 1, int(found[3] or 1)))


def _seconds(text: str) -> int:
    if not re.fullmatch(r"(\d+:)?(\d+:)?\d+", text):
        raise Refused(168, "qsub: Illegal attribute or resource value Resource_List.walltime")
    total = 0
    for part in text.split(":"):
        total = total * 60 + int(part)
    return total


def _needed(queue: EmulatedPbs, text: str) -> int:
    """Return the number of the job in `depend=afterok:ID`."""
    kind, _, job_id = text.removeprefix("depend=").partition(":")
    if kind != "afterok":
        raise Refused(2, "qsub: illegal -W value")
    job = _known(queue, job_id)
    if job.state not in ("PENDING", "RUNNING"):
        raise Refused(153, f"qsub: Unknown Job Id {job_id}")
    return job.number


def _known(queue: EmulatedPbs, job_id: str) -> Job:
    job = next((job for job in queue.jobs() if _id(job) == job_id), None)
    if job is None:
        raise Refused(153, f"Unknown Job Id {job_id}")
    return job


def _qrls(folder: Path, arguments: list[str]) -> str:
    queue = EmulatedPbs(folder)
    for job_id in arguments:
        job = _known(queue, job_id)
        job.is_held = False
        queue.save(job)
    return ""


def _qdel(folder: Path, arguments: list[str]) -> str:
    queue = EmulatedPbs(folder)
    for job_id in arguments:
        job = _known(queue, job_id)
        job.state = "CANCELLED"
        queue.save(job)
    return ""

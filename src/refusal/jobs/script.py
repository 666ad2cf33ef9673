"""The text of a job: directives, what the body needs to know, the user's own lines, and the body.

Everything that comes from outside stands in shell quotes. The script becomes its body, which becomes Python (`exec`):
signals of the scheduler reach Python, and Python's exit status is the job's.
"""

from __future__ import annotations

import os
from shlex import quote

from refusal.jobs.chain import Job, Place
from refusal.jobs.dialects import Dialect, Local
from refusal.jobs.resources import Resources


def script(job: Job, resources: Resources, place: Place, dialect: Dialect) -> str:
    """Return the script of a job."""
    is_local = isinstance(dialect, Local)
    told = {
        "REFUSAL_ROOT": str(place.root),
        "REFUSAL_WORKDIR": str(place.workdir),
        "REFUSAL_RESULTS": str(place.results),
        "REFUSAL_PYTHON": place.python,
        "REFUSAL_SHARDS": str(job.request.shards),
        "REFUSAL_PROCESSES": str(job.processes),
        "REFUSAL_REQUEUE": "0" if is_local else str(resources.requeue),
        **_environment(job, resources, is_local=is_local),
    }
    body = place.root / "jobs" / f"{job.name}.sh"
    lines = [
        "#!/bin/bash",
        *dialect.directives(job, resources),
        "# Written by jobs/submit.py, which writes it anew each time.",
        "set -e",
        f"cd {quote(str(place.logs))}",
        *dialect.lines(job, resources),
        *(f"export {name}={quote(value)}" for name, value in told.items()),
        *resources.prologue,
        f"exec bash {quote(str(body))} {' '.join(map(quote, job.arguments))}",
    ]
    return "\n".join(lines) + "\n"


def _environment(job: Job, resources: Resources, *, is_local: bool) -> dict[str, str]:
    """Return variables of others that a job on a cluster would lack or get wrong."""
    if is_local:
        return {}
    found = {"OMP_NUM_THREADS": str(max(1, job.request.cpus // job.processes))}
    found |= {name: os.path.abspath(os.environ[name]) for name in ("HF_HOME", "HF_HUB_CACHE") if name in os.environ}
    return found | ({"HF_HUB_OFFLINE": "1"} if resources.offline else {})

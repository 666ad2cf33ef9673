"""The command of `jobs/submit.py`: check, plan, hand in or run, and say what is where.

Exit status: 0 handed in (or, locally, done); 2 a configuration, a resources file or an input is wrong, or the scheduler
refuses; 130 interrupted. Locally a job that fails gives its own status.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from refusal.cli import as_table, read_config, run_command
from refusal.config import Config
from refusal.errors import InputError
from refusal.jobs import local, resources
from refusal.jobs.chain import Place, chain
from refusal.jobs.dialects import Local, dialect_of, explained
from refusal.jobs.submission import Submission

log = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run a study as jobs of a scheduler.", allow_abbrev=False)
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML file, see configurations/")
    parser.add_argument("--scheduler", required=True, choices=("slurm", "pbs", "local"), help="who runs the jobs")
    parser.add_argument("--resources", type=Path, metavar="FILE", help=f"what jobs get, see {resources.EXAMPLE}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--result-dir", type=Path, metavar="DIR", help="override result_dir")
    parser.add_argument("--dry-run", action="store_true", help="print scripts and commands, and stop")
    parser.add_argument("-v", "--verbose", action="store_true", help="more detail")
    return parser


def main(root: Path, argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        root: The project's folder.
        argv: Arguments; None: those of the process.
    """
    arguments = _parser().parse_args(argv)
    statuses: list[int] = []
    status = run_command(partial(_submit, root, arguments, statuses), verbose=arguments.verbose)
    return status or max(statuses, default=0)


def _submit(root: Path, arguments: argparse.Namespace, statuses: list[int]) -> str:
    """Do what the arguments say and return the last line; a local job's exit status goes into `statuses`."""
    config = read_config(arguments)
    asked = resources.load(arguments.resources)
    place = Place(
        root=root,
        workdir=Path.cwd(),
        results=config.result_dir.absolute(),
        config=arguments.config.absolute(),
        python=_python(asked),
    )
    flags = [part for each in arguments.overrides for part in ("--set", each)]
    if arguments.result_dir is not None:
        flags += ["--result-dir", str(arguments.result_dir)]
    dialect = dialect_of(arguments.scheduler, asked)
    submission = Submission(chain(config, asked, place, tuple(flags)), asked, place, dialect)
    for notice in explained(dialect, [job.request for job in submission.jobs]):
        log.warning("%s", notice)
    if arguments.dry_run:
        return submission.described()
    _check_inputs(config)
    if isinstance(dialect, Local):
        statuses.append(local.run(submission))
        return "" if statuses[-1] else f"Written to {place.results}."
    return _told(submission, submission.hand_in())


def _python(asked: resources.Resources) -> str:
    """Return the Python that jobs run: a path is made absolute, as jobs begin in another folder."""
    python = asked.python or sys.executable
    return os.path.abspath(os.path.expanduser(python)) if os.sep in python else python


def _check_inputs(config: Config) -> None:
    """Raise if data or models are not here: it should not be found out after hours in a queue.

    Raises:
        InputError: All that is not here.
    """
    from refusal.doctor import study
    from refusal.doctor.findings import Level, examine

    wrong = [each for each in examine(study.input_checks(config)) if each.level is Level.PROBLEM]
    if wrong:
        raise InputError("\n".join(f"{each.found}; {each.fix}" for each in wrong))


def _told(submission: Submission, ids: dict[resources.JobName, str]) -> str:
    """Return which job has which id, and what to do next."""
    rows = [
        (job.name, ids[job.name], f"{len(job.tasks)} tasks" if job.is_array else "", f"after {job.needs or 'nothing'}")
        for job in submission.jobs
    ]
    return (
        f"{as_table(rows)}\nLogs: {submission.place.logs}. Queue: {submission.dialect.queue_command}. When a job has "
        "failed, those after it are taken out; mend what its log says, and give this command again: it resumes."
    )

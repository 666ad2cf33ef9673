"""`python -m refusal.doctor [--config F] [--online]`: what is missing on this machine, one line each with the fix.

Exit status: 0 no problem (there may be warnings), 2 a problem.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from refusal.doctor import hub, machine, study
from refusal.doctor.findings import Check, Finding, Level, closing_line, examine, problem

PROBLEM = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m refusal.doctor", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE", help="also check what this configuration needs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--result-dir", type=Path, metavar="DIR", help="override result_dir")
    parser.add_argument("--online", action="store_true", help="also ask the hub: token, gated models")
    parser.add_argument("-v", "--verbose", action="store_true", help="where a check that failed itself failed")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is found; return the exit status."""
    arguments = _parser().parse_args(argv)
    if not arguments.online:  # before the hub's library is imported, which reads it then
        os.environ["HF_HUB_OFFLINE"] = "1"
    found = []
    try:
        for finding in _findings(arguments):
            found.append(finding)
            sys.stdout.write(finding.text + "\n")
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    sys.stdout.write(closing_line(found) + "\n")
    return PROBLEM if any(finding.level is Level.PROBLEM for finding in found) else 0


def _findings(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Yield what is found: first the machine, then what the configuration needs, then the hub."""
    yield from examine([Check("python", machine.check_python), Check("packages", machine.check_packages)])
    read: list[study.Study] = []
    if arguments.config is not None:
        yield from examine([Check("config", partial(_read_config, arguments, read))])
    wanted = read[0] if read else None
    yield from examine(_checks(wanted))
    if arguments.online:
        models = [] if wanted is None else wanted.hub_models
        yield from examine([Check("network", partial(hub.check_online, models))])


def _checks(wanted: study.Study | None) -> list[Check]:
    wants_cuda = wanted is not None and wanted.config.device == "cuda"
    sources = [] if wanted is None else [source for source, _ in wanted.hub_models]
    general = [
        Check("torch", partial(machine.check_torch, wants_cuda)),
        Check("disk", machine.check_temporary),
        Check("disk", _check_model_disk),
        Check("HF_HOME", hub.check_cache),
        Check("token", partial(hub.check_token, sources)),
        Check("scheduler", machine.check_scheduler),
    ]
    if wanted is not None:
        return [*general, *study.checks(wanted)]
    here = [Check("memory", machine.check_memory), Check("disk", partial(machine.check_disk, "results", Path()))]
    return [*general, *here, Check("data", study.check_shipped)]


def _check_model_disk() -> Iterator[Finding]:
    from huggingface_hub import constants

    return machine.check_disk("models", Path(constants.HF_HUB_CACHE))


def _read_config(arguments: argparse.Namespace, read: list[study.Study]) -> Iterator[Finding]:
    """Read the configuration; each of its findings is one of ours."""
    from refusal.errors import InputError

    overrides = list(arguments.overrides)
    if arguments.result_dir is not None:
        overrides.append(f"result_dir={json.dumps(str(arguments.result_dir))}")
    try:
        read.append(study.read(arguments.config, overrides))
    except InputError as error:
        for line in str(error).splitlines():
            found, _, fix = line.rpartition("; ")
            yield problem("config", found or line, fix if found else "mend the file")


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG if _parser().parse_args().verbose else logging.CRITICAL)
    raise SystemExit(main())

"""What the entry scripts share: flags, logging, the plan of a dry run, and exit statuses.

0 done; 2 the configuration or an input is wrong (one message, no traceback); 1 anything else; 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

from refusal.config import Config, Stage, load
from refusal.errors import InputError, RefusalError
from refusal.resources import is_out_of_memory
from refusal.untrusted.files import first_line, shown
from refusal.untrusted.text import local_path

log = logging.getLogger(__name__)

WRONG_INPUT = 2
INTERRUPTED = 130
SMALL_MODEL = 64 << 20
"""Bytes of weights up to which a model is too small for more than one thread."""


def build_parser(description: str, *, main_job: bool) -> argparse.ArgumentParser:
    """Return the flags of the main job, or those of the inference stage."""
    parser = _common_parser(description)
    part = "do part I of N of the saes stage" if main_job else "do part I of N, beside the others; see --merge"
    parser.add_argument("--shard", metavar="I/N", help=part)
    if main_job:
        parser.add_argument("--train-saes", action="store_true", help="the saes stage and what it needs")
        _add_stages(parser)
    else:
        parser.add_argument("--force", action="store_true", help="redo the stage")
        parser.add_argument("--merge", action="store_true", help="put shards together; no prompt runs")
    return parser


def build_stage_parser(description: str, *, inspects: bool = False) -> argparse.ArgumentParser:
    """Return the flags of a job beside the main one.

    Args:
        description: What the job does.
        inspects: Whether it can look at a folder of published directions instead.
    """
    parser = _common_parser(description, inspects=inspects)
    _add_stages(parser)
    return parser


def _add_stages(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stages", metavar="A,B", help=f"stages to run, of {','.join(Stage)}")
    parser.add_argument("--force", action="append", default=[], metavar="STAGE", help="redo a stage and what follows")


def _common_parser(description: str, *, inspects: bool = False) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, metavar="FILE", help="YAML file, see configurations/")
    if inspects:
        folder = "look at a folder with mean_diffs.pt, direction.pt and direction_metadata.json; needs no model"
        source.add_argument("--inspect", metavar="FOLDER", help=folder)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key, e.g. sae.lr=1e-3",
    )
    parser.add_argument("--result-dir", metavar="DIR", help="override result_dir")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    parser.add_argument("-v", "--verbose", action="store_true", help="more detail")
    return parser


def read_config(arguments: argparse.Namespace) -> Config:
    """Return the configuration with the overrides of the command line.

    Raises:
        InputError: The file or an override is wrong.
    """
    overrides = list(arguments.overrides)
    if arguments.result_dir is not None:
        overrides.append(f"result_dir={json.dumps(str(arguments.result_dir))}")
    return load(arguments.config, overrides)


def path_of_flag(text: str, flag: str) -> Path:
    """Return the path that a flag gives, with `~` resolved.

    Raises:
        InputError: No file or folder could be called so.
    """
    try:
        return local_path(text)
    except ValueError as error:
        raise InputError(f"{flag}: found {shown(text)}: {error}") from error


def stages_named(text: str, flag: str) -> tuple[Stage, ...]:
    """Return the stages of a comma-separated list.

    Raises:
        InputError: A name is no stage.
    """
    found = []
    for name in (part.strip() for part in text.split(",")):
        if name not in tuple(Stage):
            near = difflib.get_close_matches(name, tuple(Stage), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"{flag}: found {name!r}; allowed are {', '.join(Stage)}{hint}")
        found.append(Stage(name))
    return tuple(dict.fromkeys(found))


def _stop(number: int, frame: FrameType | None) -> None:
    """Stop the run once: a scheduler may tell both a process and its parent, which passes it on."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


_USERS_TO_MEND = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""What the operating system refuses because of the disk: full, read-only, somebody else's or failing."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def run_command(command: Callable[[], str], *, verbose: bool) -> int:
    """Run a command, which returns its last line (empty: none), and return the exit status.

    SIGTERM, which a scheduler sends at the walltime, stops a run like Ctrl-C. A disk that is full and memory that ran
    out are the user's to mend. What is neither the user's to mend nor an interruption is our mistake: it keeps its
    traceback, and Python ends with status 1.
    """
    set_up_logging(verbose)
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        last_line = command()
        sys.stdout.write(printable(last_line) + "\n" if last_line else "")
    except RefusalError as error:
        log.debug("where it was found", exc_info=True)
        sys.stderr.write(printable(f"error: {error}\n"))
        return WRONG_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was complete is kept, the same command resumes\n")
        return INTERRUPTED
    except (OSError, MemoryError, RuntimeError) as error:
        advice = _advice(error)
        if advice is None:
            raise
        log.debug("where it was found", exc_info=True)
        sys.stderr.write(printable(f"error: {first_line(error)}; {advice}\n"))
        return WRONG_INPUT
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _advice(error: OSError | MemoryError | RuntimeError) -> str | None:
    """Return what to do about what the machine refuses; None for what is our mistake."""
    if isinstance(error, OSError):
        kept = "what was complete is kept, the same command resumes when it is mended"
        return kept if error.errno in _USERS_TO_MEND else None
    if is_out_of_memory(error):
        return (
            "memory ran out; what was complete is kept; end other programs, or set a smaller batch_size, fewer sites "
            "in activation_layers or a smaller sae.d_sae, and run the same command again"
        )
    return None


def printable(text: str) -> str:
    r"""Return text for a terminal: what would steer it instead of being shown is written as an escape.

    >>> printable("a\x1b[2J\n")
    'a\\x1b[2J\n'
    """
    return _CONTROL.sub(lambda match: ascii(match.group())[1:-1], text)


def use_one_thread_for_small_models(n_bytes: int) -> None:
    """Run on one thread when a model has few weights: threads that wait for each other cost more than they save.

    Measured on a 64-wide model with one of two cores busy: 190 s on two threads, 5 s on one. OMP_NUM_THREADS, where it
    is set, is obeyed instead.
    """
    if n_bytes <= SMALL_MODEL and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)


class _Console(logging.StreamHandler[TextIO]):
    """Our handler, so that a second command replaces it and no other."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line that is shown."""
        return printable(super().format(record))


def set_up_logging(verbose: bool) -> None:
    """Log to stderr as `HH:MM:SS message`; libraries, and all processes but the first, only their warnings."""
    console = _Console()
    console.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [console, *(handler for handler in root.handlers if not isinstance(handler, _Console))]
    root.setLevel(logging.WARNING)
    for name in ("refusal", "circuits"):
        level = logging.DEBUG if verbose else logging.INFO
        logging.getLogger(name).setLevel(level if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)

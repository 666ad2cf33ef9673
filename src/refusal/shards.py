"""Independent shards: `--shard i/n` does part i of a stage, on any machine that sees the result folder.

The parts need nothing of each other: each leaves whole files only, and no record of the stage. When all are there, one
command more puts them together (`--merge`, or the stage without `--shard`). Into how many parts a run was cut is noted
beside the shards until then, so that what is missing can be named.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from refusal.errors import InputError
from refusal.processes import Part

INFERENCE = "python src/run_inference.py --config FILE"


def parse(text: str) -> Part:
    """Return the part that `--shard i/n` names.

    Raises:
        InputError: The text has another form, or i is not between 1 and n.

    >>> parse("2/3")
    Part(rank=1, size=3)
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise InputError(f"--shard: found {text!r}; allowed is i/n with i from 1 to n, e.g. --shard 2/8")
    return Part(number - 1, of)


def named(part: Part) -> str:
    """Return what the command line calls a part.

    >>> named(Part(1, 3))
    '2/3'
    """
    return f"{part.rank + 1}/{part.size}"


def note(folder: Path, part: Part) -> None:
    """Note in a folder of shards into how many parts its run is cut."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f".parts-{part.size}").touch()


def forget(folder: Path) -> None:
    """Remove the notes: the shards are put together."""
    for path in folder.glob(".parts-*"):
        path.unlink(missing_ok=True)


def noted(folder: Path) -> int:
    """Return the number of parts noted last; 1 where none was."""
    newest = max(folder.glob(".parts-*"), key=lambda path: path.stat().st_mtime_ns, default=None)
    return 1 if newest is None else int(newest.name.rpartition("-")[2])


def missing(folder: Path, indices: Sequence[int], total: int) -> str:
    """Return what is missing of a folder of shards, and the commands that make it.

    Args:
        folder: The folder.
        indices: Numbers of the shards that are not complete.
        total: Shards of the run.
    """
    n_parts = noted(folder)
    commands = [INFERENCE]
    if n_parts > 1:
        ranks = sorted({index % n_parts for index in indices})
        commands = [f"{INFERENCE} --shard {named(Part(rank, n_parts))}" for rank in ranks]
    names = ", ".join(f"shard-{index:05d}" for index in indices[:10]) + (", ..." if len(indices) > 10 else "")
    return (
        f"{folder}: {len(indices)} of {total} shards are not there, or were made of other prompts, settings or weights "
        f"or in another dtype: {names}; run: {'; '.join(commands)}"
    )


def without_flag(script: str, argv: Sequence[str], *added: str) -> str:
    """Return the command of an entry script without its `--shard`.

    >>> without_flag("run.py", ["--config", "a b.yaml", "--shard", "1/3"], "--merge")
    "python run.py --config 'a b.yaml' --merge"
    """
    kept, words = [], iter(argv)
    for word in words:
        if word == "--shard":
            next(words, None)
        elif not word.startswith("--shard="):
            kept.append(word)
    return shlex.join(["python", script, *kept, *added])

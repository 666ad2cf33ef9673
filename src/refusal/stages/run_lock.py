"""One run at a time in a result folder, which must be writable and have room; or the shards of one run side by side.

The lock is a file that names host and process. One whose process is gone is taken over; the check and the takeover
happen under flock, so that of two runs that find the same dead lock only one gets it. Where a file system has no flock
the rest still holds. A shard (`--shard i/n`) has a lock of its own, and looks at the others once it holds it: beside it
there may be other shards of the same n, and nothing else. Of a run and a shard that begin at the same moment both may
give way.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from refusal.artefacts import ResultPaths, this_host, without_following
from refusal.errors import InputError
from refusal.processes import Part
from refusal.resources import LEAST_FREE, free_bytes, human_bytes
from refusal.shards import named

LOCK_NAME = ".lock"
DAY = 24 * 60 * 60
"""Seconds after which what another machine was writing is taken for abandoned."""


@contextmanager
def result_folder(root: Path, needed_bytes: int = LEAST_FREE, shard: Part | None = None) -> Iterator[ResultPaths]:
    """Yield the paths of a result folder; made where it is missing, and used by no other run until the end.

    Args:
        root: The folder.
        needed_bytes: Free disk the run needs, in bytes.
        shard: The part that this run does; other parts may run at the same time.

    Raises:
        InputError: The folder cannot be written, has not enough room, or another run is using it.
    """
    lock = root / (LOCK_NAME if shard is None else f"{_of_shards(shard.size)}{shard.rank + 1}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        _check_room(root, needed_bytes)
        _take(lock)
    except OSError as error:
        raise _cannot_be_written(root, error) from error
    try:
        check_links(root)
        _check_others(lock, shard)
        if shard is None:
            _remove_partial(root)
        yield ResultPaths(root)
    finally:
        lock.unlink(missing_ok=True)


def writable_folder(root: Path) -> ResultPaths:
    """Return the paths of a result folder for what no run makes; made where it is missing.

    Raises:
        InputError: The folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_written(root, error) from error
    check_links(root)
    return ResultPaths(root)


def check_links(root: Path) -> None:
    """Raise if a folder of a result folder is a link to elsewhere: a run writes and deletes in its own folder alone.

    Links to files do no harm: what is written takes their place (`refusal.artefacts.atomic_write`).

    Raises:
        InputError: Names the link and where it leads.
    """
    home = root.resolve()
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as found:
            entries = list(found)
        for entry in entries:
            if entry.is_symlink() and entry.is_dir() and not Path(entry.path).resolve().is_relative_to(home):
                raise InputError(
                    f"result_dir: {entry.path} is a link to {os.path.realpath(entry.path)}, outside of {root}, where a "
                    "run would write and delete; replace it with a folder, or let --result-dir be on the other disk"
                )
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))


def _of_shards(size: int) -> str:
    return f"{LOCK_NAME}.shard-of-{size}-"


def _cannot_be_written(root: Path, error: OSError) -> InputError:
    return InputError(
        f"result_dir: {root} cannot be written ({error.strerror}); choose another --result-dir; nothing was lost"
    )


def _check_others(lock: Path, shard: Part | None) -> None:
    """Raise if a lock that does not go with this one is held; those of shards that are gone are removed by a run.

    Raises:
        InputError: Names what is running.
    """
    for other in sorted(lock.parent.glob(f"{LOCK_NAME}*")):
        if other == lock or (shard is not None and other.name.startswith(_of_shards(shard.size))):
            continue
        try:
            holder = other.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        if _may_be_running(holder):
            mine = "a whole run" if shard is None else f"shard {named(shard)}"
            raise InputError(
                f"result_dir: {lock.parent} is in use by {_words(other)} ({holder}), beside which {mine} cannot work; "
                f"wait for it, choose another --result-dir, or delete {other} if it is gone"
            )
        if shard is None:
            other.unlink(missing_ok=True)


def _words(lock: Path) -> str:
    """Return what a lock is of."""
    found = re.fullmatch(re.escape(LOCK_NAME) + r"\.shard-of-(\d+)-(\d+)", lock.name)
    return f"shard {found[2]}/{found[1]}" if found else "another run"


def _remove_partial(root: Path) -> None:
    """Remove what killed runs left beside the files they were writing (`refusal.artefacts.atomic_write`)."""
    for path in root.rglob(".*.partial.*"):
        found = re.fullmatch(r"\.(\d+)-([0-9a-f]{8})\.partial\..+", path.name)
        if found and path.is_file() and not _may_be_written(path, int(found[1]), found[2]):
            path.unlink(missing_ok=True)


def _may_be_written(path: Path, process: int, host: str) -> bool:
    """Return whether a process may still be writing: one of this machine that runs, or a recent one of another."""
    if host == this_host():
        return process != os.getpid() and _is_running(process)
    try:
        return time.time() - path.stat().st_mtime < DAY
    except FileNotFoundError:
        return False


def _check_room(root: Path, needed_bytes: int) -> None:
    free = free_bytes(root)
    if free < needed_bytes:
        raise InputError(
            f"result_dir: {root} is on a disk with {human_bytes(free)} free; needed are {human_bytes(needed_bytes)}; "
            "free some, or choose another --result-dir; nothing was lost"
        )


def _take(lock: Path) -> None:
    """Write this process into the lock.

    Raises:
        InputError: A living process, or one of another machine, stands in it.
    """
    while True:
        with open(lock, "a+", encoding="utf-8", opener=without_following) as handle:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_same_file(lock, handle):
                continue  # the run that held it removed it in between
            handle.seek(0)
            holder = handle.read()
            if _may_be_running(holder):
                raise InputError(
                    f"result_dir: {lock.parent} is in use by {_words(lock)} ({holder}); wait for it, choose another "
                    f"--result-dir, or delete {lock} if that run is gone"
                )
            handle.seek(0)
            handle.truncate()
            handle.write(f"{socket.gethostname()} {os.getpid()}")
            return


def _is_same_file(path: Path, handle: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle.fileno()))
    except FileNotFoundError:
        return False


def _may_be_running(holder: str) -> bool:
    """Return whether the process in a lock may be alive; of another machine's processes nothing is known."""
    host, _, process = holder.partition(" ")
    if not process.isdecimal():
        return False  # killed while it wrote the lock
    if host != socket.gethostname():
        return True
    return _is_running(int(process))


def _is_running(process: int) -> bool:
    """Return whether a process of this machine is alive."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True

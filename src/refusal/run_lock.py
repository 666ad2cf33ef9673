"""One run at a time in a result folder, which must be writable and have room.

The lock is a file that names host and process. One whose process is gone is taken over; the check and the takeover
happen under flock, so that of two runs that find the same dead lock only one gets it. Where a file system has no flock
the rest still holds.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from refusal.artefacts import ResultPaths
from refusal.errors import InputError
from refusal.resources import LEAST_FREE, free_bytes, human_bytes

LOCK_NAME = ".lock"


@contextmanager
def result_folder(root: Path, needed_bytes: int = LEAST_FREE) -> Iterator[ResultPaths]:
    """Yield the paths of a result folder; made where it is missing, and used by no other run until the end.

    Args:
        root: The folder.
        needed_bytes: Free disk the run needs, in bytes.

    Raises:
        InputError: The folder cannot be written, has not enough room, or another run is using it.
    """
    lock = root / LOCK_NAME
    try:
        root.mkdir(parents=True, exist_ok=True)
        _check_room(root, needed_bytes)
        _take(lock)
        _remove_partial(root)
    except OSError as error:
        raise InputError(
            f"result_dir: {root} cannot be written ({error.strerror}); choose another --result-dir; nothing was lost"
        ) from error
    try:
        yield ResultPaths(root)
    finally:
        lock.unlink(missing_ok=True)


def _remove_partial(root: Path) -> None:
    """Remove what killed runs left beside the files they were writing (`refusal.artefacts.atomic_write`)."""
    for path in root.rglob(".*.partial.*"):
        if re.fullmatch(r"\.\d+\.partial\..+", path.name) and path.is_file():
            path.unlink(missing_ok=True)


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
        with lock.open("a+", encoding="utf-8") as handle:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_same_file(lock, handle):
                continue  # the run that held it removed it in between
            handle.seek(0)
            holder = handle.read()
            if _may_be_running(holder):
                raise InputError(
                    f"result_dir: {lock.parent} is in use by another run ({holder}); wait for it, choose another "
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
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True

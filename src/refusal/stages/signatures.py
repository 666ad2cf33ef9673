"""What tells a file from a changed one: size, time of change and checksum, and how much of it is read to find out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from refusal.artefacts import sha256_file
from refusal.errors import InputError

SMALL_FILE = 16 << 20
"""Files up to this many bytes are compared by checksum whenever their unit is looked at; larger ones by size and time
of change first, so that looking at what is done takes no time."""
LARGE_FILE = 1 << 30
"""Files above this many bytes are fingerprinted by size and three samples."""
_SAMPLE = 16 << 20


def digests(paths: Sequence[Path]) -> dict[str, str]:
    """Return digests by file name, so that files may lie elsewhere tomorrow; by path where names are the same."""
    names = Counter(path.name for path in paths)
    return {path.name if names[path.name] == 1 else str(path): file_digest(path) for path in paths}


def signature_of(path: Path) -> dict[str, Any]:
    """Return what is recorded of an output; one that is missing is a mistake of the unit, not of the user."""
    if not path.is_file():
        raise RuntimeError(f"{path} should have been written and was not")
    status = path.stat()
    return {"sha256": sha256_file(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def seems_intact(path: Path, signature: dict[str, Any]) -> bool:
    """Return whether an output seems to be what it was: by size, then time of change (large files), then checksum."""
    if not path.is_file():
        return False
    status = path.stat()
    if status.st_size != signature["size"]:
        return False
    if status.st_size > SMALL_FILE and status.st_mtime_ns == signature.get("mtime_ns"):
        return True
    return is_intact(path, signature)


def is_intact(path: Path, signature: dict[str, Any]) -> bool:
    """Return whether an output has the checksum it had; every byte of it is read."""
    if not path.is_file():
        return False
    recorded = str(signature["sha256"])
    # records of earlier versions hold samples of what is larger than 1 GiB
    return recorded == (file_digest(path) if recorded.startswith("sampled:") else sha256_file(path))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; of one above 1 GiB, that of its size and its first, middle and last 16 MiB.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return _digest(path, status.st_size, status.st_mtime_ns)


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    if size <= LARGE_FILE:
        return sha256_file(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as handle:
        for offset in (0, size // 2, size - _SAMPLE):
            handle.seek(offset)
            digest.update(handle.read(_SAMPLE))
    return f"sampled:{digest.hexdigest()}"

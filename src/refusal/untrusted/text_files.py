"""Text files that a user gives, read whole: where one is wrong, the message names file, line and what to do."""

from __future__ import annotations

from pathlib import Path

from refusal.errors import InputError
from refusal.untrusted.files import file_bytes


def read_text(path: Path, most: int, key: str = "", allowed: str = "a readable text file") -> str:
    """Return the text of a file, without a byte order mark.

    Args:
        path: The file.
        most: Bytes, at most.
        key: What named the file (a flag, a key of the configuration), for the error message.
        allowed: What the file may be, likewise.

    Raises:
        InputError: It cannot be read, is too large or is not UTF-8.
    """
    where = f"{key}: {path}" if key else str(path)
    try:
        content = file_bytes(path, most)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{where}: cannot be read ({reason}); allowed is {allowed}; check its name, kind and permissions"
        ) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{where}:{line}: found byte 0x{content[error.start]:02x}, which is not UTF-8; allowed is UTF-8 with or "
            "without a byte order mark; save the file as UTF-8"
        ) from error

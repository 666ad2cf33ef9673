"""Texts of a configuration as names, paths or prompts: what no file could be called, or hold, is refused."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from refusal.untrusted.names import safe_name

LONGEST_PATH, LONGEST_PART = 3000, 255
"""Bytes of a path, and of a name in it, at most: what file systems allow, with room for what is put behind it."""


def usable_name(text: str) -> str:
    """Return a name or path as it is.

    Raises:
        ValueError: No file could be called so, or no terminal could show it.
    """
    bad = next((letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs")), None)
    if bad is not None:
        raise ValueError(f"the character U+{ord(bad):04X} in it is not allowed; delete it")
    if len(text.encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_PART for part in text.split("/")):
        raise ValueError(f"allowed are at most {LONGEST_PATH} bytes, {LONGEST_PART} of them between two slashes")
    return text


def local_path(text: str) -> Path:
    """Return a path with `~` resolved.

    Raises:
        ValueError: The text is empty: it would mean the folder the command runs in; or it is no path.
    """
    if not text:
        raise ValueError("the path is empty; write . for the folder the command runs in")
    try:
        return Path(usable_name(text)).expanduser()
    except RuntimeError as error:
        raise ValueError("no user of that name has a home folder here; write the path in full") from error


def whole_characters(text: str) -> str:
    """Return a text as it is.

    Raises:
        ValueError: It holds half a character, which no file can hold.
    """
    if any(unicodedata.category(letter) == "Cs" for letter in text):
        raise ValueError("it holds half a character (a surrogate); write the whole one")
    return text


def check_told_apart(names: Iterable[str]) -> None:
    """Raise if two names differ in case only: on some file systems their results would be one.

    Raises:
        ValueError: Names both.
    """
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(safe_name(name).casefold(), name)
        if other != name:
            raise ValueError(f"{other!r} and {name!r} differ in case only; write the name as it is, once")

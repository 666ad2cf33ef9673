"""Names from data as names of files: readable, on every file system, never outside their folder, never the same twice.

What comes out holds ASCII letters, digits, `.`, `_`, `-` and `%` only, is no name that Windows reserves, does not begin
or end with a dot and is short enough for a file system that allows 255 bytes. Two names never give the same file name;
where one differs from another in case alone, so does the file name, so a run may not hold both (`refusal.config`).
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import unquote

LONGEST_NAME = 150
"""Characters of a model's name as a file name, at most."""
LONGEST_CATEGORY = 60
"""Characters of a category's name as a part of one: with a model's name, `_circuit.json` and what marks a file that is
being written, 255 bytes are not exceeded."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
_CUT = "%-"
"""Begins the hash of a name that was cut; no escape looks so."""


def safe_name(name: str) -> str:
    """Return `name` as a file name: readable, reversible (`unsafe_name`), never the same for two names.

    `/` becomes `__`; whatever else is not a letter, digit, `.`, `_` or `-` is percent-encoded. Names that would exceed
    150 characters are cut and end in a hash of the whole (those alone are not reversible).

    >>> safe_name("meta-llama/Llama-2-7b-chat-hf"), safe_name("a__b"), safe_name(".."), safe_name("nul")
    ('meta-llama__Llama-2-7b-chat-hf', 'a%5F%5Fb', '%2E%2E', '%6Eul')
    """
    escaped = _UNSAFE.sub(lambda m: "/" if m.group() == "/" else _escape(m.group()), name)
    # A run of underscores, or one beside a slash, could be read as a slash: escape it.
    escaped = re.sub(r"__+|(?<=/)_+|_+(?=/)", lambda m: "%5F" * len(m.group()), escaped).replace("/", "__")
    if escaped.startswith(".") or _RESERVED.fullmatch(escaped):
        escaped = _escape(escaped[0]) + escaped[1:]
    if escaped.endswith("."):
        escaped = f"{escaped[:-1]}%2E"
    return _cut(escaped, name, LONGEST_NAME)


def unsafe_name(file_name: str) -> str:
    """Return the name that `safe_name` made `file_name` of.

    >>> unsafe_name(safe_name("planted/modular"))
    'planted/modular'
    """
    return unquote(file_name.replace("__", "/"))


def safe_category(category: str) -> str:
    """Return `category` as a part of a file name that holds no `_`, so that MODEL_CATEGORY can be split again.

    >>> safe_category("self-harm"), safe_category("a/b_c")
    ('self-harm', 'a%2Fb%5Fc')
    """
    escaped = _UNSAFE.sub(lambda m: _escape(m.group()), category).replace("_", "%5F")
    return _cut(escaped, category, LONGEST_CATEGORY)


def _escape(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def _cut(escaped: str, name: str, longest: int) -> str:
    """Return a file name of at most so many characters; that of an empty name is not empty."""
    if escaped and len(escaped) <= longest:
        return escaped
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{escaped[: longest - len(_CUT) - 16]}{_CUT}{digest}"

"""Ordinary text from a file, for what an intervention costs on it: paragraphs divided by empty lines."""

from __future__ import annotations

from pathlib import Path

from refusal.errors import InputError
from refusal.untrusted.text_files import read_text

MOST_BYTES = 1 << 26
"""Bytes of a text file, at most."""
MOST_TEXTS, MOST_TOKENS = 256, 512
"""Paragraphs of a text file that are scored, and tokens of each, at most."""


def read_paragraphs(path: Path) -> tuple[str, ...]:
    """Return the paragraphs of a text file, which are divided by empty lines.

    Raises:
        InputError: The file is missing, not UTF-8 or empty.
    """
    text = read_text(path, MOST_BYTES, "directions.text_file", "a text file in UTF-8")
    blocks = "\n".join(line.rstrip() for line in text.splitlines()).split("\n\n")
    found = tuple(block.strip() for block in blocks if block.strip())
    if not found:
        raise InputError(f"directions.text_file: {path} holds no text; allowed are paragraphs divided by empty lines")
    return found[:MOST_TEXTS]

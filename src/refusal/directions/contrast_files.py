"""Read the texts of a contrast set: CSV, JSON, JSONL and TXT, each record with the place it stands at.

This module knows columns, keys and encodings, not what makes a contrast: `refusal.directions.contrast` does. What
cannot be read is an `InputError` with file and line, never a record guessed or dropped.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from refusal.errors import InputError
from refusal.untrusted.files import json_text, shown
from refusal.untrusted.text_files import read_text

TEXT_KEYS = ("text", "prompt", "instruction", "sentence", "statement")
"""What the text may be called."""
LABEL_KEY = "label"
SHOWN = 5
"""Findings that a message lists."""
MOST_TEXTS = 10_000
"""Of a file: what is reckoned with them grows with the square of their number."""
_MAX_CHARACTERS = 1_000_000
"""Of a text."""
_LONGEST_LABEL = 100
"""Characters of a label: it stands in tables and figures."""
_MOST_BYTES = 1 << 26
"""Bytes of a file, at most."""


@dataclass(frozen=True)
class ContrastRecord:
    """A text as read, with the place it stands at (`file:line`)."""

    place: str
    text: Any
    label: Any


def raise_findings(findings: Sequence[str], advice: str) -> NoReturn:
    """Raise one error that lists what was found, the first of them in full."""
    more = f"\n... and {len(findings) - SHOWN} more" if len(findings) > SHOWN else ""
    raise InputError("\n".join(f"contrast: {finding}" for finding in findings[:SHOWN]) + f"{more}\n{advice}")


def read_records(path: Path, needs_label: bool) -> list[ContrastRecord]:
    """Return the records of a file, each with a text, and a label where one is needed.

    Raises:
        InputError: The file cannot be read as text, is of another kind, or records lack what is needed.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None or (needs_label and reader is _txt):
        allowed = [suffix for suffix, each in _READERS.items() if not (needs_label and each is _txt)]
        raise InputError(f"contrast: {path} ends in {path.suffix!r}; allowed are {', '.join(allowed)}; rename the file")
    findings, found = [], []
    for record in reader(path, _content(path)):
        problem = _problem(record, needs_label)
        if problem:
            findings.append(f"{record.place}: {problem}")
        else:
            found.append(record)
    if len(findings) + len(found) > MOST_TEXTS:
        raise InputError(
            f"contrast: {path}: found {len(findings) + len(found)} texts; allowed are at most {MOST_TEXTS}"
        )
    if findings:
        needed = f"a text and a {LABEL_KEY}" if needs_label else "a text"
        raise_findings(findings, f"needed is {needed} in every record; mend or remove these")
    if not found:
        raise InputError(f"contrast: {path} holds no texts; see src/refusal/directions/contrast.py for the formats")
    return found


def _content(path: Path) -> str:
    text = read_text(path, _MOST_BYTES, "contrast", "a CSV, JSON, JSONL or TXT file")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"contrast: {path}:{line}: found a NUL byte, so this is no text file; save it as UTF-8 text")
    return text


def _problem(record: ContrastRecord, needs_label: bool) -> str | None:
    """Return what is wrong with a record, in words."""
    if not isinstance(record.text, str):
        return f"the text is {_said(record.text)}; the key may be {', '.join(TEXT_KEYS)}"
    if not record.text.strip():
        return "the text is empty"
    if len(record.text) > _MAX_CHARACTERS:
        return f"the text has {len(record.text)} characters; allowed are at most {_MAX_CHARACTERS}"
    if _is_broken(record.text):
        return "the text holds half of a surrogate pair, which is no character"
    return _problem_of_label(record.label) if needs_label else None


def _problem_of_label(label: Any) -> str | None:
    if not isinstance(label, str | int | float | bool) or not str(label).strip():
        return f"the {LABEL_KEY} is {_said(label)}"
    if len(str(label)) > _LONGEST_LABEL:
        return f"the {LABEL_KEY} has {len(str(label))} characters; allowed are at most {_LONGEST_LABEL}"
    return f"the {LABEL_KEY} holds half of a surrogate pair" if _is_broken(str(label)) else None


def _is_broken(text: str) -> bool:
    return any(0xD800 <= ord(char) <= 0xDFFF for char in text)


def _said(value: Any) -> str:
    if value is None:
        return "missing"
    return "empty" if isinstance(value, str) and not value.strip() else f"a {type(value).__name__}, not text"


def _csv(path: Path, text: str) -> Iterator[ContrastRecord]:
    previous = csv.field_size_limit(_MAX_CHARACTERS)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [str(name).strip().lower() for name in reader.fieldnames or ()]
        if not set(names) & set(TEXT_KEYS) or len(set(names)) < len(names):
            found = ", ".join(map(shown, names[:SHOWN])) or "none"
            raise InputError(
                f"contrast: {path}:1: found columns {found}; needed is one of {', '.join(TEXT_KEYS)}, and {LABEL_KEY} "
                "where both classes are in one file, each once"
            )
        reader.fieldnames = names
        line = reader.line_num + 1
        for row in reader:
            if None in row:
                raise InputError(
                    f"contrast: {path}:{line}: found more fields than the {len(names)} of the header; write texts that "
                    'hold commas or line breaks as "..."'
                )
            yield _record_of(row, f"{path}:{line}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"contrast: {path}:{reader.line_num}: malformed CSV ({error}); allowed are fields quoted as "
            '"..." with inner quotes doubled (""); mend this row'
        ) from error
    finally:
        csv.field_size_limit(previous)


def _json(path: Path, text: str) -> Iterator[ContrastRecord]:
    content = _parsed(path, text, 1)
    if isinstance(content, dict) and all(isinstance(texts, list) for texts in content.values()):
        for label, texts in content.items():
            for number, each in enumerate(texts, start=1):
                record = _record_of(each, f"{path}: {shown(label)}, entry {number}")
                yield ContrastRecord(record.place, record.text, label)
    elif isinstance(content, list):
        for number, each in enumerate(content, start=1):
            yield _record_of(each, f"{path}: entry {number}")
    else:
        raise InputError(
            f"contrast: {path}: found {_kind(content)}; allowed are a list of records and an object of label to list "
            "of texts"
        )


def _kind(content: Any) -> str:
    return "an object whose values are not lists" if isinstance(content, dict) else f"a {type(content).__name__}"


def _jsonl(path: Path, text: str) -> Iterator[ContrastRecord]:
    for line, row in enumerate(text.split("\n"), start=1):
        if row.strip():
            yield _record_of(_parsed(path, row, line), f"{path}:{line}")


def _txt(path: Path, text: str) -> Iterator[ContrastRecord]:
    for line, row in enumerate(text.splitlines(), start=1):
        if row.strip():
            yield ContrastRecord(f"{path}:{line}", row.strip(), None)


def _parsed(path: Path, text: str, line: int) -> Any:
    try:
        return json_text(text)
    except ValueError as error:
        raise InputError(f"contrast: {path}:{line}: not readable as JSON ({error}); mend the file") from error


def _record_of(record: Any, place: str) -> ContrastRecord:
    """Return a parsed record; a bare text is one without a label."""
    if not isinstance(record, dict):
        return ContrastRecord(place, record, None)
    keys = {str(key).strip().lower(): value for key, value in record.items()}
    text = next((keys[key] for key in TEXT_KEYS if key in keys), None)
    return ContrastRecord(place, text, keys.get(LABEL_KEY))


_READERS: dict[str, Callable[[Path, str], Iterator[ContrastRecord]]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".txt": _txt,
}

"""Read contrast pairs from a CSV or JSON file.

CSV: columns `clean` and `corrupted`, and if wanted `category` and `id`. JSON: a list of objects with these keys. Others
are ignored. A row that holds no pair (an empty side, two equal sides, a pair that is there already) is left out with
the reason; a file that is not of this form is an error.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refusal.errors import InputError
from refusal.patching.pairs import ContrastPair, PairSet, Unusable
from refusal.untrusted.files import json_text, shown
from refusal.untrusted.text_files import read_text

SIDES = ("clean", "corrupted")
NAMES = ("id", "category")
MOST_BYTES, MOST_PAIRS = 1 << 28, 100_000
"""Of a file."""
LONGEST_NAME = 200
"""Characters of an id or a category."""
_ALLOWED = "allowed is CSV with columns clean, corrupted and if wanted category, id, or JSON as a list of such objects"


def read_pairs(path: Path) -> PairSet:
    """Return the pairs of a file.

    Raises:
        InputError: The file cannot be read, is neither CSV nor JSON, or lacks a column; names file and line or entry.
    """
    text = read_text(path, MOST_BYTES, "patching.pairs", "data, embedded, or a CSV or JSON file")
    rows = _json_rows(path, text) if path.suffix.lower() == ".json" else _csv_rows(path, text)
    if len(rows) > MOST_PAIRS:
        raise InputError(f"patching.pairs: {path}: found {len(rows)} pairs; allowed are at most {MOST_PAIRS}")
    return _pairs(path, rows)


def _csv_rows(path: Path, text: str) -> list[tuple[str, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[str, Mapping[str, Any]]] = []
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        _require(f"{path}:1", "column", header)
        for fields in reader:
            if len(fields) > len(header):
                raise InputError(
                    f"patching.pairs: {path}:{reader.line_num}: found {len(fields)} fields under {len(header)} "
                    "columns; put texts that hold commas or quotes in double quotes"
                )
            row = dict(zip(header, fields, strict=False))
            _check(f"{path}:{reader.line_num}", row, NAMES)
            if fields:
                rows.append((f"line {reader.line_num}", row))
    except csv.Error as error:
        raise InputError(f"patching.pairs: {path}:{reader.line_num}: is no CSV ({error}); {_ALLOWED}") from error
    return rows


def _json_rows(path: Path, text: str) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        content = json_text(text)
    except json.JSONDecodeError as error:
        raise InputError(f"patching.pairs: {path}:{error.lineno}: is no JSON ({error.msg}); {_ALLOWED}") from error
    except ValueError as error:
        raise InputError(f"patching.pairs: {path}: is no JSON ({error}); {_ALLOWED}") from error
    if not isinstance(content, list):
        raise InputError(f"patching.pairs: {path}: found no list but {type(content).__name__}; {_ALLOWED}")
    for number, entry in enumerate(content, 1):
        where = f"{path}: entry {number}"
        if not isinstance(entry, dict):
            raise InputError(f"patching.pairs: {where}: found no object but {type(entry).__name__}; {_ALLOWED}")
        _require(where, "key", list(entry))
        _check(where, entry, (*SIDES, *NAMES))
    return [(f"entry {number}", entry) for number, entry in enumerate(content, 1)]


def _check(where: str, row: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        problem = _problem(row.get(key), is_name=key in NAMES)
        if problem is not None:
            raise InputError(f"patching.pairs: {where}: {key}: found {problem}")


def _problem(value: Any, *, is_name: bool) -> str | None:
    """Return what is wrong with a value of an entry, and what is allowed; None if nothing is."""
    if is_name and (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
        return None
    if not isinstance(value, str):
        return f"{shown(value)}; allowed is text{', a number or null' if is_name else ''}"
    if is_name and len(value) > LONGEST_NAME:
        return f"{len(value)} characters; allowed are at most {LONGEST_NAME}"
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in value):
        return "half of a surrogate pair, which is no character; write the whole one"
    return None


def _require(where: str, what: str, names: Sequence[str]) -> None:
    for side in SIDES:
        if names.count(side) != 1:
            near = difflib.get_close_matches(side, names, n=1)
            hint = f"; did you mean {side} by {shown(near[0])}?" if near and side not in names else ""
            found = "no" if side not in names else "more than one"
            raise InputError(f"patching.pairs: {where}: found {found} {what} {side!r}; {_ALLOWED}{hint}")


def _pairs(path: Path, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> PairSet:
    pairs: dict[str, ContrastPair] = {}
    unusable: list[Unusable] = []
    used: set[str] = set()
    for place, row in rows:
        clean, corrupted = ((row.get(side) or "").strip() for side in SIDES)
        name = str(row.get("id") or "").strip() or place
        reason = _reason(clean, corrupted, used, name in pairs)
        if reason is not None:
            unusable.append(Unusable(f"{name} ({place})" if name in pairs else name, reason))
            continue
        used |= {clean, corrupted}
        pairs[name] = ContrastPair(name, clean, corrupted, str(row.get("category") or "").strip() or None)
    return PairSet(str(path), tuple(pairs.values()), tuple(unusable))


def _reason(clean: str, corrupted: str, used: set[str], is_named_twice: bool) -> str | None:
    """Return why a row gives no pair; None if it does."""
    if not clean or not corrupted:
        return "one side is empty"
    if clean == corrupted:
        return "both sides are the same text"
    if clean in used or corrupted in used:
        return "a prompt of it is in another pair already"
    return "its id is another pair's too" if is_named_twice else None

"""Labels that people gave: a CSV, JSON or JSONL file that says of prompt ids or of responses what the model did.

One record per response, with `label` and at least one of `id` (or `prompt_id`) and `response` (or `completion`);
`model` (as in the result folder) where labels are of several models. A JSON file may also be one object, id to label.
Labels are ours (`refused`, `partly_refused`, `complied`, `cannot_tell`) or XSTest's (`full_refusal`, `partial_refusal`,
`full_compliance`). The CSV of disagreements that `run_analysis.py` writes can be filled in and given back: the
apostrophe in front of what a spreadsheet would take for a formula does not count.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal.errors import InputError
from refusal.labels import Behaviour
from refusal.untrusted.files import json_text
from refusal.untrusted.spreadsheet import cell_text
from refusal.untrusted.text_files import read_text

SYNONYMS: dict[str, Behaviour] = {
    **{str(behaviour): behaviour for behaviour in Behaviour},
    "full_refusal": Behaviour.REFUSED,
    "partial_refusal": Behaviour.PARTLY_REFUSED,
    "full_compliance": Behaviour.COMPLIED,
}
"""What a label may be called."""
_IDS, _RESPONSES = ("id", "prompt_id"), ("response", "completion")
MOST_BYTES = 1 << 28
"""Of a file."""
_SHOWN = 5
"""Findings that a message lists."""


@dataclass(frozen=True)
class HumanLabel:
    """What a person said of one response."""

    behaviour: Behaviour
    id: str | None
    """Of the prompt; None where the file gives the response alone."""
    response: str | None
    """None where the file gives the id alone."""
    model: str | None
    """None: of whichever model."""


def read_labels(path: Path) -> list[HumanLabel]:
    """Return the labels in a file.

    Raises:
        InputError: The file cannot be read, is of another kind, or records lack what is needed or contradict each
            other; the message lists them.
    """
    readers = {".csv": _csv, ".jsonl": _jsonl, ".json": _json}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"--labels: {path} ends in {path.suffix!r}; allowed are {', '.join(readers)}; rename the file")
    text = read_text(path, MOST_BYTES, "--labels", "a UTF-8 file")
    found, findings = _checked(reader(path, text))
    if findings:
        more = f"\n... and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else ""
        raise InputError("\n".join(f"--labels: {path}:{finding}" for finding in findings[:_SHOWN]) + more)
    if not found:
        raise InputError(f"--labels: {path} holds no labels; needed is one record per response, with label and id")
    return found


def _csv(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    previous = csv.field_size_limit(MOST_BYTES)
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), restkey="beyond the header", strict=True)
        for line, row in enumerate(rows, start=2):
            yield line, {key: cell_text(cell) if isinstance(cell, str) else cell for key, cell in row.items()}
    except csv.Error as error:
        raise InputError(f"--labels: {path} is not readable as CSV ({error}); write it with quotes") from error
    finally:
        csv.field_size_limit(previous)


def _jsonl(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for line, row in enumerate(text.split("\n"), start=1):
        if row.strip():
            yield line, _parsed(path, row, line)


def _json(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    content = _parsed(path, text, 1)
    if isinstance(content, Mapping):
        content = [{"id": name, "label": label} for name, label in content.items()]
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise InputError(
            f"--labels: {path} holds {type(content).__name__}; allowed is a list, or an object id to label"
        )
    yield from enumerate(content, start=1)


def _parsed(path: Path, text: str, line: int) -> Any:
    try:
        return json_text(text)
    except ValueError as error:
        raise InputError(f"--labels: {path}:{line}: not readable as JSON ({error}); mend the file") from error


def _checked(records: Iterable[tuple[int, Any]]) -> tuple[list[HumanLabel], list[str]]:
    found, findings = [], []
    said: dict[tuple[str | None, ...], tuple[int, Behaviour]] = {}
    for line, record in records:
        label = _label(record)
        if not isinstance(label, HumanLabel):
            findings.append(f"{line}: {label}")
            continue
        found.append(label)
        if label.id is None:
            continue  # the same words may answer one prompt and refuse another
        first, behaviour = said.setdefault((label.model, label.id, label.response), (line, label.behaviour))
        if behaviour is not label.behaviour:
            findings.append(
                f"{line}: {label.id!r} is labelled {label.behaviour}, and {behaviour} at {first}; leave one of them"
            )
    return found, findings


def _label(record: Any) -> HumanLabel | str:
    """Return a record as a label, or what is wrong with it."""
    if not isinstance(record, Mapping):
        return f"found {type(record).__name__}; needed is a record with label and id or response"
    identity, response = (_first(record, names) for names in (_IDS, _RESPONSES))
    if identity is None and response is None:
        keys = ", ".join(map(str, record)) or "nothing"
        return f"found {keys}; needed is one of {', '.join((*_IDS, *_RESPONSES))} beside label"
    said = str(record.get("label", "")).strip().lower().replace(" ", "_").replace("-", "_")
    if said not in SYNONYMS:
        near = difflib.get_close_matches(said, SYNONYMS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"label is {said or 'missing'!r}; allowed are {', '.join(SYNONYMS)}{hint}"
    return HumanLabel(SYNONYMS[said], identity, response, _first(record, ("model",)))


def _first(record: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((str(record[name]) for name in names if record.get(name) not in (None, "")), None)

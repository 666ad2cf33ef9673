"""Contrast sets: two classes of texts whose difference in means is a direction, e.g. negative against neutral.

A set is read from one file with a text and a label per record, or from two files with one class each:

| file | one file for both classes | one file per class |
|---|---|---|
| CSV | columns `text` and `label` | column `text` |
| JSON | a list of `{"text", "label"}`, or an object `{"label": ["text", ...]}` | a list of texts or of `{"text"}` |
| JSONL | a record `{"text", "label"}` per line | a text or a record `{"text"}` per line |
| TXT | - | one text per line |

`text` may also be called prompt, instruction, sentence or statement. The direction points to the first class: the one
that is named first (or asked for). Nothing is guessed or dropped in silence: what cannot be read is an `InputError`
with file and line; texts that stand twice are used once, with a notice. Two sets ship with the package.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from refusal.directions.contrast_files import SHOWN, ContrastRecord, raise_findings, read_records
from refusal.errors import InputError
from refusal.untrusted.files import shown

EMBEDDED = ("harmful_harmless", "negative_neutral")
"""The sets that ship with the package; mild and general sentences."""
MIN_TEXTS = 4
"""Different texts a class needs, below which an interval means nothing."""


@dataclass(frozen=True)
class ContrastSet:
    """Two classes of texts."""

    name: str
    texts: tuple[str, ...]
    """In the order of the file; no text twice."""
    is_positive: Bool[np.ndarray, " prompt"]
    """Whether each text is of the first class, the one that the direction points to."""
    positive: str
    """Name of the first class."""
    negative: str
    notices: tuple[str, ...] = ()
    """What the user should know about the file, in words."""

    @property
    def n_positive(self) -> int:
        """Texts of the first class."""
        return int(self.is_positive.sum())

    @property
    def n_negative(self) -> int:
        """Texts of the second class."""
        return len(self.texts) - self.n_positive


def embedded_contrast(name: str) -> ContrastSet:
    """Return a set that ships with the package.

    Raises:
        InputError: There is none of that name.
    """
    if name not in EMBEDDED:
        near = difflib.get_close_matches(name, EMBEDDED, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"contrast: no set called {name!r} is shipped; shipped are {', '.join(EMBEDDED)}{hint}")
    return read_contrast(Path(__file__).parent / "data" / f"{name}.csv")


def read_contrast(path: Path, positive: str | None = None) -> ContrastSet:
    """Return the set in one file with a text and a label per record.

    Args:
        path: A CSV, JSON or JSONL file.
        positive: The class that the direction points to; None: the one that is named first.

    Raises:
        InputError: The file cannot be read, or does not hold two classes with at least `MIN_TEXTS` texts each.
    """
    records = read_records(path, needs_label=True)
    labels = list(dict.fromkeys(str(record.label).strip() for record in records))
    if len(labels) != 2:
        some = ", ".join(map(shown, labels[:SHOWN])) + (", ..." if len(labels) > SHOWN else "")
        raise InputError(
            f"contrast: {path}: found {len(labels)} labels ({some or 'none'}); a contrast has two, e.g. negative and "
            "neutral; keep the two that are to be compared"
        )
    if positive is not None and positive not in labels:
        near = difflib.get_close_matches(positive, labels, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"contrast: {path}: no text is labelled {positive!r}; labels are {', '.join(labels)}{hint}")
    first = positive or labels[0]
    second = next(label for label in labels if label != first)
    return _contrast(path.stem, records, first, second, str(path))


def read_contrast_files(positive: Path, negative: Path) -> ContrastSet:
    """Return the set of two files with one class each; the classes are called as the files.

    Raises:
        InputError: A file cannot be read, is the other one, or holds fewer than `MIN_TEXTS` texts.
    """
    if positive.resolve() == negative.resolve():
        raise InputError(f"contrast: {positive} is given for both classes; a contrast is between two different files")
    names = (positive.stem, negative.stem)
    if names[0] == names[1]:
        names = (str(positive), str(negative))
    records = []
    for path, name in zip((positive, negative), names, strict=True):
        records += [ContrastRecord(each.place, each.text, name) for each in read_records(path, needs_label=False)]
    return _contrast(f"{names[0]}_{names[1]}", records, *names, f"{positive}, {negative}")


def _contrast(name: str, records: Sequence[ContrastRecord], first: str, second: str, where: str) -> ContrastSet:
    """Return the checked set: no text twice, none of both classes, enough of each."""
    seen: dict[str, ContrastRecord] = {}
    findings, n_twice = [], 0
    for record in records:
        other = seen.setdefault(record.text, record)
        if other is record:
            continue
        if str(other.label).strip() == str(record.label).strip():
            n_twice += 1
        else:
            findings.append(f"{record.place}: the text stands as {other.label!r} too, at {other.place}")
    if findings:
        raise_findings(findings, "a text is of one class; remove it from the other")
    labels = [str(record.label).strip() for record in seen.values()]
    for label in (first, second):
        if labels.count(label) < MIN_TEXTS:
            raise InputError(
                f"contrast: {where}: found {labels.count(label)} different texts of {label!r}; at least {MIN_TEXTS} "
                "are needed, some dozens are better; add more"
            )
    notices = (f"contrast {name}: {n_twice} texts stand more than once and are used once",) if n_twice else ()
    return ContrastSet(name, tuple(seen), np.array([label == first for label in labels]), first, second, notices)

"""The file of a judge's verdicts: a line each, with a checksum, written as they come.

A killed run goes on after the last line; one that was cut short or changed since is passed over, and judged anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from refusal.artefacts import without_following
from refusal.labels.behaviour import Behaviour, Judgement
from refusal.untrusted.files import json_text


@dataclass(frozen=True)
class _Verdict:
    """A line of the file of verdicts."""

    key: str
    behaviour: str
    rule: str
    confidence: float | None
    checksum: str
    """Of the line without it."""


def read_verdicts(path: Path) -> dict[str, Judgement]:
    """Return the verdicts in a file; a line that a kill cut short, or that has changed since, is passed over."""
    found: dict[str, Judgement] = {}
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            kept = _Verdict(**json_text(line))
            if kept == _line_of(kept.key, Judgement(Behaviour(kept.behaviour), kept.rule, kept.confidence)):
                found[kept.key] = Judgement(Behaviour(kept.behaviour), kept.rule, kept.confidence)
        except (ValueError, TypeError, OverflowError):
            continue
    return found


def _line_of(key: str, judgement: Judgement) -> _Verdict:
    """Return the line of a verdict."""
    line = [key, str(judgement.behaviour), judgement.rule, judgement.confidence]
    checksum = hashlib.sha256(json.dumps(line).encode()).hexdigest()[:16]
    return _Verdict(key, str(judgement.behaviour), judgement.rule, judgement.confidence, checksum)


def add_verdicts(path: Path, found: Mapping[str, Judgement]) -> None:
    """Add verdicts, by key, to a file, which is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8", opener=without_following) as handle:
        # A line that a kill cut short must not swallow the next one.
        handle.write("\n" if handle.tell() else "")
        handle.writelines(json.dumps(vars(_line_of(key, judgement))) + "\n" for key, judgement in found.items())

"""Results inside a stage that are kept when they are done, so that a run that was stopped goes on after them.

Each holds its plan, the digest of all that it depends on. What was made under another plan, or is damaged, is made
anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from refusal.errors import ArtefactError
from refusal.record import Artefact

Made = TypeVar("Made", bound=Artefact)


def plan_of(decisive: Any) -> str:
    """Return the digest of all that a result depends on: the SHA-256 of its JSON, whatever the order of keys."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def found(path: Path, kind: type[Made], plan: str) -> Made | None:
    """Return what is kept at `path` if it was made under this plan; None otherwise, also when it is damaged."""
    try:
        there = kind.load(path)
    except ArtefactError:
        return None
    return there if getattr(there, "plan", None) == plan else None


def kept(path: Path, kind: type[Made], plan: str, make: Callable[[], Made]) -> Made:
    """Return what is kept at `path` under this plan, or make and keep it."""
    there = found(path, kind, plan)
    if there is None:
        there = make()
        there.save(path)
    return there

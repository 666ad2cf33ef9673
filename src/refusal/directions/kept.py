"""Results inside the directions stage that are kept when they are done, so that a killed run goes on after them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from refusal.errors import ArtefactError
from refusal.record import Artefact

Made = TypeVar("Made", bound=Artefact)


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

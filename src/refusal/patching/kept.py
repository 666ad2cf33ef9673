"""The finished parts of patching, kept on disk as they finish, so that a run that was stopped goes on where it was.

Maps are kept as one number per unit and pair (`maps/NAME.safetensors`), other parts as JSON (`parts/NAME.json`), each
with the plan that it was made under (`refusal.kept`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from pydantic import BaseModel

from refusal.errors import ArtefactError
from refusal.kept import kept, plan_of
from refusal.patching.records import PATCHING
from refusal.patching.units import Patch, PatchedMetric, Unit
from refusal.record import Artefact
from refusal.sealed_tensors import read_sealed_tensors, write_sealed_tensors

Content = TypeVar("Content", bound=BaseModel)
_ARRAYS = ("patched", "clean", "corrupted")
_KEY = "meta"


class Part(Artefact, Generic[Content]):
    """`parts/NAME.json`."""

    SCHEMA = "refusal-circuits/patching-part/1"
    MADE_BY = PATCHING
    plan: str
    content: tuple[Content, ...]


class Kept:
    """The finished parts of a stage.

    Args:
        folder: Where they lie.
        plan: What decides the content of all parts, JSON-like.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        self._plan = dict(plan)
        self._used: set[Path] = set()

    def digest(self, name: str, more: Mapping[str, Any]) -> str:
        """Return the digest of a part's plan."""
        return plan_of({"part": name, **self._plan, "more": dict(more)})

    def map(
        self, name: str, patch: Patch, units: Sequence[Unit], more: Mapping[str, Any], make: Callable[[], PatchedMetric]
    ) -> PatchedMetric:
        """Return a map, made now unless it is there.

        Args:
            name: File name without suffix.
            patch: Its way of patching.
            units: Its units.
            more: What decides it besides these and the plan of the stage.
            make: Measures it.
        """
        path = self.folder / "maps" / f"{name}.safetensors"
        self._used.add(path)
        digest = self.digest(name, {"patch": str(patch), "units": [str(unit) for unit in units], **more})
        arrays = _arrays(path, digest)
        if arrays is not None:
            return PatchedMetric(patch, tuple(units), **arrays)
        made = make()
        _save(path, digest, made)
        return made

    def part(
        self, name: str, kind: type[Content], more: Mapping[str, Any], make: Callable[[], list[Content]]
    ) -> list[Content]:
        """Return some records, made now unless they are there."""
        path = self.folder / "parts" / f"{name}.json"
        self._used.add(path)
        plan, part = self.digest(name, more), Part[kind]  # type: ignore[valid-type]
        return list(kept(path, part, plan, lambda: part.build(plan=plan, content=tuple(make()))).content)

    def forget_others(self) -> None:
        """Remove parts of earlier runs that this one did not ask for."""
        for pattern in ("maps/*.safetensors", "parts/*.json"):
            for path in self.folder.glob(pattern):
                if path not in self._used:
                    path.unlink()


def _save(path: Path, digest: str, found: PatchedMetric) -> None:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(found, name))) for name in _ARRAYS}
    about = {"plan": digest, "units": [str(unit) for unit in found.units], "patch": str(found.patch)}
    write_sealed_tensors(path, tensors, about, _KEY)


def _arrays(path: Path, digest: str) -> dict[str, np.ndarray] | None:
    """Return the arrays of a map that was made under a plan; None where there is none, or a damaged one."""
    try:
        tensors, about = read_sealed_tensors(path, _KEY, "it is made anew")
    except (FileNotFoundError, ArtefactError):
        return None
    return {name: tensors[name].numpy() for name in _ARRAYS} if about.get("plan") == digest else None

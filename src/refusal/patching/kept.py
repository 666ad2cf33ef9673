"""What a stage has finished, kept on disk as it finishes, so that a run that was stopped goes on where it was.

Each part has a plan: everything that decides its content, as a digest. A part that was made under another plan, or
whose file does not fit the checksum in it, is made anew. Maps are kept as one number per unit and pair
(`maps/NAME.safetensors`), other parts as JSON (`parts/NAME.json`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from refusal.artefacts import CHECKSUM, atomic_write, read_sealed, write_sealed
from refusal.errors import ArtefactError
from refusal.patching.units import Patch, PatchedMetric, Unit
from refusal.weights import tensors_digest

Content = TypeVar("Content", bound=BaseModel)


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
        content = {"part": name, **self._plan, "more": dict(more)}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

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
        digest = self.digest(name, more)
        adapter = TypeAdapter(list[kind])  # type: ignore[valid-type]
        try:
            content = read_sealed(path, "")
            if content.get("plan") == digest:
                return list(adapter.validate_python(content["content"]))
        except (ArtefactError, ValidationError, AttributeError, KeyError):
            pass  # not there, or not whole: made anew
        made = make()
        write_sealed(path, {"plan": digest, "content": adapter.dump_python(made, mode="json")})
        return made

    def forget_others(self) -> None:
        """Remove parts of earlier runs that this one did not ask for."""
        for pattern in ("maps/*.safetensors", "parts/*.json"):
            for path in self.folder.glob(pattern):
                if path not in self._used:
                    path.unlink()


def _save(path: Path, digest: str, found: PatchedMetric) -> None:
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(getattr(found, name))) for name in ("patched", "clean", "corrupted")
    }
    meta: dict[str, Any] = {"plan": digest, "units": [str(unit) for unit in found.units], "patch": str(found.patch)}
    meta[CHECKSUM] = tensors_digest(tensors, meta)
    with atomic_write(path) as beside:
        # one metadata key: files with several are not byte-reproducible
        save_file(tensors, beside, metadata={"meta": json.dumps(meta)})


def _arrays(path: Path, digest: str) -> dict[str, np.ndarray] | None:
    """Return the arrays of a map that was made under a plan; None where there is none."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as handle:
            meta = json.loads((handle.metadata() or {}).get("meta", "{}"))
            if meta.get("plan") != digest:
                return None
            tensors = {name: handle.get_tensor(name) for name in ("patched", "clean", "corrupted")}
    except (SafetensorError, ValueError, OSError):
        return None
    checksum = meta.pop(CHECKSUM, None)
    if checksum != tensors_digest(tensors, meta):
        return None  # damaged: to be made anew
    return {name: tensor.numpy() for name, tensor in tensors.items()}

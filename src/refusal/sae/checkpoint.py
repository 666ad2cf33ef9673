"""Where a training stands, on disk, so that a killed one goes on and ends with the same weights to the last bit.

One safetensors file per stack, replaced atomically at evaluations, at most every `seconds`, and removed when the stack
is done. Its name holds the fingerprint of all that decides the weights, so that one of other settings is never taken
for it; the state of the random generators is part of it, and a checksum of its content, so that a damaged one is not
gone on with. A training that was stopped and whose rows have changed since is not silently begun anew: what it has
cost, and which rows are meant, the user knows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from refusal.errors import ArtefactError
from refusal.sealed_tensors import read_sealed_tensors, write_sealed_tensors

SECONDS = 60.0
"""Time between two writes, at least."""
_KEY = "values"
"""Entry of the metadata."""
_REMEDY = "delete it; the training then starts anew"


@dataclass(frozen=True)
class State:
    """What changes from step to step."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    """Numbers, strings and lists of them."""


@dataclass
class Checkpoint:
    """The file of one stack."""

    folder: Path
    fingerprint: str
    """Of all that decides the weights."""
    seconds: float = field(default_factory=lambda: SECONDS)
    """Time between two writes, at least."""
    training: str = ""
    """What is trained with which settings, whatever the rows; empty: not compared."""
    rows: str = ""
    """What it is trained on, in words that differ when the rows do."""
    _written: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder / f"checkpoint_{self.fingerprint[:16]}.safetensors"

    def load(self) -> State | None:
        """Return the state that was saved; None when there is none.

        Raises:
            ArtefactError: The file is damaged, or there is one of the same training on other rows.
        """
        if not self.path.exists():
            self._refuse_other_rows()
            return None
        tensors, values = read_sealed_tensors(self.path, _KEY, _REMEDY)
        if values.get("fingerprint") != self.fingerprint:
            raise ArtefactError(f"{self.path}: belongs to a training with other settings; {_REMEDY}")
        return State(tensors, values)

    def _refuse_other_rows(self) -> None:
        for path in sorted(self.folder.glob("checkpoint_*.safetensors")) if self.training else ():
            try:
                _, values = read_sealed_tensors(path, _KEY, _REMEDY)
            except FileNotFoundError:  # another process has just done with it
                continue
            if values.get("training") == self.training and values.get("rows") != self.rows:
                raise ArtefactError(
                    f"{path}: this training was stopped on {values.get('rows')}; the activations have changed since "
                    f"and are now {self.rows}; put them back to go on with it, or {_REMEDY} on those there are now"
                )

    def is_due(self) -> bool:
        """Return whether it is time to save."""
        return time.monotonic() - self._written >= self.seconds

    def save(self, state: State) -> None:
        """Write the state in place of the last."""
        about = {"fingerprint": self.fingerprint, "training": self.training, "rows": self.rows}
        write_sealed_tensors(self.path, state.tensors, {**state.values, **about}, _KEY)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)


def pack(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under names that begin with the prefix and a slash, copied."""
    return {f"{prefix}/{name}": tensor.detach().clone() for name, tensor in tensors.items()}


def unpack(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `pack`."""
    return {
        name.removeprefix(f"{prefix}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")
    }

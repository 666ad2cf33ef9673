"""Where a training stands, on disk, so that a killed one goes on and ends with the same weights to the last bit.

One safetensors file per stack, replaced atomically at evaluations, at most every `seconds`, and removed when the stack
is done. Its name holds the fingerprint of all that decides the weights, so that one of other settings is never taken
for it; the state of the random generators is part of it, and a checksum of its content, so that a damaged one is not
gone on with. A training that was stopped and whose rows have changed since is not silently begun anew: what it has
cost, and which rows are meant, the user knows.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from refusal.artefacts import atomic_write
from refusal.errors import ArtefactError
from refusal.weights import tensors_digest

SECONDS = 60.0
"""Time between two writes, at least."""
_CHECKSUM = "checksum"
"""Key of the values under which the checksum of tensors and of the other values stands."""
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
        tensors, values = _read(self.path)
        if values.get("fingerprint") != self.fingerprint:
            raise ArtefactError(f"{self.path}: belongs to a training with other settings; {_REMEDY}")
        return State(tensors, values)

    def _refuse_other_rows(self) -> None:
        for path in sorted(self.folder.glob("checkpoint_*.safetensors")) if self.training else ():
            try:
                _, values = _read(path)
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
        tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
        about = {"fingerprint": self.fingerprint, "training": self.training, "rows": self.rows}
        noted = {**state.values, **about}
        values = json.dumps({**noted, _CHECKSUM: tensors_digest(tensors, noted)})
        with atomic_write(self.path) as beside:
            save_file(tensors, beside, metadata={"values": values})
        self._written = time.monotonic()

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the values of a checkpoint.

    Raises:
        ArtefactError: The file is damaged.
        FileNotFoundError: There is none.
    """
    try:
        with safe_open(path, "pt") as handle:
            values = json.loads((handle.metadata() or {}).get("values", "null"))
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{path}: not readable as a checkpoint ({error}); {_REMEDY}") from error
    if not isinstance(values, dict):
        return tensors, {}
    checksum = values.pop(_CHECKSUM, None)
    if checksum not in (None, tensors_digest(tensors, values)):
        raise ArtefactError(f"{path}: damaged (its content does not fit the checksum in it); {_REMEDY}")
    return tensors, values


def pack(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under names that begin with the prefix and a slash, copied."""
    return {f"{prefix}/{name}": tensor.detach().clone() for name, tensor in tensors.items()}


def unpack(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `pack`."""
    return {
        name.removeprefix(f"{prefix}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")
    }

"""Tensors on disk with a checksum: safetensors whose metadata hold JSON values, the digest of all of it among them.

Of JSON files `refusal.artefacts` knows the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from refusal.artefacts import CHECKSUM, atomic_write
from refusal.errors import ArtefactError
from refusal.weights import tensors_digest


def write_sealed_tensors(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], key: str) -> None:
    """Write tensors and JSON-like values atomically.

    Args:
        path: Where.
        tensors: By name.
        values: What is said of them.
        key: Name of the one entry of the metadata; files with several are not byte-reproducible.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**values, CHECKSUM: tensors_digest(contiguous, values)})
    with atomic_write(path) as beside:
        save_file(contiguous, beside, metadata={key: text})


def read_sealed_tensors(path: Path, key: str, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and values; no values where the file has none, and of a file without checksum as they are.

    Args:
        path: The file.
        key: As it was written with.
        remedy: What to do, for the error message.

    Raises:
        ArtefactError: The file is damaged.
        FileNotFoundError: There is none.
    """
    try:
        with safe_open(path, "pt") as handle:
            values = json.loads((handle.metadata() or {}).get(key, "null"))
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read as tensors ({error}); {remedy}") from error
    if not isinstance(values, dict):
        return tensors, {}
    if values.pop(CHECKSUM, None) not in (None, tensors_digest(tensors, values)):
        raise ArtefactError(f"{path}: damaged (its content does not fit the checksum in it); {remedy}")
    return tensors, values

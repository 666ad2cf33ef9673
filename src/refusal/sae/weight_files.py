"""Tensors and configurations of SAEs from files that strangers wrote: nothing in them is ever run.

safetensors hold no code; numpy archives are read without pickle, torch files with `weights_only=True`. What is cut off,
damaged or of another kind is one error that names the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from refusal.artefacts import read_json
from refusal.errors import ArtefactError, InputError
from refusal.untrusted.files import READ_ERRORS, check_archive, first_line, require_regular, safetensors_header
from refusal.untrusted.torch_files import torch_file

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Those in which an SAE can compute."""


def _read_torch(path: Path) -> dict[str, Tensor]:
    if not is_zipfile(path):
        raise UnpicklingError("no file of torch.save, or one of before 2020")
    return {str(name): tensor.detach() for name, tensor in torch_file(path).items()}


def _read_numpy(path: Path) -> dict[str, Tensor]:
    check_archive(path)
    with path.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:  # else numpy leaves bad files open
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    safetensors_header(path)
    tensors: dict[str, Tensor] = load_file(str(path))
    return tensors


_FILE_READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".pt": _read_torch,
    ".npz": _read_numpy,
    ".safetensors": _read_safetensors,
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors`, `.npz` or `.pt` file, on the CPU.

    Raises:
        ArtefactError: It is no such file or holds more than tensors.
    """
    try:
        require_regular(path)
        return _FILE_READERS[path.suffix](path)
    except UnpicklingError as error:
        raise ArtefactError(
            f"{path}: not readable: it is damaged or holds more than tensors; allowed are tensors alone, as code in a "
            "file is never run; download it again, or save the SAE's state_dict() there"
        ) from error
    except READ_ERRORS as error:
        raise ArtefactError(
            f"{path}: not readable as {path.suffix} ({type(error).__name__}: {first_line(error)}); delete it and "
            "download the SAE again"
        ) from error


def read_config(path: Path | None) -> dict[str, Any]:
    """Return the content of a configuration.

    Raises:
        ArtefactError: It is missing or no JSON.
        InputError: It is something other than an object.
    """
    assert path is not None, "only Gemma Scope 1 has no configuration"
    if not path.is_file():
        raise ArtefactError(f"{path}: not found; the weights alone do not say how they are used; download it too")
    config = read_json(path, made_by="the library that wrote it, or download the SAE again")
    if not isinstance(config, dict):
        raise InputError(f"{path}: found {type(config).__name__}, allowed is a JSON object; download the SAE again")
    return config

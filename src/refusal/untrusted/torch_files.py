"""Files of torch.save that strangers wrote: plain tensors come out, and nothing in them is ever run.

Torch reads them with `weights_only`. What that lets through besides numbers (a few numbers repeated a trillion times,
tensors without storage, sparse or quantised ones) is refused here, before memory is taken for it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from refusal.untrusted.files import MOST_INFLATION, check_archive, regular_size

MOST_BYTES = 1 << 40
"""Of a file."""
LEAST_BYTES = 1 << 20
"""Bytes that tensors may take whatever the size of their file."""


def read_torch(path: Path) -> Any:
    """Return what torch.save wrote: a tensor, or a list or dictionary of them.

    Raises:
        UnpicklingError: It holds more than tensors, or is of torch before 1.6, whose files are no archives.
        Exception: Any other of `refusal.untrusted.files.READ_ERRORS`.
    """
    regular_size(path, MOST_BYTES)
    if not is_zipfile(path):
        raise UnpicklingError("no file of torch.save, or one of before 2020")
    check_archive(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle's protocol number, which damaged files have, and of old dtypes
        return torch.load(path, map_location="cpu", weights_only=True)


def plain_tensor(found: Any, n_bytes: int) -> Tensor:
    """Return a tensor that holds its numbers one by one, without gradient.

    Args:
        found: What was read.
        n_bytes: Bytes of its file.

    Raises:
        ValueError: It is no such tensor, or would take far more memory than its file has bytes.
    """
    if not isinstance(found, Tensor):
        raise ValueError(f"found {type(found).__name__}, no tensor")
    if found.layout is not torch.strided or found.is_quantized or found.is_meta or found.is_nested:
        raise ValueError("found a tensor that is sparse, quantised or without numbers")
    taken = found.numel() * found.element_size()
    # a tensor may repeat a few numbers of its storage any number of times
    if taken > max(LEAST_BYTES, MOST_INFLATION * n_bytes):
        raise ValueError(f"a tensor of {taken} bytes in a file of {n_bytes}")
    return found.detach()


def tensor_file(path: Path) -> Tensor:
    """Return the one tensor of a file.

    Raises:
        Exception: One of `refusal.untrusted.files.READ_ERRORS`; it is no such file.
    """
    return plain_tensor(read_torch(path), path.stat().st_size)

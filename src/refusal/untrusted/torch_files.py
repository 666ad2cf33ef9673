"""Files of torch.save that strangers wrote: plain tensors come out, and nothing in them is ever run.

Torch reads them with `weights_only`. What that lets through besides numbers (a few numbers repeated a trillion times,
tensors without storage, sparse or quantised ones) is refused here. Apart from `files`, as torch takes a while to load.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from refusal.untrusted.files import LEAST_INFLATED, MOST_INFLATION, check_archive, require_regular


def torch_file(path: Path) -> Any:
    """Return what `torch.save` wrote: tensors alone, or dictionaries of them; code in it does not run.

    Raises:
        OSError, UnpicklingError or another of `READ_ERRORS`: It cannot be read, or holds more than tensors.
        ValueError: A tensor is of a kind that has no plain numbers, or would take absurdly more memory than its file.
    """
    require_regular(path)
    if is_zipfile(path):
        check_archive(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle's protocol number, which damaged files have
        found = torch.load(path, map_location="cpu", weights_only=True)
    values = found.values() if isinstance(found, dict) else (found,)
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if any(
        each.is_nested or each.is_quantized or each.layout is not torch.strided or each.device.type != "cpu"
        for each in tensors
    ):
        raise ValueError("a tensor in it is nested, sparse or without numbers")
    # a tensor may repeat a few numbers of its storage any number of times
    taken, size = sum(each.numel() * each.element_size() for each in tensors), path.stat().st_size
    if taken > max(LEAST_INFLATED, MOST_INFLATION * size):
        raise ValueError(f"tensors of {taken} bytes in a file of {size}")
    return found


def tensor_file(path: Path) -> Tensor:
    """Return the one tensor of a file, without gradient.

    Raises:
        OSError, UnpicklingError or another of `READ_ERRORS`: It cannot be read, or holds more than tensors.
        ValueError: It holds no tensor, or one that is not plain numbers.
    """
    found = torch_file(path)
    if not isinstance(found, Tensor):
        raise ValueError(f"found {type(found).__name__}, no tensor")
    return found.detach()

"""Reading files that strangers wrote or a disk has damaged: bounded in size and depth, nothing believed unchecked.

A header may claim any size. Here it is compared with the bytes that are there before memory is taken for what it
promises. Everything raises `ValueError` (or `OSError`) with a reason in words; the callers, who know what the file is
for, name it and say what to do.
"""

from __future__ import annotations

import errno
import json
import math
import os
import reprlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError

READ_ERRORS: tuple[type[Exception], ...] = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, MemoryError),
    *(ArithmeticError, AssertionError, ImportError, NotImplementedError, UnpicklingError, BadZipFile, zlib.error),
    SafetensorError,
)
"""What readers of other libraries raise on files that are cut off, damaged or of another kind (found by cutting and
changing files)."""
MOST_JSON = 1 << 31
"""Bytes of a JSON file, at most: a hundred times what 80,000 prompts with their responses take."""
MOST_HEADER = 100_000_000
"""Bytes of the header of a safetensors file, at most: the limit of the library itself."""
MOST_INFLATION = 64
"""How many times larger than the archive what is in it may be; weights hardly shrink at all."""
LONGEST_SHOWN = 100
"""Characters of a value in a message, at most."""
LEAST_INFLATED = 1 << 20
"""Bytes that any archive may hold: in small ones there may be many zeros."""
_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{"U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32},
    **{"U64": 64, "I64": 64, "F64": 64, "C64": 64},
}
"""Bits of a number of each dtype of safetensors."""


def first_line(error: BaseException, longest: int = 200) -> str:
    """Return what an error says in one line; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:longest] if lines else type(error).__name__


def shown(value: Any) -> str:
    """Return a value as a message shows it: whatever its size and depth, in a few words.

    >>> shown("a"), shown([1, {"b": 2}]), len(shown("x" * 5000))
    ("'a'", "[1, {'b': 2}]", 100)
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = LONGEST_SHOWN
    text = short.repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def file_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file.

    Args:
        path: The file.
        most: Bytes, at most.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger, or a device, a pipe or a socket, which may never end.
    """
    size = path.stat().st_size
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    require_regular(path)
    if size > most:
        raise ValueError(f"{size} bytes, at most {most} are read")
    return path.read_bytes()


def require_regular(path: Path) -> None:
    """Raise if a path leads to a device, a pipe or a socket, which may never end; whether it is there is not asked.

    Raises:
        ValueError: It does.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError("no regular file")


def json_text(text: str) -> Any:
    """Return the content of JSON.

    Raises:
        ValueError: It is none, is nested too deeply, or holds a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise ValueError("a number has thousands of digits") from error


def json_file(path: Path, most: int = MOST_JSON) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no UTF-8, no JSON, too large or nested too deeply.
    """
    return json_text(file_bytes(path, most).decode("utf-8"))


@dataclass(frozen=True)
class TensorEntry:
    """What the header of a safetensors file says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Where its bytes begin in the file."""


def safetensors_header(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a safetensors file by name, read from its header alone.

    Raises:
        OSError: It cannot be read.
        ValueError: The header is no such header, or promises what the file has not.
    """
    require_regular(path)
    size = path.stat().st_size
    with path.open("rb") as handle:
        n_header = int.from_bytes(handle.read(8), "little")
        if not 2 <= n_header <= min(MOST_HEADER, size - 8):
            raise ValueError(f"header too large or none: {n_header} bytes of it in a file of {size}")
        content = json_text(handle.read(n_header).decode("utf-8"))
    if not isinstance(content, dict):
        raise ValueError("the header is no JSON object")
    first = 8 + n_header
    entries = ((name, entry) for name, entry in content.items() if name != "__metadata__")
    return {name: _entry(name, entry, first, size - first) for name, entry in entries}


def _entry(name: str, entry: Any, first: int, n_data: int) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        is_whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        n_bytes = -(-math.prod(shape) * _BITS[dtype] // 8)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"the header does not say what {name[:100]!r} is") from error
    if not is_whole or not begin <= end <= n_data or end - begin != n_bytes:
        raise ValueError(f"{name[:100]!r} has {shape} numbers in bytes {begin} to {end} of {n_data}")
    return TensorEntry(dtype, tuple(shape), first + begin)


def check_archive(path: Path) -> None:
    """Raise if what is in a zip archive (`.npz`, `.pt`) would take absurdly more memory than the archive.

    Raises:
        OSError, BadZipFile: It cannot be read, or is none.
        ValueError: It holds too much, or an array in it claims more numbers than there are.
    """
    require_regular(path)
    most = max(LEAST_INFLATED, MOST_INFLATION * path.stat().st_size)
    with ZipFile(path) as archive:
        inflated = sum(entry.file_size for entry in archive.infolist())
        if inflated > most:
            raise ValueError(f"{inflated} bytes in an archive of {path.stat().st_size}")
        for entry in archive.infolist():
            if entry.filename.endswith(".npy"):
                with archive.open(entry) as handle:
                    claimed = _claimed_bytes(handle)
                if claimed > entry.file_size:
                    raise ValueError(f"{entry.filename[:100]!r} claims {claimed} bytes and has {entry.file_size}")


def _claimed_bytes(handle: Any) -> int:
    """Return the bytes that the header of a `.npy` file claims for its numbers."""
    import numpy as np  # takes a while, and what reads a configuration does without

    version = np.lib.format.read_magic(handle)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(handle)
    if any(number < 0 for number in shape):
        raise ValueError(f"a shape of {shape}")
    return math.prod(shape) * dtype.itemsize

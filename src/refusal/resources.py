"""What a run takes from the machine: memory at its highest, and room on the disk."""

from __future__ import annotations

import resource
import shutil
import sys
from contextlib import suppress
from pathlib import Path

MIB = 1 << 20
LEAST_FREE = 64 * MIB
"""Bytes of free disk below which no run starts: it could not even write its small files."""
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")
"""What torch says on CUDA and MPS, on the CPU, and in cuBLAS when memory runs out (lower case)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, whichever library raised it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in said for phrase in OUT_OF_MEMORY)


def human_bytes(n_bytes: int) -> str:
    """Return a number of bytes in the unit that suits it.

    >>> human_bytes(700), human_bytes(3 << 20), human_bytes(5 << 29)
    ('1 KiB', '3.0 MiB', '2.5 GiB')
    """
    for unit, size in (("GiB", 1 << 30), ("MiB", MIB)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{max(1, round(n_bytes / 1024))} KiB"


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that a path is on, or would be on once it is made."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def start_measuring_memory() -> None:
    """Forget the peaks so far, where the system can: the peak of the process (Linux), that of CUDA."""
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the process so far
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    for device in _cuda_devices():
        sys.modules["torch"].cuda.reset_peak_memory_stats(device)


def peak_memory_bytes() -> int:
    """Return the largest resident memory since `start_measuring_memory`, or else of the process so far."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def peak_cuda_bytes() -> int | None:
    """Return the largest memory of tensors on CUDA since `start_measuring_memory`, over all devices; None without."""
    devices = _cuda_devices()
    if not devices:
        return None
    return sum(int(sys.modules["torch"].cuda.max_memory_allocated(device)) for device in devices)


def _cuda_devices() -> range:
    """Return the CUDA devices in use; torch is not imported, and CUDA not started, to find out."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return range(0)
    return range(torch.cuda.device_count())
